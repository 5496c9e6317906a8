"""LoRA: `W' = W + (alpha / rank) up down`, `up (out, r)`, `down (r, fan_in)` (Hu et al., arXiv 2106.09685, eq. 3)."""

from typing import Literal

from torch import Tensor

from modules.adapters import base, fused
from modules.adapters.layers import Layer
from modules.adapters.low_rank import LowRankConfig, low_rank_pair, set_pair


class Config(LowRankConfig):
    """Plain LoRA."""

    method: Literal["lora"] = "lora"
    """Low-rank update, the common denominator of all programs."""


class Adapter(base.Adapter):
    """`y = base(x) + up (scale * down(x))`."""

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.scale = config.scale
        self.up, self.down = low_rank_pair(config.rank, layer)

    def weight(self, W: Tensor) -> Tensor:
        return W + self.scale * (self.up @ self.down)

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        if layer.fusible:
            return fused.low_rank(layer, x, self.up, self.down, self.scale)
        return layer(x) + layer.expand(layer.project(x, self.down), self.scale * self.up)

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up")
        set_pair(self.up, self.down, terms, self.scale)

    def export_terms(self, W: Tensor) -> base.Terms:
        return base.Terms(up=self.scale * self.up, down=self.down)
