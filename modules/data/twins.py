"""Pictures that look the same: another size or format of one picture, or a slight crop of it.

A picture's signature is the mean colours of 8 x 8 tiles. Two pictures look the same if these hardly differ and their
brightness varies alike. Such pairs are searched with locality-sensitive hashing: pictures are sorted by the sides of
random planes on which their brightness lies, several times, and each is compared with a few that follow it. So the time
grows with the number of pictures, and hardly with that of pairs.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

TILES = 8
"""A side."""

LEAST_ALIKE = 0.95
"""Correlation of the tiles' brightness. Another size or format has 0.99, a crop by 4 % of each side about 0.96."""

MOST_COLOUR = 10.0
"""Mean difference of tiles' colours, in levels of 255."""

FLAT = 2.0
"""Standard deviation, in levels, below which brightness says nothing: then the colours have to agree as closely."""

TABLES, PLANES, NEIGHBOURS = 24, 16, 4
"""Sortings, planes in each, and how many of the following pictures each is compared with. Of pairs with a correlation
of 0.95, more than 99 % share the sides of all planes at least once."""

SLICE = 4096
"""Pictures whose brightness is computed at once."""

BYTES = 3 * TILES**2


def signature(picture: Image.Image) -> bytes:
    """`BYTES` bytes of an RGB picture."""
    factor = max(1, min(picture.size) // (8 * TILES))
    reduced = picture.reduce(factor) if factor > 1 else picture  # several times as fast
    return reduced.resize((TILES, TILES), Image.Resampling.BOX).tobytes()


def pairs(signatures: Sequence[bytes], keys: Sequence[str]) -> list[tuple[int, int]]:
    """The places of pictures that look the same: of each that resembles an earlier one, the closest of those and its
    own. Pictures with the same key have the same content, and are no such pair."""
    if len(signatures) < 2:
        return []
    colours = np.frombuffer(b"".join(signatures), dtype=np.uint8).reshape(-1, TILES**2, 3)
    bright, is_flat = _brightness(colours)
    contents = np.unique(np.asarray(keys), return_inverse=True)[1]
    draw, centre = np.random.default_rng(0), bright.mean(axis=0)
    best = np.zeros((0, 3))
    for _ in range(TABLES):
        planes = draw.standard_normal((TILES**2, PLANES + 1), dtype=np.float32)
        sides = (bright - centre) @ planes
        bucket = (sides[:, :PLANES] > 0).astype(np.float32) @ (2.0 ** np.arange(PLANES)).astype(np.float32)
        order = np.lexsort((sides[:, PLANES], bucket))
        found = [best]
        for step in range(1, NEIGHBOURS + 1):
            left, right = order[:-step], order[step:]
            near = (bucket[left] == bucket[right]) & (contents[left] != contents[right])
            found.append(_alike(left[near], right[near], colours, bright, is_flat))
        best = _closest(np.concatenate(found))
    return [(int(first), int(second)) for second, _, first in best]


def _brightness(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(n, tiles)` float32: each picture's brightness with mean 0 and norm 1; and `(n)`, whether it is flat."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    # In slices: all colours as floats would take four times as much memory as they do.
    bright = np.concatenate([colours[start : start + SLICE] @ weights for start in range(0, len(colours), SLICE)])
    bright -= bright.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(bright, axis=1, keepdims=True)
    is_flat = norms[:, 0] < FLAT * TILES
    return np.where(is_flat[:, None], 0, bright / np.maximum(norms, 1e-6)), is_flat


def _alike(
    left: np.ndarray, right: np.ndarray, colours: np.ndarray, bright: np.ndarray, is_flat: np.ndarray
) -> np.ndarray:
    """`(n, 3)`: the later place, the difference and the earlier place, of those that look the same."""
    alike = (bright[left] * bright[right]).sum(axis=1)
    fits = np.where(is_flat[left], is_flat[right], alike >= LEAST_ALIKE)
    left, right, alike = left[fits], right[fits], alike[fits]
    apart = np.abs(colours[left].astype(np.int16) - colours[right]).mean(axis=(1, 2))
    fits = apart <= np.where(is_flat[left], FLAT, MOST_COLOUR)
    left, right, apart = left[fits], right[fits], apart[fits] - alike[fits]
    return np.stack([np.maximum(left, right), apart, np.minimum(left, right)], axis=1)


def _closest(found: np.ndarray) -> np.ndarray:
    """Of each later place only the closest earlier one, in order."""
    found = found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]
    return found[np.unique(found[:, 0], return_index=True)[1]]
