"""LoHa: `W' = W + c (up1 down1) o (up2 down2)`, o elementwise, `c = alpha / rank` (FedPara, arXiv 2108.06098; LyCORIS,
arXiv 2309.14859).

Two pairs of rank r make a change of rank up to r^2. That is a low-rank update: its factors are the products of all
pairs of columns, or of rows. The fast path uses it where it has fewer elements than the weight, `r^2 (out + fan_in) <
out fan_in`; else the adapted weight is computed in every forward, as LyCORIS does. LyCORIS' merging applies alpha /
rank twice; this is its forward pass.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, fused, linalg
from modules.adapters.layers import Layer
from modules.adapters.limit import Limited, LimitedConfig
from modules.adapters.low_rank import RankConfig, root_mean_square
from modules.adapters.terms import Product
from modules.preset.section import option


class Config(RankConfig, LimitedConfig):
    """LoHa: the elementwise product of two low-rank updates."""

    method: Literal["loha"] = "loha"
    """Elementwise product of two low-rank updates: a high rank from few parameters."""

    rank: int = option(8, why="the update then has a rank of up to 64", ge=1, le=1024)
    """Rank of each of the two products. The update has at most the square of this rank."""


SLOWER = 4.0
"""Calibrated, the other tensors' root mean square: a step of lr moves each by lr over this. All multiply the one that
starts at zero, and without it the change of the weight would accelerate."""


class Adapter(base.Together, Limited):
    """Parameters `up1`, `up2 (out, r)` and `down1`, `down2 (r, fan_in)`, with up2 zero at the start; buffer
    `factor ()`: c. Calibrated, c is in the weight's unit."""

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        rank, out, fan_in = config.rank, layer.out_features, layer.fan_in
        self.is_low_rank = rank**2 * (out + fan_in) < out * fan_in
        up1, down1 = 0.1 * torch.randn(out, rank), torch.randn(rank, fan_in)
        down2, factor = torch.randn(rank, fan_in), torch.tensor(config.scale)
        if config.step_size == "calibrated":
            up1, down1, down2 = (SLOWER / root_mean_square(t) * t for t in (up1, down1, down2))
            factor = layer.rms() / (SLOWER**3 * rank * linalg.sign_stretch(up1 @ down1, rank))
        self.up1, self.down1 = nn.Parameter(up1), nn.Parameter(down1)
        self.up2, self.down2 = nn.Parameter(torch.zeros(out, rank)), nn.Parameter(down2)
        self.factor: Tensor
        self.register_buffer("factor", factor)

    def weight(self, W: Tensor) -> Tensor:
        return W + self.factor.to(W) * (self.up1 @ self.down1) * (self.up2 @ self.down2)

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        adapters = [adapter for adapter, _ in pairs]
        if not adapters[0].is_low_rank:
            return [{} for _ in adapters]
        up1, up2, down1, down2, factor = (
            torch.stack(tensors)
            for tensors in zip(*((a.up1, a.up2, a.down1, a.down2, a.factor) for a in adapters), strict=True)
        )
        up = torch.einsum("n,noi,noj->noij", factor, up1, up2).flatten(2)
        return base.rows_of(up=up, down=torch.einsum("nif,njf->nijf", down1, down2).flatten(1, 2))

    def forward(self, x: Any, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        if not self.is_low_rank:
            return super().forward(x, layer, derived)
        if layer.fusible:
            return fused.low_rank(layer, x, derived["up"], derived["down"])
        return layer(x) + layer.expand(layer.project(x, derived["down"]), derived["up"])

    def limited(self) -> tuple[Tensor, list[nn.Parameter]]:
        product = (self.up1 @ self.down1) * (self.up2 @ self.down2)
        return self.factor * product.norm(), [self.up1, self.down1, self.up2, self.down2]

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        """A product of the same kind, or a pair, with the other factor set to one."""
        if terms.product is not None and terms.product.kind == "hadamard":
            self.refuse_all_but(terms, "up", "difference")
            pairs = [terms.product.first, terms.product.second]
        else:
            self.refuse_all_but(terms, "up")
            if terms.up is None or terms.down is None:
                return
            ones = (torch.ones_like(terms.up[:, :1]), torch.ones_like(terms.down[:1]))
            pairs = [ones, (terms.up, terms.down)]
        rank = max(len(down) for _, down in pairs)
        if rank > len(self.down1):
            raise ValueError(f"the file has rank {rank}, but the run has rank {len(self.down1)}; set adapter.rank "
                             f"{rank}")
        mine, total = ((self.up1, self.down1), (self.up2, self.down2)), 1 / self.factor
        with torch.no_grad():
            for (up, down), (given_up, given_down) in zip(mine, pairs, strict=True):
                total = total * self._set(up, given_up, 1) * self._set(down, given_down, 0)
            self.up2.mul_(total)

    def _set(self, mine: Tensor, given: Tensor, axis: int) -> Tensor:
        """Set the first components; of those left over, the ups are zero. Returns the divisor of the given ones."""
        unit = torch.ones_like(self.factor)
        if self.config.step_size == "calibrated" and given.any() and mine is not self.up2:
            unit = (root_mean_square(given) / SLOWER).to(unit)
        if axis == 1:
            mine.zero_()
        mine.narrow(axis, 0, given.shape[axis]).copy_(given / unit)
        return unit

    def export_terms(self, W: Tensor) -> base.Terms:
        scaled = self.factor * self.up1
        return base.Terms(product=Product("hadamard", (scaled, self.down1), (self.up2, self.down2)))
