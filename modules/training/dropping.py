"""Sets what the adapters drop in each micro-batch of a training step; see `modules.adapters.dropout`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from modules.adapters.base import Adapted, Adapter, seed_of
from modules.adapters.dropout import Drop, DropoutConfig, DroppingAdapter, InputDropoutConfig
from modules.preset.schema import Preset


def problems(preset: Preset) -> list[str]:
    """What does not work together with dropout or with a largest norm, in sentences."""
    found, adapter = [], preset.adapter
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
        self.layers: list[tuple[str, Adapter, bool]] = [
            (name, layer.adapter, name.startswith(f"{denoiser}."))
            for name, layer in adapted.items()
            if layer.adapter.config.drops
        ]
        self.rank = max([_rank(adapter) for _, adapter, _ in self.layers], default=0)

    @contextmanager
    def at(self, step: int, positions: Sequence[int], device: torch.device) -> Iterator[None]:
        """Drop in forward and backward passes inside, of samples with these positions in step `step`."""
        if not self.layers:
            yield
            return
        of_step = ("step", step)
        drawn = [self._factors(position) for position in positions]
        each, (shared, shared_whole) = torch.stack([factors for factors, _ in drawn]).to(device), self._factors(of_step)
        shared, wholes = shared.to(device), list(zip(*(whole for _, whole in drawn), strict=True))
        try:
            for number, (name, adapter, by_sample) in enumerate(self.layers):
                rank = _rank(adapter)
                seeds = [seed_of("dropout", self.seed, position, name) for position in positions if by_sample]
                adapter.drop = Drop(
                    adapter.config, _inside(adapter), tuple(seeds), seed_of("dropout", self.seed, of_step, name),
                    each[:, number, :rank], shared[number, :rank], wholes[number], shared_whole[number],
                )
            yield
        finally:
            for _, adapter, _ in self.layers:
                adapter.drop = None

    def _factors(self, position: int | tuple[str, int]) -> tuple[Tensor, list[bool]]:
        """`(layers, r)` float32: 0 for dropped components; those kept are divided by their probability. And whether
        each layer has its adapter."""
        generator = torch.Generator().manual_seed(seed_of("rank dropout", self.seed, position))
        drawn = torch.rand(len(self.layers), 1 + self.rank, generator=generator)
        configs = [adapter.config for _, adapter, _ in self.layers]
        rates = [config.rank_dropout if isinstance(config, DropoutConfig) else 0.0 for config in configs]
        rate = torch.tensor(rates).unsqueeze(1)
        whole = drawn[:, :1] >= torch.tensor([config.module_dropout for config in configs]).unsqueeze(1)
        return (drawn[:, 1:] >= rate) / (1 - rate) * whole, whole.flatten().tolist()


def _rank(adapter: Adapter) -> int:
    """How many components of an adapter can be dropped."""
    return adapter.config.rank if isinstance(adapter, DroppingAdapter) else 0


def _inside(adapter: Adapter) -> bool:
    """Whether the adapter's own forward pass drops; others can only be left out."""
    config = adapter.config
    return isinstance(adapter, DroppingAdapter) or (isinstance(config, InputDropoutConfig) and config.dropout > 0)
