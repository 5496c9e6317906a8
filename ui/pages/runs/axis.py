"""An axis whose logarithmic labels can be read: neither on top of each other, nor missing in a narrow range."""

from itertools import pairwise
from math import ceil, floor, inf, isfinite, log10
from typing import Any

import pyqtgraph as pg
from PySide6.QtGui import QFontMetricsF

DIGITS = (tuple(range(1, 10)), (1, 2, 5), (1, 3), (1,))
"""Digits that are labelled in each decade; fewer where there is less room."""

NARROW = 0.7
"""Below so many decades the labels are round numbers at even distances."""


class Axis(pg.AxisItem):
    """An axis at the left."""

    def __init__(self) -> None:
        super().__init__("left")

    def tickValues(self, minVal: float, maxVal: float, size: float) -> list[Any]:
        """pyqtgraph: where there are labels; of a logarithmic axis the places are logarithms."""
        low, high = sorted((minVal, maxVal))
        if not self.logMode or not isfinite(low) or not isfinite(high) or low == high:
            return super().tickValues(minVal, maxVal, size)
        height = QFontMetricsF(self.font()).height()
        return [(None, marks(low, high, int(size / (1.6 * height))))]

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        """pyqtgraph: the labels."""
        return [f"{10**value:.4g}" for value in values] if self.logMode else super().tickStrings(values, scale, spacing)


def marks(low: float, high: float, room: int) -> list[float]:
    """Logarithms of round numbers between two logarithms, where about `room` labels have room."""
    if high - low < NARROW:
        return _even(10**low, 10**high, max(2, round(room / (1 + (high - low) / NARROW))))
    for digits in DIGITS:
        places = [decade + log10(digit) for decade in range(floor(low), ceil(high) + 1) for digit in digits]
        places = [place for place in places if low <= place <= high]
        nearest = min((after - before for before, after in pairwise(places)), default=inf)
        if nearest * room >= high - low:
            return places
    return places[:: ceil((high - low) / max(1, room))]


def _even(low: float, high: float, most: int) -> list[float]:
    """Logarithms of at most so many multiples of one, two or five."""
    least = (high - low) / most
    decade = 10 ** floor(log10(least))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= least)
    return [log10(number * step) for number in range(ceil(low / step), floor(high / step) + 1)]
