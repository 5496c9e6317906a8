"""The order of the pictures. Every batch is a pure function of (seed, step, micro), so that a resumed run, and a run on
another number of processes, uses the same pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from modules.adapters.base import seed_of
from modules.data.augment import View, sizes_at, view_at
from modules.data.captions import caption_for
from modules.data.epochs import Epochs
from modules.data.index import Index, Picture, by_shape
from modules.families.base import Caption, about
from modules.preset.data_options import Data

KEPT_EPOCHS = 4
"""Orders of epochs kept in memory; a step needs one or two of them."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process. All pictures have the same bucket, and references of the same sizes."""

    pictures: tuple[Picture, ...]
    positions: tuple[int, ...]
    """The samples' indices in the whole run over all processes; noise and timesteps follow from them."""
    flips: tuple[bool, ...]
    captions: tuple[Caption, ...]
    """As used for these samples, after trigger, shuffling and dropping; those of pictures with references are about
    these."""
    views: tuple[View | None, ...]
    """How the pictures are seen."""
    masked: tuple[bool, ...]
    """Whether their masks are used, of those that have one."""

    @property
    def sizes(self) -> Tensor:
        """`(pictures, 6)` float32, see `pictures.sizes_of`."""
        seen = zip(self.pictures, self.views, self.flips, strict=True)
        return torch.stack([sizes_at(picture, view, flip) for picture, view, flip in seen])


class Batches:
    """All batches of a run, for process `rank` of `processes`.

    A global batch has `batch_size * processes` pictures of one shape, of which the processes take consecutive
    slices. An epoch has every picture `repeats` times (see `epochs`) in a new order; the last batch of a bucket is
    filled up with further pictures of that bucket. A step takes `accumulation` consecutive global batches, across
    epochs too.
    """

    def __init__(self, index: Index, batch_size: int, accumulation: int, processes: int, rank: int, seed: int):
        assert index.pictures and 0 <= rank < processes
        self.seed = seed
        self.batch_size, self.accumulation, self.processes, self.rank = batch_size, accumulation, processes, rank
        self.total = batch_size * processes
        self.groups = [pictures for _, pictures in sorted(by_shape(index.pictures).items())]
        self.epochs = Epochs(self.groups, self.total, seed)
        self._orders: dict[int, list[list[Picture]]] = {}

    def steps(self, epochs: int) -> int:
        """Steps of so many epochs, of which each begins with a step of its own."""
        if self.epochs.is_even:
            return epochs * -(-self.epochs.batches(0) // self.accumulation)
        return sum(-(-self.epochs.batches(epoch) // self.accumulation) for epoch in range(epochs))

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every picture has been shown `repeats` times, in the first epoch; the last one may reach into
        the next epoch."""
        return self.steps(1)

    def epoch(self, step: int) -> float:
        """How many epochs have been shown before `step`."""
        epoch, place = self.epochs.place(step * self.accumulation)
        return epoch + place / self.epochs.batches(epoch)

    def at(self, step: int, micro: int) -> Batch:
        """The batch of this process in micro-step `micro` of `step`, both from 0."""
        assert step >= 0 and 0 <= micro < self.accumulation
        number = step * self.accumulation + micro
        epoch, place = self.epochs.place(number)
        first = self.rank * self.batch_size
        pictures = tuple(self._order(epoch)[place][first : first + self.batch_size])
        positions = tuple(range(number * self.total + first, number * self.total + first + self.batch_size))
        samples = list(zip(pictures, positions, strict=True))
        return Batch(
            pictures=pictures,
            positions=positions,
            flips=tuple(flip_at(one.options, self.seed, position) for one, position in samples),
            captions=tuple(about(caption_for(one.options, one.caption, self.seed, position), one.references)
                           for one, position in samples),
            views=tuple(view_at(one.options, one, self.seed, position) for one, position in samples),
            masked=tuple(mask_at(one.options, self.seed, position) for one, position in samples),
        )

    def together(self, batch: Batch) -> list[Picture]:
        """The pictures that all processes have at the time of a batch of this one."""
        epoch, place = self.epochs.place(batch.positions[0] // self.total)
        return self._order(epoch)[place]

    def captions(self, steps: int, start: int = 0) -> Iterator[Caption]:
        """All captions that this process uses from step `start` up to but without step `steps`, with repetitions."""
        for step in range(start, steps):
            for micro in range(self.accumulation):
                yield from self.at(step, micro).captions

    def _order(self, epoch: int) -> list[list[Picture]]:
        """The global batches of an epoch."""
        if epoch not in self._orders:
            while len(self._orders) >= KEPT_EPOCHS:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = epoch_order(self.epochs, self.groups, self.total, self.seed, epoch)
        return self._orders[epoch]


def epoch_order(
    epochs: Epochs, groups: Sequence[Sequence[Picture]], total: int, seed: int, epoch: int
) -> list[list[Picture]]:
    """The batches of `total` pictures of an epoch, in the order they are used; each from one of `groups`."""
    draw = Random(seed_of("order", seed, epoch))
    batches = []
    for group, times in zip(groups, epochs.times(epoch), strict=True):
        shown = _shuffled(
            [picture for picture, many in zip(group, times, strict=True) for _ in range(many)], draw
        )
        while len(shown) % total:
            last = shown[len(shown) - len(shown) % total :]
            further = sorted(_shuffled(group, draw), key=last.__contains__)  # those that are not in it yet come first
            shown += further[: -len(shown) % total]
        batches += [shown[at : at + total] for at in range(0, len(shown), total)]
    return _shuffled(batches, draw)


def flip_at(options: Data, seed: int, position: int) -> bool:
    """Whether the sample at `position` is mirrored: a pure function."""
    return options.flip and Random(seed_of("flip", seed, position)).random() < 0.5


def mask_at(options: Data, seed: int, position: int) -> bool:
    """Whether the sample at `position` uses its picture's mask, if it has one: a pure function."""
    chance = options.unmasked_probability
    return not chance or Random(seed_of("mask", seed, position)).random() >= chance


def _shuffled(items: Sequence, draw: Random) -> list:
    return draw.sample(items, len(items))
