"""SBoRA: a LoRA with one projection frozen to unit vectors (arXiv 2407.05413). `side` input is their SBoRA-FA, `W' = W
+ c up E^T`: r random columns of W are trained. `side` output is SBoRA-FB, `W' = W + c E down`: r random rows are
trained.

Convolutions, which the paper does not have: a column is one kernel position of one channel [inferred].
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, fused
from modules.adapters.layers import Layer
from modules.adapters.low_rank import RankConfig
from modules.preset.section import option


class Config(RankConfig):
    """SBoRA: trains a few columns or rows of each weight."""

    method: Literal["sbora"] = "sbora"
    """Trains a few columns or rows of each weight, with half of LoRA's parameters."""

    side: Literal["input", "output"] = option("input", why="the better one in the publication's tables")
    """input: `rank` columns of each weight are trained (SBoRA-FA). output: `rank` rows (SBoRA-FB)."""


class Adapter(base.Adapter):
    """Parameter `change`, zero at the start: `(out, r)` for columns, `(r, fan_in)` for rows. Buffers: `places (r)`,
    which columns or rows, and `factor ()` on the change."""

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.columns = config.side == "input"
        width = layer.fan_in if self.columns else layer.out_features
        rank = min(config.rank, width)
        shape = (layer.out_features, rank) if self.columns else (rank, layer.fan_in)
        self.change = nn.Parameter(torch.zeros(shape))
        factor = layer.rms() * math.sqrt(width / rank) if config.step_size == "calibrated" else config.scale
        self.places: Tensor
        self.factor: Tensor
        self.register_buffer("places", torch.randperm(width)[:rank].sort()[0])
        self.register_buffer("factor", torch.tensor(factor))

    def pair(self, width: int) -> tuple[Tensor, Tensor]:
        """`up (out, r)`, `down (r, fan_in)`, with the unit vectors as a matrix; `width` is their size."""
        change = self.factor * self.change
        units = torch.zeros(len(self.places), width, dtype=change.dtype, device=change.device)
        units = units.scatter(1, self.places.unsqueeze(1), 1.0)
        return (change, units) if self.columns else (units.mT, change)

    def weight(self, W: Tensor) -> Tensor:
        return W.index_add(1 if self.columns else 0, self.places, (self.factor * self.change).to(W))

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {"change": self.factor * self.change}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        change = derived["change"]
        if not self.columns:
            features = 1 if layer.kind == "conv" else -1
            return layer(x).index_add_(features, self.places, layer.project(x, change))
        if layer.kind == "linear":  # no product with the unit vectors, and only r inputs are kept for the backward pass
            return layer(x) + layer.expand(x.index_select(-1, self.places), change)
        units = self.pair(layer.fan_in)[1]
        if layer.fusible:
            return fused.low_rank(layer, x, change, units)
        return layer(x) + layer.expand(layer.project(x, units), change)

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up")
        if terms.up is None or terms.down is None:
            return
        one, across, words = (terms.down, 0, "columns") if self.columns else (terms.up, 1, "rows")
        touched = (one != 0).any(across).nonzero().flatten().to(self.places.device)
        rank = len(self.places)
        if len(touched) > rank:
            raise ValueError(f"the file changes {len(touched)} {words} of the weight, but the run {rank}; set "
                             "adapter.rank and adapter.side as they were, or choose the method it was trained with")
        others = self.places[~torch.isin(self.places, touched)]
        difference = terms.up @ terms.down
        with torch.no_grad():
            self.places.copy_(torch.cat([touched, others])[:rank])
            self.change.copy_(difference.index_select(1 - across, self.places) / self.factor)

    def export_terms(self, W: Tensor) -> base.Terms:
        up, down = self.pair(W.shape[1 if self.columns else 0])
        return base.Terms(up=up, down=down)
