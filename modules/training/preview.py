"""What training sees of a picture at a position, for looking at: the part that is kept, rotation, colours, the mask,
and the pixels themselves, by the functions that a training uses."""

import base64
import io
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from PIL import Image

from modules.data.augment import View, is_varied, number_at, pixels, still, variants, view_at
from modules.data.batches import mask_at
from modules.data.index import Picture
from modules.data.masks import placed, read
from modules.data.opening import content_key, open_picture
from modules.data.pictures import placement


def needs_content(picture: Picture) -> bool:
    """Whether the picture's pixels have to be read to know how it is seen: variants are drawn by them."""
    return is_varied(picture.options) and picture.options.variants > 0


def with_key(picture: Picture) -> Picture:
    """The picture with the hash of its pixels."""
    return replace(picture, key=content_key(open_picture(picture.path)))


def seen_at(picture: Picture, seed: int, position: int, flip: bool, cell: int | None) -> dict[str, Any]:
    """A picture as the sample at `position` sees it. With `cell`, the latents' size in pixels, its pixels too."""
    options = picture.options
    view = view_at(options, picture, seed, position)
    variant = number_at(options, seed, position) if needs_content(picture) else None
    used = picture.mask is not None and mask_at(options, seed, position)
    return {"variant": variant, "masked": used, **_facts(picture, view, flip, used, cell)}


def seen_always(picture: Picture, cell: int | None) -> dict[str, Any]:
    """A picture for validation, which is always seen the same way."""
    used = picture.mask is not None
    view = still(picture.options, picture)
    return {"variant": None, "masked": used, **_facts(picture, view, False, used, cell)}


def all_variants(picture: Picture, cell: int | None) -> list[dict[str, Any]]:
    """Every version of the picture that is cached, not mirrored."""
    views = variants(picture.options, picture)
    return [_facts(picture, view, False, picture.mask is not None, cell) for view in views]


def _facts(picture: Picture, view: View | None, flip: bool, masked: bool, cell: int | None) -> dict[str, Any]:
    """A view in plain values: `crop` as left, top, width and height in the picture's own pixels, which is turned around
    its middle by `angle`."""
    *resized, top, left = placement(picture.width, picture.height, picture.bucket)
    shown = view or View((resized[0], resized[1]), top, left)
    across, down = picture.width / shown.resized[0], picture.height / shown.resized[1]
    colours = {name: value for name, value in asdict(shown).items() if name not in ("resized", "top", "left")}
    width, height = picture.bucket
    facts = {"crop": [shown.left * across, shown.top * down, width * across, height * down], **colours}
    return facts if cell is None else {**facts, **_images(picture, view, flip, masked, cell)}


def _images(picture: Picture, view: View | None, flip: bool, masked: bool, cell: int) -> dict[str, str | None]:
    """The pixels, and the mask on the latents' grid, as PNG files in base64."""
    values = pixels(open_picture(picture.path), picture.bucket, view).permute(1, 2, 0).numpy()
    mask = None
    if masked and picture.mask is not None:
        size = picture.width, picture.height
        mask = placed(read(picture.mask), size, picture.bucket, view, cell)
    return {"pixels": _png((values + 1) * 127.5, flip), "mask": None if mask is None else _png(mask, flip)}


def _png(values: np.ndarray, flip: bool) -> str:
    """`(h, w)` or `(h, w, 3)` from 0 to 255."""
    file = io.BytesIO()
    rounded = values.round().clip(0, 255).astype(np.uint8)
    Image.fromarray(np.ascontiguousarray(rounded[:, ::-1] if flip else rounded)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
