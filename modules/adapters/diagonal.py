"""A low-rank update and scaled outputs: `M = diag(d) W + c up down` with `d = exp(l)`, one per output feature.

No norm is taken. As `diag(1/d) M = W + diag(1/d) c up down` is a low-rank update, files represent it exactly, as a
magnitude `d ||diag(1/d) M||` along the output.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.active_rank import ActiveRankAdapter
from modules.adapters.layers import Layer
from modules.adapters.low_rank import LowRankConfig, low_rank_pair, set_pair


class Diagonal(ActiveRankAdapter, base.Together):
    """Parameters `up (out, r)`, `down (r, fan_in)`, `magnitude (out)`: the log-ratio l in units of the buffer
    `unit ()`. The buffer `factor ()` is that of `low_rank_pair`; `parts` as there.

    A logarithm, so that d is positive: at 0 a file with a magnitude could not represent the layer.
    """

    undecayed = ("magnitude",)
    pairs = (("up", "down"),)

    def __init__(self, config: LowRankConfig, layer: Layer, parts: int):
        super().__init__(config, layer)
        self.up, self.down, factor = low_rank_pair(config, layer, parts)
        self.magnitude = nn.Parameter(torch.zeros(layer.out_features))
        self.factor: Tensor
        self.unit: Tensor
        self.register_buffer("factor", factor)
        self.register_buffer("unit", torch.tensor(1 / math.sqrt(parts) if config.step_size == "calibrated" else 1.0))

    def log_ratio(self) -> Tensor:
        """`l`."""
        return self.unit * self.magnitude

    def scaled(self, W: Tensor) -> Tensor:
        """`M`."""
        return self.log_ratio().exp().to(W).unsqueeze(1) * W + self.factor.to(W) * (self.up @ self.down)

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        excess, up, down = derived["excess"], derived["up"], derived.get("down", self.down)
        return self.masked(x, layer, up, down, 1.0, None, excess)

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up", "magnitude")
        if terms.magnitude is None:
            set_pair(self.config, self.up, self.down, terms, self.factor)
            return
        if terms.axis == "input":
            raise ValueError("the file has a magnitude along the input, but the run has one along the output")
        W = layer.dense()
        V = W if terms.up is None or terms.down is None else W + (terms.up @ terms.down).to(W)
        norm = linalg.axis_norm(V, "output", self.kernel)
        gain = torch.where(norm > 0, terms.magnitude.to(W) / norm, 1.0)
        if (gain <= 0).any():
            raise ValueError("the file has magnitudes that are not positive, which this method cannot represent")
        if terms.up is not None:
            terms = replace(terms, up=gain.to(terms.up).unsqueeze(1) * terms.up)
        set_pair(self.config, self.up, self.down, terms, self.factor)
        with torch.no_grad():
            self.magnitude.copy_(gain.log() / self.unit)

    def scaled_terms(self, W: Tensor, up: Tensor, down: Tensor) -> base.Terms:
        """`diag(d) W + up down` as terms."""
        gain = self.log_ratio().exp().to(W)
        up = up / gain.unsqueeze(1)
        wanted = gain * linalg.axis_norm(W + up @ down, "output", self.kernel)
        return base.Terms(up=up, down=down, magnitude=wanted, axis="output")

    def curves(self) -> dict[str, Tensor]:
        return {"magnitude": self.log_ratio().detach().abs().mean()}
