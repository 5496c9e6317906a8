"""ABBA: `W' = W + c (up1 down1) * (up2 down2)`, the elementwise product of two low-rank matrices (arXiv 2505.14238).
The first starts as the best low-rank approximation of W, the second as zero; all four factors are trained.

The product is itself one of rank r1 r2, with factors that are products as well (Khatri-Rao).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, fused, linalg
from modules.adapters.layers import Layer
from modules.adapters.low_rank import RankConfig, root_mean_square
from modules.preset.section import option

SPARE, ROUNDS = 8, 4
"""Extra directions and iterations of the subspace iteration, which only gives initial values: it may be inexact."""


class Config(RankConfig):
    """ABBA: the elementwise product of two low-rank matrices."""

    method: Literal["abba"] = "abba"
    """Elementwise product of two low-rank matrices: a high rank from few parameters."""

    rank: int = option(8, why="as many parameters as a LoRA of rank 16, for an update of rank 64", ge=1, le=256)
    """Rank of the first matrix. Lowered to a layer's width where that is smaller."""

    second_rank: int | None = option(None, ge=1, le=256, advanced=True)
    """Rank of the second matrix. The file is a LoRA of rank rank * second_rank. null: the same as rank."""

    alpha: float | None = option(None, gt=0, advanced=True, needs="!.step_size raw")
    """Factor on the product, with raw steps only. null: 32, as published."""


SLOWER = 5.0
"""Calibrated, the root mean square of all but `second_up`: a step of lr moves each by lr over this."""


class Adapter(base.Together):
    """Parameters `first_up (out, r1)`, `first_down (r1, fan_in)`, `second_up (out, r2)`, `second_down (r2, fan_in)`,
    buffer `factor ()`. Only `second_up` is zero at the start; calibrated, the three others then step together as
    LoRA's down does."""

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        W = layer.dense()
        rank = min(config.rank, *W.shape)
        second_rank = config.second_rank or config.rank
        first_up, first_down = _leading_factors(W, rank)
        second_down = torch.empty(second_rank, layer.fan_in)
        second_down = nn.init.kaiming_uniform_(second_down).to(W)
        factor = torch.tensor(32.0 if config.alpha is None else config.alpha)
        if config.step_size == "calibrated":
            three = first_up, first_down, second_down
            first_up, first_down, second_down = (SLOWER / root_mean_square(t) * t for t in three)
            # What a step of 1 in every entry of second_up changes, squared: column norms of both matrices.
            columns = ((first_up.mT @ first_up) @ first_down * first_down).sum(0)
            change = (columns * second_down.square().sum(0)).sum().sqrt()
            change = change * linalg.sign_stretch(first_up @ first_down, second_rank)
            factor = layer.rms() * math.sqrt(W.numel()) / change
        self.first_up, self.first_down = nn.Parameter(first_up.float()), nn.Parameter(first_down.float())
        self.second_up = nn.Parameter(torch.zeros(layer.out_features, second_rank))
        self.second_down = nn.Parameter(second_down.float())
        self.factor: Tensor
        self.register_buffer("factor", factor.float())

    def weight(self, W: Tensor) -> Tensor:
        return W + self.factor.to(W) * (self.first_up @ self.first_down) * (self.second_up @ self.second_down)

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        adapters = [adapter for adapter, _ in pairs]
        first_up = torch.stack([a.first_up for a in adapters])
        first_down = torch.stack([a.first_down for a in adapters])
        second_up = torch.stack([a.factor * a.second_up for a in adapters])
        second_down = torch.stack([a.second_down for a in adapters])
        return base.rows_of(**_product(first_up, first_down, second_up, second_down))

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        if "difference" in derived:
            return layer(x) + layer.project(x, derived["difference"])
        if layer.fusible:
            return fused.low_rank(layer, x, derived["up"], derived["down"])
        return layer(x) + layer.expand(layer.project(x, derived["down"]), derived["up"])

    def export_terms(self, W: Tensor) -> base.Terms:
        terms = _product(self.first_up, self.first_down, self.factor * self.second_up, self.second_down)
        return base.Terms(up=terms.get("up"), down=terms.get("down"), difference=terms.get("difference"))


def _product(first_up: Tensor, first_down: Tensor, second_up: Tensor, second_down: Tensor) -> dict[str, Tensor]:
    """`(first_up first_down) * (second_up second_down)` as `up (..., out, r1 r2)`, `down (..., r1 r2, fan_in)`, or as
    the `difference (..., out, fan_in)` itself where that is no larger: it then costs no more to compute with either.
    """
    out, fan_in = first_up.shape[-2], first_down.shape[-1]
    if first_up.shape[-1] * second_up.shape[-1] * (out + fan_in) >= out * fan_in:
        return {"difference": (first_up @ first_down) * (second_up @ second_down)}
    up = (first_up.unsqueeze(-1) * second_up.unsqueeze(-2)).flatten(-2)
    return {"up": up, "down": (first_down.unsqueeze(-2) * second_down.unsqueeze(-3)).flatten(-3, -2)}


def _leading_factors(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`up (out, r)`, `down (r, fan_in)`, whose product is about the best of rank r for W: `U sqrt(S)`, `sqrt(S) V^T` of
    its leading singular values. Random where W is zero, since zero would never be trained.

    Subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4) from a start that is the same on
    every device, which torch.svd_lowrank's is not.
    """
    if W.is_meta:
        return W.new_empty(W.shape[0], rank), W.new_empty(rank, W.shape[1])
    width = min(rank + SPARE, *W.shape)
    start = torch.randn(W.shape[1], width).to(W)
    basis = torch.linalg.qr(W @ start)[0]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(W @ torch.linalg.qr(W.mT @ basis)[0])[0]
    left, values, right = torch.linalg.svd(basis.mT @ W, full_matrices=False)
    root, empty = values[:rank].sqrt(), values[0] == 0
    up, down = basis @ left[:, :rank] * root, right[:rank] * root.unsqueeze(1)
    up, down = torch.where(empty, torch.randn(up.shape).to(W), up), torch.where(empty, start[:, :rank].mT, down)
    return up.contiguous(), down.contiguous()
