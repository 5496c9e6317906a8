"""NEAT, now PEANuT: `W' = W + c up f(... f(mixing^T W))`, a small network of the base weight itself (arXiv 2410.01870;
deeper ones as in peft). `f` is relu. The last map is linear, so that the change is a LoRA of rank r whose down
projection follows from W: it is computed once a step, with a product of W and r columns, and files have the plain LoRA.

Convolutions, which the paper does not have, are treated as `W (out, fan_in)` [inferred].
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.active_rank import ActiveRankConfig
from modules.adapters.dropout import DropoutConfig, DroppingAdapter
from modules.adapters.layers import Layer
from modules.adapters.low_rank import root_mean_square
from modules.adapters.products import frozen_cols
from modules.preset.section import option


class Config(DropoutConfig, ActiveRankConfig):
    """NEAT: a LoRA whose down projection is computed from the base weight."""

    method: Literal["neat"] = "neat"
    """A small network computes the update from the base weight."""

    rank: int = option(16, why="as many parameters as a LoRA of rank 16", ge=1, le=4096)
    """Width of the network and rank of the update."""

    depth: int = option(0, why="the smallest network, as in peft", ge=0, le=16, advanced=True)
    """Additional layers of the network on each side of its middle, with skip connections."""


SLOWER = 3
"""Calibrated, a step of lr moves each tensor of the network by lr over this, and over their number: all of them
together multiply `up`."""


class Adapter(DroppingAdapter, base.Together):
    """Parameters `mixing (out, r)`, `up (out, r)`, zero at the start, and depth times `(r, r)` in `encoders` and in
    `decoders`. Buffers: `unit ()` on mixing, `inner_unit ()` on encoders and decoders, `factor ()` on up; with raw
    steps all 1. Calibrated, all but `up` step by lr over `SLOWER (1 + 2 depth)`, so that all together step as LoRA's
    down does; the network is the same as published."""

    moves_zero = False

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        norms = layer.row_norms()
        if not norms.is_meta and not norms.any():
            raise ValueError(f"{layer.name}: its weight is zero, and {config.method} computes its update from the "
                             "weight; exclude it")
        rank, out, calibrated = config.rank, layer.out_features, config.step_size == "calibrated"
        tensors = SLOWER * (1 + 2 * config.depth)
        unit, inner_unit = (torch.tensor(1 / math.sqrt(3 * n) / tensors if calibrated else 1.0) for n in (out, rank))
        self.mixing = nn.Parameter(_drawn(rank, out).mT.contiguous() / unit)
        self.encoders, self.decoders = (
            nn.ParameterList([_drawn(rank, rank) / inner_unit for _ in range(config.depth)]) for _ in range(2)
        )
        self.up = nn.Parameter(torch.zeros(out, rank))
        self.unit: Tensor
        self.inner_unit: Tensor
        self.factor: Tensor
        self.register_buffer("unit", unit)
        self.register_buffer("inner_unit", inner_unit)
        self.register_buffer("factor", torch.tensor(1.0))
        if calibrated:
            down = self.down(layer.dense()).detach()
            self.factor = layer.rms() / math.sqrt(rank) / (root_mean_square(down) * linalg.rows_stretch(down)).float()

    def down(self, W: Tensor) -> Tensor:
        """`(r, fan_in)`: the output of the network for W."""
        encoders, decoders = ([one.to(W) for one in self.scaled(own)] for own in (self.encoders, self.decoders))
        return _network((self.unit * self.mixing).to(W).mT @ W, encoders, decoders)

    def scaled(self, inner: nn.ParameterList) -> list[Tensor]:
        """Encoders or decoders, scaled as in the network."""
        return [self.inner_unit * one for one in inner]

    def weight(self, W: Tensor) -> Tensor:
        return W + (self.factor * self.up).to(W) @ self.down(W)

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        adapters, layers = zip(*pairs, strict=True)
        mixing = torch.stack([adapter.unit * adapter.mixing for adapter in adapters])
        encoders = [torch.stack(same) for same in zip(*(a.scaled(a.encoders) for a in adapters), strict=True)]
        decoders = [torch.stack(same) for same in zip(*(a.scaled(a.decoders) for a in adapters), strict=True)]
        down = _network(frozen_cols(mixing, layers), encoders, decoders)
        return base.rows_of(up=torch.stack([a.factor * a.up for a in adapters]), down=down)

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return self.branch(x, layer, derived["up"], derived["down"])

    def export_terms(self, W: Tensor) -> base.Terms:
        return base.Terms(up=self.factor * self.up, down=self.down(W))


def _drawn(rows: int, columns: int) -> Tensor:
    """Kaiming-uniform with a = sqrt(5): a root mean square of about `1 / sqrt(3 columns)`."""
    return nn.init.kaiming_uniform_(torch.empty(rows, columns), a=math.sqrt(5))


def _network(h: Tensor, encoders: Sequence[Tensor], decoders: Sequence[Tensor]) -> Tensor:
    """Of `h (..., r, fan_in)`, column by column: `f`, the encoders, then the decoders, each with the input of its
    encoder added. `(..., r, r)` each."""
    h = h.relu()
    kept = []
    for encoder in encoders:
        kept.append(h)
        h = (encoder @ h).relu()
    for decoder in decoders:
        h = (decoder @ h).relu() + kept.pop()
    return h
