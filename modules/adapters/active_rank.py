"""T-LoRA: at a high noise level only the first components of a low-rank update are active (Soboleva et al.,
arXiv 2507.05964; `get_mask_by_timestep` in the authors' code, ControlGenAI/T-LoRA).

Of rank r there are `floor((1 - t)^power (r - least)) + least` at a noise level t, from 0, the picture, to 1, pure
noise. The mask acts on the values between down and up, once for each repetition of the r components (a link of a chain,
a subtracted start), and on nothing else: magnitudes, their norms and rotations are those of the whole update, so that
files are those of the plain method. The kept components are not scaled, as there. A weight that has to be formed (a
decomposed one near beta = 0) has all components.

The authors' pipelines mask in sampling too, with the same function. No program that loads files does, so here files,
samples and validation have the whole rank, and show what the file will do.

Methods have it whose update is a sum of r components, of which each prefix is a smaller update of the same kind. Not
those where a component is not one of r (products, square matrices, single columns), and not one that drops components
by importance: those that are seldom active would be the first to go.
"""

from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor

from modules.adapters import base, fused
from modules.adapters.base import AdapterConfig
from modules.adapters.layers import Layer
from modules.preset.section import option

GROUP = "Noise level"


class ActiveRankConfig(AdapterConfig):
    """Options of methods whose active rank may depend on the noise level."""

    min_rank: int | None = option(
        None, why="the whole rank is trained at all noise levels", group=GROUP, advanced=True, ge=1
    )
    """T-LoRA: rank that is active in training steps at pure noise, where a training on few pictures overfits first. It
    grows to the whole rank without noise. Files, samples and validation have the whole rank."""

    min_rank_power: float = option(
        1.0, why="as published: the active rank is linear in the noise level", group=GROUP, advanced=True, gt=0, le=10,
        needs=".min_rank",
    )
    """Exponent of T-LoRA's active rank. Above 1 fewer components are active at middle noise levels."""

    @model_validator(mode="after")
    def _some_rank_is_inactive(self) -> "ActiveRankConfig":
        rank = dict(self).get("rank")
        if self.min_rank is not None and rank is not None and self.min_rank >= rank:
            raise ValueError(f"min_rank {self.min_rank} is not below rank {rank}, so that the whole rank is always "
                             "active: lower it, or set it to null")
        return self


class ActiveRankAdapter(base.Adapter):
    """An adapter whose forward pass masks components of its rank."""

    active: Tensor | None = None
    """`(n, r)`: 1 for the active components of each sample of the present micro-batch, 0 for the others. None: all."""

    def masked(
        self, x: Any, layer: Layer, up: Tensor, down: Tensor, scale: float = 1.0,
        excess_in: Tensor | None = None, excess_out: Tensor | None = None,
    ) -> Tensor:
        """`(1 + excess_out) base(x (1 + excess_in)) + scale * up (active down(x))` with the layer's bias, as it is;
        `up (out, q)`, `down (q, fan_in)`, `excess_in (channels)`, `excess_out (out)`."""
        if layer.fusible:
            return fused.low_rank(layer, x, up, down, scale, excess_in, excess_out, self.of_rows(x, len(down)))
        y = layer(x if excess_in is None else layer.scale_in(x, excess_in))
        y = y if excess_out is None else layer.scale_out(y, excess_out)
        return y + layer.expand(self.projected(x, layer, down), scale * up)

    def projected(self, x: Any, layer: Layer, down: Tensor) -> Tensor:
        """`active down(x)`."""
        h, active = layer.project(x, down), self.of_rows(x, len(down))
        return h if active is None else h * fused.by_row(active, h, fused.features_of(layer))

    def of_rows(self, x: Tensor, width: int) -> Tensor | None:
        """`active` for `width` values between down and up, where the rows of `x` are the samples. None: all are
        active; so they are in layers that join samples, which have no noise level of their own."""
        if self.active is None or x.dim() < 2 or len(x) != len(self.active):
            return None
        return self.repeated(self.active, width)

    def repeated(self, active: Tensor, width: int) -> Tensor:
        """`active (n, r)` for all `width` values, `(n, width)`."""
        return active if width == active.shape[1] else active.repeat(1, width // active.shape[1])


def mask(levels: Tensor, rank: int, least: int, power: float) -> Tensor:
    """`(n, rank)` float32 of samples at noise `levels (n)` float64 in [0, 1]."""
    least = min(least, rank)
    count = ((1 - levels).clamp(0, 1) ** power * (rank - least)).floor() + least
    return (torch.arange(rank) < count.unsqueeze(1)).float()
