"""How a picture is seen at a position: the part that is kept, its rotation and its colours. Pure functions of seed and
position, or of the picture and the number of a variant."""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from random import Random

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from modules.adapters.base import seed_of
from modules.data.index import Picture
from modules.data.pictures import fit, placement, sizes_of
from modules.preset.data_options import Data

MIDDLE = (0.5, 0.5)

FINER = 2
"""Factor by which a picture is larger than its crop while it is rotated."""


@dataclass(frozen=True)
class View:
    """A way to see a picture, in numbers. A picture without one is seen as `pictures.fit` gives it."""

    resized: tuple[int, int]
    """Width and height after resizing."""
    top: int
    """Of the crop, in resized pixels."""
    left: int
    angle: float = 0.0
    """By which the crop is turned around its middle, clockwise, in degrees: the picture turns the other way."""
    brightness: float = 1.0
    """A factor, like `contrast` and `saturation`."""
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """By which the colours are turned, as a part of the colour circle."""

    def sources(self, bucket: tuple[int, int], points: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Where the crop's pixels are in the resized picture, across and down: two `(height * points, width * points)`,
        for so many points along each side of a pixel."""
        x = (np.arange(bucket[0] * points) + 0.5)[None] / points - bucket[0] / 2
        y = (np.arange(bucket[1] * points) + 0.5)[:, None] / points - bucket[1] / 2
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        across = self.left + bucket[0] / 2 + cos * x - sin * y
        return across, self.top + bucket[1] / 2 + sin * x + cos * y


def is_varied(options: Data) -> bool:
    """Whether pictures are seen in more than one way, apart from flips."""
    return options.crop == "random" or bool(options.rotation) or _is_coloured(options)


def is_encoded_in_steps(options: Data) -> bool:
    """Whether latents are computed in each step, because every use of a picture is another version of it."""
    return is_varied(options) and options.variants == 0


def encodes_in_steps(pictures: Iterable[Picture]) -> bool:
    """Whether that is so for any of the pictures: the image encoder then has to stay on the device."""
    return any(is_encoded_in_steps(picture.options) for picture in pictures)


def view_at(options: Data, picture: Picture, seed: int, position: int) -> View | None:
    """How the sample at `position` of the run with `seed` sees its picture."""
    if not is_varied(options):
        return still(options, picture)
    if options.variants == 0:
        return _drawn(options, picture, seed, position)
    return _drawn(options, picture, picture.key, number_at(options, seed, position))


def number_at(options: Data, seed: int, position: int) -> int:
    """Which of the variants the sample at `position` takes."""
    return Random(seed_of("variant", seed, position)).randrange(options.variants)


def variants(options: Data, picture: Picture) -> list[View | None]:
    """The versions of a picture that are cached, in their order: the same for every seed, so that runs share them."""
    if not is_varied(options):
        return [still(options, picture)]
    return [_drawn(options, picture, picture.key, number) for number in range(options.variants)]


def still(options: Data, picture: Picture) -> View | None:
    """How a picture is seen that does not vary, such as one for validation."""
    return None if options.crop != "focus" else _plain_as_none(picture, _placed(picture, 0.0, picture.focus or MIDDLE))


def _drawn(options: Data, picture: Picture, *place: object) -> View | None:
    """A view at random. Each of its parts has draws of its own, so that one option does not change the others'."""
    angle = Random(seed_of("rotation", *place)).uniform(-options.rotation, options.rotation)
    if options.crop == "random":
        view = _placed(picture, angle, None, Random(seed_of("crop", *place)))
    else:
        view = _placed(picture, angle, (picture.focus or MIDDLE) if options.crop == "focus" else MIDDLE)
    if not _is_coloured(options):
        return _plain_as_none(picture, view)

    def factor(name: str, strength: float) -> float:
        return Random(seed_of(name, *place)).uniform(1 - strength, 1 + strength)

    return replace(
        view,
        brightness=factor("brightness", options.brightness),
        contrast=factor("contrast", options.contrast),
        saturation=factor("saturation", options.saturation),
        hue=Random(seed_of("hue", *place)).uniform(-options.hue, options.hue),
    )


def _is_coloured(options: Data) -> bool:
    return any((options.brightness, options.contrast, options.saturation, options.hue))


def _placed(picture: Picture, angle: float, focus: tuple[float, float] | None, draw: Random | None = None) -> View:
    """A crop around `focus`, as far as the picture goes, or drawn from all places. A rotated one needs a margin, for
    which the picture is resized to a larger size."""
    margins = _margins(picture.bucket, angle)
    needed = picture.bucket[0] + 2 * margins[0], picture.bucket[1] + 2 * margins[1]
    resized = placement(picture.width, picture.height, needed)[:2]
    begins = []
    for axis in (1, 0):  # down first: the order of the draws is part of the result
        low, high = margins[axis], resized[axis] - picture.bucket[axis] - margins[axis]
        if draw is not None:
            begins.append(draw.randint(low, high))
        elif focus is None or focus[axis] == MIDDLE[axis]:
            begins.append((resized[axis] - picture.bucket[axis]) // 2)
        else:
            begins.append(min(max(round(focus[axis] * resized[axis] - picture.bucket[axis] / 2), low), high))
    top, left = begins
    return View(resized, top, left, angle)


def _margins(bucket: tuple[int, int], angle: float) -> tuple[int, int]:
    """By how many pixels a rotated crop reaches over an upright one, left and right, above and below."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(abs(angle)))
    wide, high = bucket[0] * cos + bucket[1] * sin, bucket[0] * sin + bucket[1] * cos
    return max(0, math.ceil((wide - bucket[0]) / 2)), max(0, math.ceil((high - bucket[1]) / 2))


def _plain_as_none(picture: Picture, view: View) -> View | None:
    """None for a view that is the plain one: it shares its cached latents."""
    *resized, top, left = placement(picture.width, picture.height, picture.bucket)
    return None if view == View((resized[0], resized[1]), top, left) else view


# -- pixels -----------------------------------------------------------------------------------------------------------


def pixels(image: Image.Image, bucket: tuple[int, int], view: View | None) -> Tensor:
    """An RGB picture as it is seen: `(3, h, w)` float32 in [-1, 1]."""
    if view is None:
        return fit(image, bucket)[0]
    if view.angle:
        seen = _rotated(image, bucket, view)
    else:
        resized = image.resize(view.resized, Image.Resampling.LANCZOS)
        seen = resized.crop((view.left, view.top, view.left + bucket[0], view.top + bucket[1]))
    values = torch.from_numpy(np.array(coloured(seen, view))).permute(2, 0, 1).contiguous()
    return values.float() / 127.5 - 1


def _rotated(image: Image.Image, bucket: tuple[int, int], view: View) -> Image.Image:
    """The crop, read between the pixels of the picture at twice the size. Not with Pillow's bicubic transform: that one
    does not keep even slopes, and it rounds 8 bits down."""
    width, height = (FINER * side for side in bucket)
    resized = image.resize((FINER * view.resized[0], FINER * view.resized[1]), Image.Resampling.LANCZOS)
    cos, sin = math.cos(math.radians(view.angle)), math.sin(math.radians(view.angle))
    x, y = FINER * view.left + width / 2, FINER * view.top + height / 2
    affine = (cos, -sin, x - cos * width / 2 + sin * height / 2, sin, cos, y - sin * width / 2 - cos * height / 2)
    way = Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    planes = [np.asarray(plane.convert("F").transform((width, height), *way)) for plane in resized.split()]
    fine = np.stack(planes, -1).reshape(bucket[1], FINER, bucket[0], FINER, -1)
    return Image.fromarray(fine.mean((1, 3)).round().clip(0, 255).astype(np.uint8))


def coloured(image: Image.Image, view: View) -> Image.Image:
    """With the view's brightness, contrast, saturation and hue, in this order."""
    for kind, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.saturation),
    ):
        image = kind(image).enhance(factor) if factor != 1 else image
    turn = round(256 * view.hue) % 256
    if not turn:
        return image
    hue, *others = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point([(value + turn) % 256 for value in range(256)]), *others)).convert("RGB")


def sizes_at(picture: Picture, view: View | None, flip: bool) -> Tensor:
    """`(6)` float32 as `pictures.sizes_of`, with the view's crop, which in a mirrored picture is at the other side."""
    plain = sizes_of(picture.width, picture.height, picture.bucket)
    if view is None:
        return plain
    left = view.resized[0] - view.left - picture.bucket[0] if flip else view.left
    plain[2:4] = torch.tensor([view.top, left])
    return plain


def key_of(view: View) -> tuple:
    """What the pixels of a view depend on, besides picture and bucket."""
    return astuple(view)


def placing_of(view: View) -> tuple:
    """The part of it that a mask depends on."""
    return view.resized, view.top, view.left, view.angle
