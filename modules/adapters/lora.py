"""LoRA: `W' = W + (alpha / rank) up down`, `up (out, r)`, `down (r, fan_in)` (Hu et al., arXiv 2106.09685, eq. 3)."""

from typing import Literal

from torch import Tensor

from modules.adapters import base, fused
from modules.adapters.layers import Layer
from modules.adapters.low_rank import RawLowRankConfig, low_rank_pair, set_pair


class Config(RawLowRankConfig):
    """Plain LoRA."""

    method: Literal["lora"] = "lora"
    """Low-rank update, the common denominator of all programs."""


class Adapter(base.Adapter):
    """`y = base(x) + factor * up (down(x))`, with the buffer `factor ()` of `low_rank_pair`."""

    pairs = (("up", "down"),)

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.up, self.down, factor = low_rank_pair(config, layer)
        self.factor: Tensor
        self.register_buffer("factor", factor)

    def weight(self, W: Tensor) -> Tensor:
        return W + self.factor.to(W) * (self.up @ self.down)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {} if self.config.step_size == "raw" else {"up": self.factor * self.up}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        up, scale = (derived["up"], 1.0) if "up" in derived else (self.up, self.config.scale)
        if layer.fusible:
            return fused.low_rank(layer, x, up, self.down, scale)
        return layer(x) + layer.expand(layer.project(x, self.down), scale * up)

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up")
        set_pair(self.config, self.up, self.down, terms, self.factor)

    def export_terms(self, W: Tensor) -> base.Terms:
        return base.Terms(up=self.factor * self.up, down=self.down)
