"""Colours as they were meant: a picture's embedded profile (ICC), or a PNG file's gamma, applied, so that its values
are those of sRGB."""

import io
from functools import lru_cache
from typing import cast

import numpy as np
from PIL import Image, ImageCms

DAMAGED = "pictures whose colour profile is damaged or of another kind of picture are read as sRGB"
"""The note on such pictures."""

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Pillow's mode of the values that a profile of each colour space describes."""

ROUNDING = 2
"""Levels of 255. Profiles of sRGB, which most pictures have, differ by no more from sRGB itself; they are not applied,
since that would only round."""

SRGB_GAMMA = (0.45, 0.46)
"""A PNG file's gamma of 1/2.2 means sRGB."""


def to_srgb(picture: Image.Image) -> tuple[Image.Image, str]:
    """A picture without transparency as RGB in sRGB; and a note, "" unless its profile cannot be used."""
    if picture.mode == "LAB":  # says by itself which colours are meant
        return picture.convert("RGB"), ""
    try:
        transform = _transform_of(picture)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return as_rgb(picture), DAMAGED
    if transform is not None:
        converted = ImageCms.applyTransform(picture.convert(transform.input_mode), transform)
        assert converted is not None  # it would be None if done in place
        return converted, ""
    curve = _curve(picture)
    return (as_rgb(picture).point(curve * 3), "") if curve else (as_rgb(picture), "")


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture as RGB; itself if it is: a large one takes much memory."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def is_described(picture: Image.Image) -> bool:
    """Whether a picture comes with a profile or a gamma."""
    return "icc_profile" in picture.info or bool(_curve(picture))


def _transform_of(picture: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """From the picture's colours to sRGB; None if they are. Raises one of several errors for an unusable profile."""
    if "icc_profile" not in picture.info:
        return None
    profile = picture.info["icc_profile"]
    if not profile:  # a PNG file's, which cannot be decompressed
        raise ValueError("no profile")
    transform = _transform(profile)
    kind = "CMYK" if picture.mode == "CMYK" else "L" if picture.mode in ("1", "L", "LA") else "RGB"
    wanted = transform.input_mode if transform is not None else "RGB"
    if kind != wanted and (kind, wanted) != ("L", "RGB"):
        raise ValueError(f"a profile of {wanted} values in a picture of {kind}")
    return transform


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; None if they are the same."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = cast(ImageCms.core.CmsProfile, opened.profile).xcolor_space.strip()  # pyright: ignore
    if space not in MODES:
        raise ValueError(f"a profile of {space}")
    mode = MODES[space]
    transform = ImageCms.buildTransform(
        *(opened, ImageCms.createProfile("sRGB"), mode, "RGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,  # white stays white
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode not in ("L", "RGB"):
        return transform
    colours = _all_colours() if mode == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None
    moved = np.abs(np.asarray(converted).astype(int) - np.asarray(colours.convert("RGB"))).max()
    return transform if moved > ROUNDING else None


def _all_colours() -> Image.Image:
    """Colours of the whole cube, in steps."""
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(cube.reshape(17, -1, 3))


def _curve(picture: Image.Image) -> list[int]:
    """sRGB's value for each value of a PNG file that has only a gamma; empty where that is sRGB's."""
    info = picture.info
    gamma = info.get("gamma", SRGB_GAMMA[0])
    if "icc_profile" in info or "srgb" in info or SRGB_GAMMA[0] <= gamma <= SRGB_GAMMA[1] or not 0.1 < gamma < 10:
        return []
    light = (np.arange(256) / 255) ** (1 / gamma)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    return (255 * values).round().astype(int).tolist()
