"""From a picture file to its pixels. Imports no torch: the workers of `looking.py` start in a moment."""

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from modules.data.colours import is_described, to_srgb
from modules.data.formats import FIRST_IS_THE_PICTURE, allowed
from modules.data.names import broken_link, looked_at, shown

# What Pillow's parsers raise for broken files.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, MemoryError, RuntimeError),
    *(struct.error, zlib.error),
)

MOST_PIXELS = 400_000_000
"""A larger picture is refused: decoded, this one takes 1.6 GB. Files of a few kilobytes can claim to be larger."""

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limits, which it prints about, are lower

LARGE = 64_000_000
"""Pixels from which on pictures are decoded one at a time: of smaller ones as many as there are workers."""

STRIP = 256
"""Rows of a picture that are hashed at once."""


class _Unusable(ValueError):
    """An intact picture that cannot be trained on; the message says why and what to do."""


class TooLarge:
    """Instead of a picture with more pixels than were asked for."""


def open_picture(path: Path) -> Image.Image:
    """The picture in `path`: RGB in sRGB, EXIF rotation applied, transparent parts on white, completely decoded.

    Raises ValueError, naming the file, when it is damaged, not a picture or an animation.
    """
    with _opened(path) as file:
        return _decoded(file)[0]


def open_with_note(path: Path, most: int = 0) -> tuple[Image.Image, str] | TooLarge:
    """As `open_picture`, and what is to be noted of pictures like it, mostly nothing, "". With `most`, a picture of
    more pixels is not decoded."""
    with _opened(path) as file:
        return TooLarge() if most and file.width * file.height > most else _decoded(file)


def open_mask(path: Path, alpha: bool) -> Image.Image | None:
    """The mask in `path` in shades of grey ("L"), EXIF rotation applied; if `alpha`, the transparency of the picture
    there, None if it has none. Colour profiles do not count. Raises ValueError like `open_picture`."""
    with _opened(path) as file:
        picture = ImageOps.exif_transpose(file)
        if alpha:
            return picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
        return _in_eight_bits(picture).convert("L")


def _decoded(file: Image.Image) -> tuple[Image.Image, str]:
    file.load()
    ImageOps.exif_transpose(file, in_place=True)
    return _on_white(file)


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
    if height <= STRIP:
        total.update(picture.tobytes())
        return total.hexdigest()
    for top in range(0, height, STRIP):  # not at once: of a large picture there would be three copies in memory
        total.update(picture.crop((0, top, width, min(height, top + STRIP))).tobytes())
    return total.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture file with its header read. Raises ValueError, naming the file, for what is wrong with it, also while
    it is used."""
    try:
        if isinstance(there := looked_at(path), os.stat_result) and not stat.S_ISREG(there.st_mode):
            # Opening a pipe would block.
            raise _Unusable("it is not a regular file; replace it with a picture")
        with Image.open(path, formats=_allowed(path)) as file:
            if file.width * file.height > MOST_PIXELS:
                size = f"{file.width:,} x {file.height:,} = {file.width * file.height:,} pixels"
                raise _Unusable(f"it has {size}, more than {MOST_PIXELS:,}; make it smaller")
            frames = getattr(file, "n_frames", 1)
            if frames > 1 and file.format not in FIRST_IS_THE_PICTURE:
                raise _Unusable(f"it has {frames} frames; save one of them as a picture")
            if file.format == "JXL" and not vars(file).get("jpeg"):
                file.info.pop("exif", None)  # its standard: pixels are decoded as they are to be shown
            yield file
    except BROKEN as error:
        raise ValueError(f"{shown(path)}: {_reason(path, error)}, or remove it") from error


def _allowed(path: Path) -> tuple[str, ...]:
    try:
        return allowed(path)
    except ValueError as error:
        raise _Unusable(str(error)) from error


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


def _on_white(picture: Image.Image) -> tuple[Image.Image, str]:
    """Any mode to RGB in sRGB, transparent parts on white; and a note."""
    picture = _in_eight_bits(picture)
    if not picture.has_transparency_data:
        return to_srgb(picture)
    note, over = "", picture.convert("RGBA")
    if is_described(picture):
        alpha = over.getchannel("A")
        opaque = over.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")
        opaque.info = {name: value for name, value in picture.info.items() if name != "transparency"}
        over, note = to_srgb(opaque)
        over.putalpha(alpha)
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, over).convert("RGB"), note


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits per channel: convert() would clip 16 bits to the lowest 8 instead of scaling."""
    if _is_deep(picture):
        values = np.asarray(picture).astype(np.float64) / 257
        scaled = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
        scaled.info = picture.info
        return scaled
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
        return "its content is not a PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF picture; convert it"
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        if why := broken_link(path):
            return f"it {why}; restore that"
        return f"the file cannot be read ({error.strerror}); check that it is there, and its permissions"
    if isinstance(error, MemoryError):
        return "there is too little memory to decode it; make it smaller"
    return f"the picture is damaged ({shown(str(error))}); save it again"
