"""How often each epoch shows each picture. With whole repeats all epochs are alike. A part of a repeat is a share of
the pictures, other ones in each epoch, so that in the long run all of them are shown equally often. All of it is a pure
function of (seed, epoch)."""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from random import Random

from modules.adapters.base import seed_of
from modules.data.folders import exact
from modules.data.index import Picture

Place = tuple[int, int]
"""A group, and a picture in it."""


class Epochs:
    """The epochs of `groups` of pictures, each shown in global batches of `total`."""

    def __init__(self, groups: Sequence[Sequence[Picture]], total: int, seed: int):
        self.total, self.seed = total, seed
        self.whole = [[int(exact(picture.repeats)) for picture in group] for group in groups]
        self.parts: dict[tuple[int, int, Fraction], list[Place]] = defaultdict(list)
        """Pictures of one folder at one resolution that have the same part of a repeat: "half of the pictures" means
        half of these."""
        for number, group in enumerate(groups):
            for place, picture in enumerate(group):
                if part := exact(picture.repeats) % 1:
                    self.parts[picture.entry, picture.options.resolution, part].append((number, place))
        self._first = self.batches(0)
        self._starts = [0, self._first]
        """Global batches before each epoch, as far as they were needed."""

    @property
    def is_even(self) -> bool:
        """Whether all epochs show the same."""
        return not self.parts

    def times(self, epoch: int) -> list[list[int]]:
        """How often an epoch shows each picture of each group."""
        if self.is_even:
            return self.whole
        times = [list(group) for group in self.whole]
        for key, places in self.parts.items():
            for group, place in self._share(key, places, epoch):
                times[group][place] += 1
        return times

    def _share(self, key: tuple[int, int, Fraction], places: list[Place], epoch: int) -> list[Place]:
        """An epoch's share of pictures: the next ones of all, over and over, each time in a new order."""
        entry, resolution, part = key
        first, last = (math.ceil(number * part * len(places)) for number in (epoch, epoch + 1))
        cycle, at = divmod(first, len(places))
        turns: list[Place] = []
        while len(turns) < at + last - first:
            draw = Random(seed_of("share", self.seed, entry, resolution, str(part), cycle))
            turns += draw.sample(places, len(places))
            cycle += 1
        return turns[at : at + last - first]

    def batches(self, epoch: int) -> int:
        """Global batches in an epoch."""
        if self.is_even and epoch:
            return self._first
        return sum(-(-sum(group) // self.total) for group in self.times(epoch))

    def place(self, number: int) -> tuple[int, int]:
        """The epoch of the global batch `number`, and the batch's place in it."""
        if self.is_even:
            return divmod(number, self._first)
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + self.batches(len(self._starts) - 1))
        epoch = bisect_right(self._starts, number) - 1
        return epoch, number - self._starts[epoch]
