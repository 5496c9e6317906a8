"""The conditions of captions while a training runs, with frozen text encoders.

Captions that are used again and again are encoded before the first step and cached on disk. Those that change from use
to use (shuffled, dropped in part, drawn at random) are encoded in groups: for as many coming steps as
`data.encode_ahead` says, before the first of them. Meanwhile the denoiser is in main memory, so that it is never on the
device together with the text encoders. A group's conditions are kept in main memory, and dropped when the next one
begins: nearly none of them will be used again, and on disk they would only add up.

Every caption is encoded by itself, see `data.cache`. So neither the size of a group nor the step at which one begins (a
resumed run begins one where it resumes) changes the conditions, to the last bit.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from modules import quant
from modules.adapters.base import Adapter
from modules.data.batches import Batches
from modules.data.cache import MEMORY_BYTES, TextCache
from modules.families.base import Caption, Texts, together
from modules.training import sharding

MOST_OFTEN = 1000
"""Changed captions that are kept on disk, at most. T5's conditions of one take 4 MiB."""

TOGETHER = (
    "captions that change from step to step are encoded beside the denoiser, because a sharded base cannot leave the "
    "device: both have to fit"
)
"""A note."""


class TextGroups:
    """Conditions by caption: from the cache, where the `kept` captions are, or from the group of coming steps."""

    def __init__(
        self,
        cache: TextCache,
        batches: Batches,
        kept: Collection[Caption],
        ahead: int,
        alone: Callable[[str], AbstractContextManager[None]],
    ):
        self.cache, self.batches, self.kept, self.ahead = cache, batches, kept, ahead
        self.alone = alone
        """Text encoders may be on the device inside of it. It is given what is encoded, in words."""
        self.steps = range(0)
        """Of the group."""
        self.held: dict[Caption, Texts] = {}
        self.memory = MEMORY_BYTES
        """Bytes after which a group takes no further steps."""

    def reach(self, step: int, steps: int) -> None:
        """Begin a group at `step` if it is not in one; it ends at step `steps` at the latest. Call it between two
        steps: the denoiser may be moved."""
        if step in self.steps:
            return
        self.held, last = {}, min(step + self.ahead, steps)
        users: dict[Caption, int] = {}
        for coming in range(step, last):
            for caption in self.batches.captions(coming + 1, coming):
                users.setdefault(caption, coming)
        missing = {caption: coming for caption, coming in users.items() if not self._is_cached(caption)}
        if missing:
            with self.alone(f"captions of steps {step + 1} to {last}"):
                last = self._encode(missing, step, last)
        self.steps = range(step, last)

    def get(self, captions: Sequence[Caption]) -> Texts:
        """The captions' features on the CPU, as those of one batch."""
        return together([self._get(caption) for caption in captions])

    def _is_cached(self, caption: Caption) -> bool:
        return caption in self.kept or self.cache.find(caption) is not None

    def _encode(self, missing: Mapping[Caption, int], first: int, last: int) -> int:
        """Encode captions, by the step that uses them first. Returns the end of the group: where memory is full."""
        size = 0
        for caption, coming in missing.items():
            if size > self.memory and coming > first:
                return coming
            self.held[caption] = self.cache.encode(caption)
            size += sum(tensor.nbytes for tensor in self.held[caption].values())
        return last

    def _get(self, caption: Caption) -> Texts:
        found = self.held.get(caption)
        found = self.cache.find(caption) if found is None else found
        if found is not None:
            return found
        with self.alone("a caption whose cache file is missing or damaged"):
            return self.cache.get([caption])


def changes(captions: Iterable[Caption], usual: Collection[Caption]) -> bool:
    """Whether any of the captions is not one of the `usual` ones."""
    return any(caption not in usual for caption in captions)


def lasting(batches: Batches, steps: int, ahead: int, usual: Collection[Caption]) -> set[Caption]:
    """The captions of the first `steps` steps that are worth a place on disk: the `usual` ones, that pictures have
    whenever nothing is changed, and of those that several groups of `ahead` steps need the most frequent ones."""
    found, often = set[Caption](), Counter[Caption]()
    groups: dict[int, int] = {}  # by hash: there may be millions of captions that are used once
    for step in range(steps):
        for caption in batches.captions(step + 1, step):
            group, key = step // ahead, hash(caption)
            if caption in usual:
                found.add(caption)
            elif groups.setdefault(key, group) != group:
                groups[key] = group
                often[caption] += 1
    return found | {caption for caption, _ in often.most_common(MOST_OFTEN)}


@contextmanager
def apart(model: Any) -> Iterator[None]:
    """Inside, the denoiser is off the device; after it the encoders are. Adapters stay on the device: the optimizer
    and the gradients refer to their tensors. So does a sharded denoiser, whose weights FSDP holds."""
    with denoiser_off(model):
        try:
            yield
        finally:
            model.release_encoders(texts=True)


@contextmanager
def denoiser_off(model: Any) -> Iterator[None]:
    """The same without the encoders."""
    parts = [] if sharding.is_wanted() else [*frozen_parts(next(iter(model.networks.values())))]
    move(parts, torch.device("cpu"))
    try:
        yield
    finally:
        move(parts, model.device)


def frozen_parts(network: nn.Module) -> Iterator[nn.Module]:
    """All modules of a network but its adapters."""
    if isinstance(network, Adapter):
        return
    yield network
    for child in network.children():
        yield from frozen_parts(child)


def move(parts: Iterable[nn.Module], device: torch.device) -> None:
    """Move the modules' own weights, and give the memory that they leave back."""
    for part in parts:
        quant.move_own(part, device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
