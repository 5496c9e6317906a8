"""Buckets: the few sizes that training pictures are resized and cropped to, so that a batch has one size."""

import math
from collections.abc import Sequence
from functools import cache

GUESSED_STEP = 8
"""Bucket step for looking at pictures when the model is not known."""


@cache
@cache  # asked for every picture of a set
def buckets(resolution: int, step: int, max_aspect: float, enabled: bool) -> tuple[tuple[int, int], ...]:
    """The sizes (width, height) in pixels, multiples of `step`, from narrow to wide.

    The square of `resolution` (rounded to a multiple of `step`) is always there; the others have at most its area
    and at most `max_aspect` between their sides. Not `enabled`: the square only. Raises ValueError if no picture of
    that resolution fits the step.
    """
    if resolution < step:
        raise ValueError(f"data.resolution {resolution} is too small for this model; give at least {step}")
    side = math.floor(resolution / step + 0.5) * step
    sizes = {(side, side)}
    long = side + step
    while enabled and (short := side * side // long // step * step) > 0:
        if long / short <= max_aspect:
            sizes |= {(long, short), (short, long)}
        long += step
    return tuple(sorted(sizes, key=lambda size: (size[0] / size[1], size)))


def nearest(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose shape is nearest to the picture's, by the ratio of aspect ratios; of equals, the largest."""
    aspect = math.log(width / height)
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1], size))
