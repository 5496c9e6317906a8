"""Sets what the adapters drop in each micro-batch of a training step; see `modules.adapters.dropout`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from modules.adapters.base import Adapted, seed_of
from modules.adapters.dropout import Drop, DropoutConfig, DroppingAdapter
from modules.preset.schema import Preset


def problems(preset: Preset) -> list[str]:
    """What does not work together with dropout or with a largest norm, in sentences."""
    found, adapter = [], preset.adapter
    if not isinstance(adapter, DropoutConfig):
        return []
    if adapter.drops and preset.training.compile:
        found.append("training.compile: does not work with adapter.dropout, rank_dropout or module_dropout, whose "
                     "draws are new in each step: turn it off, or set these to 0")
    if adapter.limits_norm and preset.optimizer.averages:
        found.append(f"optimizer.name is {preset.optimizer.name}, which averages the weights of all steps, but "
                     "adapter.max_norm scales them after each step: choose another optimizer, or set adapter.max_norm "
                     "to null")
    return found


class Dropping:
    """The adapters that drop something; none costs nothing."""

    def __init__(self, adapted: Mapping[str, Adapted], denoiser: str, seed: int):
        """`adapted`: layers by full name; `denoiser`: the name of the network whose layers may see samples as rows."""
        self.seed = seed
        self.layers: list[tuple[str, DroppingAdapter, bool]] = [
            (name, layer.adapter, name.startswith(f"{denoiser}."))
            for name, layer in adapted.items()
            if isinstance(layer.adapter, DroppingAdapter) and layer.adapter.config.drops
        ]
        self.rank = max([adapter.config.rank for _, adapter, _ in self.layers], default=0)

    @contextmanager
    def at(self, step: int, positions: Sequence[int], device: torch.device) -> Iterator[None]:
        """Drop in forward and backward passes inside, of samples with these positions in step `step`."""
        if not self.layers:
            yield
            return
        of_step = ("step", step)
        each = torch.stack([self._factors(position) for position in positions]).to(device)
        shared = self._factors(of_step).to(device)
        try:
            for number, (name, adapter, by_sample) in enumerate(self.layers):
                rank = adapter.config.rank
                seeds = [seed_of("dropout", self.seed, position, name) for position in positions if by_sample]
                adapter.drop = Drop(
                    adapter.config, tuple(seeds), seed_of("dropout", self.seed, of_step, name),
                    each[:, number, :rank], shared[number, :rank],
                )
            yield
        finally:
            for _, adapter, _ in self.layers:
                adapter.drop = None

    def _factors(self, position: int | tuple[str, int]) -> Tensor:
        """`(layers, r)` float32: 0 for dropped components; those kept are divided by their probability."""
        generator = torch.Generator().manual_seed(seed_of("rank dropout", self.seed, position))
        drawn = torch.rand(len(self.layers), 1 + self.rank, generator=generator)
        configs = [adapter.config for _, adapter, _ in self.layers]
        rate = torch.tensor([config.rank_dropout for config in configs]).unsqueeze(1)
        alone = torch.tensor([config.module_dropout for config in configs]).unsqueeze(1)
        return (drawn[:, 1:] >= rate) / (1 - rate) * (drawn[:, :1] >= alone)
