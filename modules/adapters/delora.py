"""DeLoRA: `W' = W + (b/r) sum_i (u_i d_i^T - u0_i d0_i^T) diag(w)`, u_i and d_i the columns of `up` and the rows of
`down` divided by their norms, w the column norms of W, b a learned bound (arXiv 2503.18225, where b is lambda): `||(W'
- W) diag(1/w)|| <= 2 b`, for any `up` and `down`.

u0 and d0 are the frozen initial values. They are copies: in the authors' code they share the trained tensors' memory,
so that the update stays zero until the model is moved or cast. peft leaves them out and starts with `up = 0`, which has
no direction: the first step gives every component its full norm b / r, at any learning rate.

Inferred, since the paper has linear layers only: in a convolution d_i runs over all kernel positions, and w is per
input channel.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.active_rank import ActiveRankConfig
from modules.adapters.dropout import DropoutConfig, DroppingAdapter
from modules.adapters.layers import Layer
from modules.adapters.low_rank import root_mean_square
from modules.preset.section import option

SHORTEST = 1e-4
"""Shorter columns and rows are divided by this instead of their norm, as in peft."""

SLOWER = 3.0
"""Calibrated, a step of lr changes the bound by lr over this: it multiplies `up` and `down`."""


class Config(DropoutConfig, ActiveRankConfig):
    """DeLoRA: a low-rank update of bounded norm."""

    method: Literal["delora"] = "delora"
    """Low-rank update whose norm is bounded and learned separately from its direction."""

    rank: int = option(16, why="enough for a style or a subject", ge=1, le=4096)
    """Rank of the update. With form original the file has twice this rank."""

    bound: float = option(15.0, why="peft's value; the authors use 4 to 15", gt=0, le=1000)
    """Initial value of the learned bound (lambda in the paper) on the norm of the update, relative to input channels of
    norm 1. With form original the bound is twice this value."""

    form: Literal["original", "peft"] = option(
        "original", why="the update grows gradually from zero; with peft it has full size after one step", advanced=True
    )
    """original: a frozen copy of the initial factors is subtracted, so that training starts at the base model. peft: up
    starts at zero and the first step has full size at any learning rate; files have half the rank."""

    @model_validator(mode="after")
    def _steps_can_be_calibrated(self) -> "Config":
        if self.form == "peft" and self.step_size == "calibrated":
            raise ValueError("form peft cannot be calibrated, since its first step has full size at any learning rate: "
                             "set step_size raw, or form original")
        return self


class Adapter(DroppingAdapter, base.Together):
    """Parameters `up (out, r)`, `down (r, fan_in)` and `strength ()`, b in units of the buffer `unit ()`; buffers
    `up_start` and `down_start`, with form peft empty.

    Only the directions of `up` and `down` matter, so that their norm sets how far a step of lr rotates them:
    calibrated, by as much as changes the weight by lr. Decay of `up` and `down` would only make steps larger; decay of
    `strength` shrinks `W' - W`, as it should.
    """

    undecayed = ("up", "down")
    moves_zero = False

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        up, down = torch.zeros(layer.out_features, config.rank), torch.empty(config.rank, layer.fan_in)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        if config.form == "original":
            nn.init.kaiming_uniform_(up, a=math.sqrt(5))
        calibrated = config.step_size == "calibrated"
        if calibrated:  # a rotation of up, or down, by one radian changes the weight by bound / sqrt(rank channels)
            size = config.bound * math.sqrt(2 / (config.rank * layer.channels))
            size = size * linalg.rows_stretch(up.mT) * linalg.rows_stretch(down)
            up, down = (size / root_mean_square(t) * t for t in (up, down))
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)
        self.strength = nn.Parameter(torch.tensor(SLOWER if calibrated else config.bound))
        self.up_start: Tensor
        self.down_start: Tensor
        self.unit: Tensor
        kept = config.rank if config.form == "original" else 0
        self.register_buffer("up_start", up[:, :kept].clone())
        self.register_buffer("down_start", down[:kept].clone())
        self.register_buffer("unit", torch.tensor(config.bound / SLOWER if calibrated else 1.0))

    def weight(self, W: Tensor) -> Tensor:
        up, down = self.factors(W)
        return W + (up @ down).to(W)

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """`up` and `down` of which `W' - W` is the product."""
        up, down = pair(self.up, self.down, self.up_start, self.down_start)
        norms = linalg.axis_norm(W, "input", self.kernel).to(down)
        return self.length() * up, linalg.scale_axis(down, norms, "input", self.kernel)

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        adapters = [adapter for adapter, _ in pairs]
        up, down = pair(
            torch.stack([one.up for one in adapters]),
            torch.stack([one.down for one in adapters]),
            torch.stack([one.up_start for one in adapters]),
            torch.stack([one.down_start for one in adapters]),
        )
        strength = torch.stack([one.length() for one in adapters]).view(-1, 1, 1)
        norms = torch.stack([layer.col_norms() for _, layer in pairs]).to(down)
        return base.rows_of(up=strength * up, down=linalg.scale_axis(down, norms, "input", adapters[0].kernel))

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return self.branch(x, layer, derived["up"], derived["down"])

    def length(self) -> Tensor:
        """`b / r`, that of each component."""
        return self.unit * self.strength / self.config.rank

    def export_terms(self, W: Tensor) -> base.Terms:
        up, down = self.factors(W)
        return base.Terms(up=up, down=down)

    def curves(self) -> dict[str, Tensor]:
        return {"bound": (self.unit * self.strength).detach()}


def pair(up: Tensor, down: Tensor, up_start: Tensor, down_start: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of `sum_i u_i d_i^T - u0_i d0_i^T`, `(..., out, q)` and `(..., q, fan_in)`.

    As `(u - u0) d^T + u0 (d - d0)^T`: exactly zero at the start, and nothing cancels in half precision.
    """
    up, up_start = (t / t.norm(dim=-2, keepdim=True).clamp_min(SHORTEST) for t in (up, up_start))
    down, down_start = (t / t.norm(dim=-1, keepdim=True).clamp_min(SHORTEST) for t in (down, down_start))
    if up_start.shape[-1] == 0:
        return up, down
    return torch.cat([up - up_start, up_start], -1), torch.cat([down, down - down_start], -2)
