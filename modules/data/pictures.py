"""From a picture file to pixels in a bucket's size."""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from modules.data.names import shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of picture files, in lower case."""

# Pillow recognises files by content; without this list a PostScript file called .png would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

# What Pillow's parsers raise for broken files.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


STRIP = 256
"""Rows of a picture that are hashed at once."""


class _Unusable(ValueError):
    """An intact picture that cannot be trained on; the message says why and what to do."""


def open_picture(path: Path) -> Image.Image:
    """The picture in `path`: RGB, EXIF rotation applied, transparent parts on white, completely decoded.

    Raises ValueError, naming the file, when it is damaged, not a picture or an animation.
    """
    with _opened(path) as file:
        return _on_white(ImageOps.exif_transpose(file))


def open_mask(path: Path, alpha: bool) -> Image.Image | None:
    """The mask in `path` in shades of grey ("L"), EXIF rotation applied; if `alpha`, the transparency of the picture
    there, None if it has none. Raises ValueError like `open_picture`."""
    with _opened(path) as file:
        picture = ImageOps.exif_transpose(file)
        if alpha:
            return picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
        return _in_eight_bits(picture).convert("L")


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of what `open_picture` gives, from the file's header where possible.

    Raises ValueError like `open_picture`, except for damaged pixels.
    """
    with _opened(path) as file:
        _refuse_unknown_range(file)
        # A TIFF's size may already be rotated. A PNG may have the rotation behind its pixels, where Pillow's own
        # `getexif` looks for it by decoding them all.
        if file.format == "TIFF" or (file.format == "PNG" and _has_more_behind_pixels(path)):
            return ImageOps.exif_transpose(file).size
        turned = Image.Image.getexif(file).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (file.height, file.width) if turned else file.size


def content_key(picture: Image.Image) -> str:
    """sha256 of size and pixels of an RGB picture, hex: the same for every file name and format."""
    width, height = picture.size
    total = hashlib.sha256(struct.pack("<II", width, height))
    for top in range(0, height, STRIP):  # not at once: of a large picture there would be three copies in memory
        total.update(picture.crop((0, top, width, min(height, top + STRIP))).tobytes())
    return total.hexdigest()


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


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture file with its header read. Raises ValueError, naming the file, for what is wrong with it, also while
    it is used."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise _Unusable("it is not a regular file; replace it with a picture")
        with Image.open(path, formats=FORMATS) as file:
            frames = getattr(file, "n_frames", 1)
            # A camera's multi-picture JPEG holds the picture itself first and previews after it.
            if frames > 1 and file.format != "MPO":
                raise _Unusable(f"it has {frames} frames; save one of them as a picture")
            yield file
    except BROKEN as error:
        raise ValueError(f"{shown(path)}: {_reason(path, error)}, or remove it from the folder") from error


def _has_more_behind_pixels(path: Path) -> bool:
    """Whether a PNG file does not end after its pixels: chunks follow them, or the end is missing."""
    names: list[bytes] = []
    with path.open("rb", buffering=0) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            names.append(name)
            file.seek(length + 4, 1)
    rest = list(dropwhile(lambda name: name != b"IDAT", names))
    return set(rest[:-1]) != {b"IDAT"} or rest[-1] != b"IEND"


def _on_white(picture: Image.Image) -> Image.Image:
    """Any mode to RGB, transparent parts on white."""
    picture = _in_eight_bits(picture)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits per channel: convert() would clip 16 bits to the lowest 8 instead of scaling."""
    if _is_deep(picture):
        values = np.asarray(picture).astype(np.float64) / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    _refuse_unknown_range(picture)
    return picture


def _is_deep(picture: Image.Image) -> bool:
    """Whether the picture has 16 bits per channel."""
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", None))


def _refuse_unknown_range(picture: Image.Image) -> None:
    if picture.mode in ("I", "F") and not _is_deep(picture):
        raise _Unusable("it has 32 bits per channel without a known range; save it with 8 or 16 bits")


def _reason(path: Path, error: BaseException) -> str:
    """What is wrong with a file, and the first half of what to do."""
    if isinstance(error, Image.UnidentifiedImageError):
        if path.stat().st_size == 0:
            return "the file is empty; save the picture again"
        return "its content is not a PNG, JPEG, WebP, BMP, GIF or TIFF picture; convert it"
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller"
    if isinstance(error, OSError) and error.errno:
        return f"the file cannot be read ({error.strerror}); check that it is there, and its permissions"
    return f"the picture is damaged ({shown(str(error))}); save it again"
