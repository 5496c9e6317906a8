"""From a picture to pixels in a bucket's size."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def fit(picture: Image.Image, bucket: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An RGB picture resized to cover `bucket` (width, height) and cropped to its middle.

    Returns pixels `(3, h, w)` float32 in [-1, 1] and its `sizes_of`.
    """
    width, height, top, left = placement(*picture.size, bucket)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    cropped = resized.crop((left, top, left + bucket[0], top + bucket[1]))
    pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()
    return pixels.float() / 127.5 - 1, sizes_of(*picture.size, bucket)


def sizes_of(width: int, height: int, bucket: tuple[int, int]) -> Tensor:
    """`(6)` float32, the size conditioning of some families: the picture's own height and width, the crop's top and
    left in resized pixels, the bucket's height and width."""
    _, _, top, left = placement(width, height, bucket)
    return torch.tensor([height, width, top, left, bucket[1], bucket[0]], dtype=torch.float32)


def enlargement(width: int, height: int, bucket: tuple[int, int]) -> float:
    """The factor by which a picture is resized to cover `bucket`; above 1 it is made larger than it is."""
    return max(bucket[0] / width, bucket[1] / height)


def placement(width: int, height: int, bucket: tuple[int, int]) -> tuple[int, int, int, int]:
    """Width and height after resizing, top and left of the crop."""
    factor = enlargement(width, height, bucket)
    resized_w, resized_h = max(bucket[0], round(width * factor)), max(bucket[1], round(height * factor))
    return resized_w, resized_h, (resized_h - bucket[1]) // 2, (resized_w - bucket[0]) // 2
