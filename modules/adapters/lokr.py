"""LoKr: `W' = W + c kron(first, second)`, `first (out1, in1)` small, `second (out2, fan_in2)` whole, or where it is
large a pair `up down` (KronA, arXiv 2212.10650; LyCORIS, arXiv 2309.14859, whose splitting rules these are).

`kron(first, second) x` is x in `in1` runs of channels, each through `second`, and the runs mixed by `first`: no large
matrix is computed. Of a convolution, `second` is a convolution of `in2` channels. LyCORIS' merging applies alpha / rank
twice; this is its forward pass.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, fused
from modules.adapters.layers import Layer
from modules.adapters.limit import Limited, LimitedConfig, pair_norm
from modules.adapters.low_rank import RankConfig, root_mean_square
from modules.adapters.terms import Product, matrix
from modules.preset.section import option


class Config(RankConfig, LimitedConfig):
    """LoKr: the Kronecker product of a small and a large matrix."""

    method: Literal["lokr"] = "lokr"
    """Kronecker product of a small and a large matrix: the smallest files."""

    rank: int = option(16, why="enough for a style or a subject", ge=1, le=8192)
    """Rank of the large factor. From half of its longer side on, the factor is a full matrix and alpha has no
    effect."""

    alpha: float | None = option(
        None, why="equal to rank, so that the update is not scaled", gt=0, advanced=True,
        needs=("!.step_size raw", "@scaled"),
    )
    """The update is multiplied by alpha / rank. null: alpha = rank."""

    factor: int | None = option(8, why="a common value", ge=1)
    """Rows and columns of the small factor, or the nearest smaller divisors. A larger value gives a smaller file. null:
    both factors as equal as possible, which gives the smallest file."""


SLOWER = 3.0
"""Calibrated, the other tensors' root mean square: a step of lr moves each by lr over this. All multiply the one that
starts at zero, and without it the change of the weight would accelerate."""


class Adapter(Limited):
    """Parameters `first (out1, in1)` and `second (out2, fan_in2)`, zero; or instead of that `up (out2, r)` and `down
    (r, fan_in2)`, zero. Buffer `scale ()`: c. Calibrated, c is in the weight's unit."""

    kinds = ("linear", "conv")

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        (out1, out2), (in1, in2) = (split(n, config.factor) for n in (layer.out_features, layer.channels))
        calibrated, rank = config.step_size == "calibrated", config.rank
        self.is_whole = rank >= max(out2, in2) / 2
        self.uses_alpha = not self.is_whole
        self.first = _filled(out1, in1, calibrated)
        if self.is_whole:
            self.second = nn.Parameter(torch.zeros(out2, in2 * layer.kernel))
            scale = layer.rms() / SLOWER if calibrated else 1.0
        else:
            self.up = _filled(out2, rank, calibrated)
            self.down = nn.Parameter(torch.zeros(rank, in2 * layer.kernel))
            scale = layer.rms() / (SLOWER**2 * math.sqrt(rank)) if calibrated else config.scale
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))

    def factors(self) -> tuple[nn.Parameter, ...]:
        """The large one: itself, or as a pair."""
        return (self.second,) if self.is_whole else (self.up, self.down)

    def weight(self, W: Tensor) -> Tensor:
        second = self.second if self.is_whole else self.up @ self.down
        return W + self.scale.to(W) * torch.kron(self.first, second)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {"first": self.scale * self.first}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        x = fused.in_compute_dtype(x)
        first, factors = derived["first"].to(x.dtype), self.factors()
        y = fused.scaled(layer, x, None) if layer.fusible else layer(x)
        runs = layer.flat(x).unflatten(1, (first.shape[1], -1)).flatten(0, 1)
        h = layer.project(runs, factors[-1]).unflatten(0, (-1, first.shape[1]))
        h = torch.einsum("oi,ni...->no...", first, h)
        if not self.is_whole:
            h = layer.expand(h.flatten(0, 1), self.up).unflatten(0, (-1, len(first)))
        return y + h.flatten(1, 2).reshape(y.shape)

    def limited(self) -> tuple[Tensor, list[nn.Parameter]]:
        second = self.second.norm() if self.is_whole else pair_norm(self.up, self.down)
        return self.scale * self.first.norm() * second, [self.first, *self.factors()]

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        """A product of the same kind and sizes, with a pair of no larger rank."""
        if terms.product is None or terms.product.kind != "kronecker":
            self.refuse_all_but(terms)
            return
        self.refuse_all_but(terms, "up", "difference")
        first, given = matrix(terms.product.first), terms.product.second
        self._refuse_sizes(first, given)
        with torch.no_grad():
            unit = self._unit(first)
            self.first.copy_(first / unit)
            if self.is_whole:
                self.second.copy_(matrix(given) * unit / self.scale)
                return
            inner, rank = self._unit(given[0]), len(given[1])
            self.up[:, :rank] = given[0] / inner
            self.down.zero_()
            self.down[:rank] = given[1] * unit * inner / self.scale

    def _refuse_sizes(self, first: Tensor, given: tuple[Tensor, ...]) -> None:
        mine = self.factors()
        if first.shape != self.first.shape or (len(given[0]), given[-1].shape[1]) != (len(mine[0]), mine[-1].shape[1]):
            raise ValueError(f"the file's small factor is {first.shape[0]} x {first.shape[1]}, but the run's "
                             f"{self.first.shape[0]} x {self.first.shape[1]}; set adapter.factor {max(first.shape)}")
        if self.is_whole:
            return
        longest = max(len(given[0]), given[-1].shape[1] // self.kernel)
        rank = len(given[1]) if len(given) == 2 else math.ceil(longest / 2)
        if rank > len(self.down):
            raise ValueError(f"the file's large factor needs a higher rank than {len(self.down)}; set adapter.rank "
                             f"{rank}")

    def _unit(self, given: Tensor) -> Tensor:
        """What a given factor is divided by: the root mean square, with calibrated steps."""
        calibrated = self.config.step_size == "calibrated" and bool(given.any())
        return root_mean_square(given) / SLOWER if calibrated else torch.ones_like(given[0, 0])

    def export_terms(self, W: Tensor) -> base.Terms:
        return base.Terms(product=Product("kronecker", (self.scale * self.first,), self.factors()))


def split(size: int, factor: int | None) -> tuple[int, int]:
    """Two numbers, the smaller first, whose product is `size`: `factor` and the rest if that divides it, else the most
    equal ones of which the smaller is at most `factor` (LyCORIS' `factorization`)."""
    if factor is not None and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    largest = size if factor is None else factor
    smaller = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0 and n <= largest)
    return smaller, size // smaller


def _filled(rows: int, columns: int, calibrated: bool) -> nn.Parameter:
    found = torch.empty(rows, columns)
    nn.init.kaiming_uniform_(found, a=math.sqrt(5))
    return nn.Parameter(SLOWER / root_mean_square(found) * found if calibrated else found)
