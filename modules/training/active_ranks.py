"""Sets which components of the adapters are active in each micro-batch; see `modules.adapters.active_rank` (T-LoRA)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modules.adapters.active_rank import ActiveRankAdapter, ActiveRankConfig, mask
from modules.adapters.base import Adapted
from modules.preset.schema import Preset


def problems(preset: Preset, model: Any) -> list[str]:
    """Why it does not work with this model, in sentences."""
    adapter, size = preset.adapter, preset.training.batch_size
    if not isinstance(adapter, ActiveRankConfig) or adapter.min_rank is None or size == 1 or not model.one_by_one:
        return []
    return [f"adapter.min_rank: needs training.batch_size 1 with this model, which computes the samples of a batch one "
            f"after the other, but it is {size}: set it to 1 and training.accumulation {size}, which is as fast"]


Kind = tuple[int, int, float]
"""Rank, smallest active rank and exponent of a layer."""


def kind_of(config: Any) -> Kind | None:
    """None where the whole rank is always active."""
    if not isinstance(config, ActiveRankConfig) or config.min_rank is None:
        return None
    return dict(config)["rank"], config.min_rank, config.min_rank_power


class ActiveRanks:
    """The denoiser's adapters whose active rank depends on the noise level; none costs nothing. Those of text encoders
    know no noise level.

    The masks are persistent tensors, which are overwritten: new ones would make torch.compile recompile.
    """

    def __init__(self, adapted: Mapping[str, Adapted], denoiser: str, count: int):
        """`adapted`: layers by full name; `denoiser`: the name of that network; `count`: its timesteps."""
        self.count = count
        self.adapters: list[tuple[ActiveRankAdapter, Kind]] = [
            (layer.adapter, kind) for name, layer in adapted.items()
            if name.startswith(f"{denoiser}.") and isinstance(layer.adapter, ActiveRankAdapter)
            and (kind := kind_of(layer.adapter.config)) is not None
        ]
        self.masks: dict[Any, Tensor] = {}

    @contextmanager
    def at(self, times: Tensor, device: torch.device) -> Iterator[None]:
        """Mask in forward and backward passes inside, of samples at `times (n)` as the process has them."""
        if not self.adapters:
            yield
            return
        levels = times.double() / self.count
        found = {kind: self._set((*kind, len(times)), mask(levels, *kind), device)
                 for kind in {kind for _, kind in self.adapters}}
        try:
            for adapter, kind in self.adapters:
                adapter.active = found[kind]
            yield
        finally:
            for adapter, _ in self.adapters:
                adapter.active = None

    def _set(self, key: Any, values: Tensor, device: torch.device) -> Tensor:
        if key not in self.masks:
            self.masks[key] = torch.empty_like(values, device=device)
        return self.masks[key].copy_(values)
