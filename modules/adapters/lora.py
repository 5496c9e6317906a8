"""LoRA: `W' = W + (alpha / rank) up down`, `up (out, r)`, `down (r, fan_in)` (Hu et al., arXiv 2106.09685, eq. 3).

With a nonzero initial pair, its initial product is subtracted: `W' = W + s (up down - up0 down0) = W + s [up - up0,
up0] [down; down - down0]`. Published code subtracts it from the stored base instead (PiSSA: arXiv 2404.02948, eq. 5;
IniLoRA: arXiv 2510.03731), which rounds the base: by up to 12 % of the weight in bfloat16. Here the base is unchanged,
also if it is quantized, and the start and the file are exact: a LoRA of rank 2r. In this form nothing cancels in half
precision, neither while training nor in a file, as it would in `[up, -up0] [down; down0]`.

IniLoRA fits `up down` to W by 20,000 steps of Adam for each layer. Here its fit is the closed form: the best one, which
is PiSSA's pair, balanced and in a random basis, where gradient descent from small random values would end [the basis is
inferred].
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.active_rank import ActiveRankConfig
from modules.adapters.base import GROUP
from modules.adapters.dropout import DropoutConfig, DroppingAdapter
from modules.adapters.input_start import CORDA, InputStartAdapter, InputStartConfig
from modules.adapters.layers import Layer
from modules.adapters.limit import Limited, LimitedConfig, pair_norm
from modules.adapters.low_rank import low_rank_pair, root_mean_square, set_pair, spread
from modules.preset.section import option


class Config(InputStartConfig, DropoutConfig, LimitedConfig, ActiveRankConfig):
    """Plain LoRA."""

    method: Literal["lora"] = "lora"
    """Low-rank update, supported by every program."""

    init: Literal[
        "kaiming", "gaussian", "orthogonal", "svd", "gradient", "eva",
        "pissa", "corda_ipm", "corda_kpm", "inilora", "inilora_alpha", "inilora_beta",
    ] = option("kaiming", why="as in other trainers", group="Start", advanced=True, title="Initial values")
    """Initial values of up and down. With up at zero and down: kaiming: uniform, as in the reference code; gaussian:
    normal with standard deviation 1 / rank, as in peft; orthogonal: orthonormal rows; svd: the largest right singular
    vectors of the weight; gradient: the directions in which the loss of some training pictures falls fastest, measured
    before the first step; eva: the principal components of the layer's inputs in these pictures, and more of them in
    layers where they explain more. With both nonzero and their initial product subtracted: pissa: the largest singular
    values of the weight; corda_ipm and corda_kpm: the largest, for the new task, or the smallest, to keep what the base
    knows, of the weight times the covariance of its inputs; inilora: a fit to the weight; inilora_alpha: normal random
    values; inilora_beta: Kaiming random values. These six double the rank in training and in files, and are not
    decayed."""

    max_norm: float | None = option(
        None, why="updates are not limited", group=GROUP, advanced=True, gt=0,
        needs="!.init kaiming|gaussian|orthogonal|svd|gradient|eva",
    )
    """Largest Frobenius norm of a layer's update, alpha / rank included. A larger update is scaled down after each
    step, up and down alike, as kohya's scale_weight_norms does. null: no limit."""


def principal_pair(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`up (out, k)`, `down (k, fan_in)`, of the same size, whose product is the best of rank k for `W (out, fan_in)`;
    k as in `linalg.leading` (PiSSA, arXiv 2404.02948, eq. 3-4)."""
    left, values, right = linalg.leading(W, rank)
    return left * values.sqrt(), values.sqrt().unsqueeze(1) * right


def fitted_pair(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same in a random basis."""
    up, down = principal_pair(W, rank)
    basis = torch.linalg.qr(torch.randn(len(down), len(down), dtype=torch.float64)).Q.to(up)
    return up @ basis, basis.mT @ down


def normal_pair(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Normal with standard deviation 0.5 (IniLoRA's alpha, in its code)."""
    return 0.5 * torch.randn(W.shape[0], rank), 0.5 * torch.randn(rank, W.shape[1])


def kaiming_pair(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Kaiming-normal (IniLoRA's beta, in its code)."""
    up, down = torch.empty(W.shape[0], rank), torch.empty(rank, W.shape[1])
    return nn.init.kaiming_normal_(up), nn.init.kaiming_normal_(down)


PAIRS: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {
    "pissa": principal_pair,
    "inilora": fitted_pair,
    "inilora_alpha": normal_pair,
    "inilora_beta": kaiming_pair,
}
"""By `init`: the nonzero initial pairs, from `W (out, fan_in)` and the rank."""


class Adapter(DroppingAdapter, InputStartAdapter, Limited):
    """`y = base(x) + factor * up (down(x))`, with the buffer `factor ()` of `low_rank_pair`; `first_up` and
    `first_down`: buffers with the initial pair, if it is nonzero."""

    pairs = (("up", "down"),)

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        subtracts = config.init in PAIRS or config.init in CORDA
        self.up, self.down, factor = low_rank_pair(config, layer, parts=2 if subtracts else 1)
        self.factor: Tensor
        self.first_up: Tensor | None
        self.first_down: Tensor | None
        self.register_buffer("factor", factor)
        if config.init in PAIRS:
            self._begin_with(*PAIRS[config.init](layer.dense(), config.rank))
        if subtracts:  # the subtracted product is constant, so a pair that decays would remove it from the base
            self.undecayed = ("up", "down")
        self.register_buffer("first_up", self.up.detach().clone() if subtracts else None)
        self.register_buffer("first_down", self.down.detach().clone() if subtracts else None)

    @torch.no_grad()
    def begin_with_pair(self, up: Tensor, down: Tensor) -> None:
        self._begin_with(up, down)
        assert self.first_up is not None and self.first_down is not None
        self.first_up.copy_(self.up)
        self.first_down.copy_(self.down)

    def _begin_with(self, up: Tensor, down: Tensor) -> None:
        """Components that the pair does not have are unchanged; so is everything with a pair of no components."""
        count = len(down)
        if count == 0:
            return
        if self.config.step_size == "calibrated":  # its product may have any size: it is subtracted
            size = spread(self.config.rank)
            up, down = size / root_mean_square(up) * up, size / root_mean_square(down) * down
        elif self.config.init in ("pissa", *CORDA):  # as in peft: the product times the scale is a part of W
            up, down = up / math.sqrt(self.config.scale), down / math.sqrt(self.config.scale)
        with torch.no_grad():
            self.up[:, :count] = up.to(self.up)
            self.down[:count] = down.to(self.down)

    def pair(self) -> tuple[Tensor, Tensor]:
        """`up`, `down` whose product, times `factor`, is the update."""
        if self.first_up is None or self.first_down is None:
            return self.components()
        moved = torch.cat([self.up - self.first_up, self.first_up], 1)
        return moved, torch.cat([self.down, self.down - self.first_down])

    def weight(self, W: Tensor) -> Tensor:
        up, down = self.pair()
        return W + self.factor.to(W) * (up @ down)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        if self.first_up is not None:
            up, down = self.pair()
            return {"up": self.factor * up, "down": down}
        return {} if self.config.step_size == "raw" else {"up": self.factor * self.up}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        up, scale = (derived["up"], 1.0) if "up" in derived else (self.up, self.config.scale)
        down = derived.get("down", self.down)
        return self.branch(x, layer, up, down, scale)

    def limited(self) -> tuple[Tensor, list[nn.Parameter]]:
        return self.factor * pair_norm(self.up, self.down), [self.up, self.down]

    def gradient_pair(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        return (self.up, self.down) if self.config.init == "gradient" else None

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up")
        set_pair(self.config, self.up, self.down, terms, self.factor)
        if self.first_up is not None and self.first_down is not None:  # nothing to subtract then
            self.first_up.zero_()
            self.first_down.zero_()

    def export_terms(self, W: Tensor) -> base.Terms:
        up, down = self.pair()
        return base.Terms(up=self.factor * up, down=down)
