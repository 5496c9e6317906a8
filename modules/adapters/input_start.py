"""Initial values from the inputs of each layer, collected before the first step.

EVA (arXiv 2410.07170; peft's `eva.py`): `down` starts as the principal components of the inputs, with orthonormal rows,
and `up` at zero. The layers share one budget of components, which go where they explain the largest part of a layer's
variance; a layer gets at most `rho` times its rank. Components that a layer does not get are zero in both factors, have
no gradient, and are kept at zero; files leave them out. Here the components are exact, of all inputs together;
peft updates approximate ones batch by batch.

CorDA (arXiv 2406.05223; peft's `corda.py`): with `C = E[x x^T] + 0.01 mean(diag E[x x^T]) I`, of inputs divided by the
largest magnitude of their sample, and `W C = U S V^T`, the pair starts as `U sqrt(S)`, `sqrt(S) V^T C^-1` of some
components: the largest (ipm, for the new task), or the smallest (kpm, to keep what the base knows). Like every nonzero
initial pair its product is subtracted without changing the base.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from modules.adapters import base, linalg
from modules.adapters.layers import Layer
from modules.adapters.low_rank import RawLowRankConfig, calibrated_factor, root_mean_square, spread
from modules.preset.section import option

CORDA = {"corda_ipm": False, "corda_kpm": True}
"""By `init`: whether the pair has the smallest singular values."""

DAMPING = 0.01
"""Of CorDA's covariance, as a part of its mean diagonal entry."""

VANISHED = 1e-12
"""Singular values below this part of the largest are rounding errors of float64."""

ROUNDS, SPARE = 16, 16
"""Of the subspace iteration for a few eigenvectors of a large matrix, and columns beyond the wanted number."""


class InputStartConfig(RawLowRankConfig):
    """Options of a low-rank pair that may start from the layer's weight, gradient or inputs."""

    init: Literal["kaiming", "gaussian", "orthogonal", "svd", "gradient", "eva"] = option(
        "kaiming", why="as in other trainers", group="Start", advanced=True, title="Initial values"
    )
    """Initial values of down; up starts at zero. kaiming: uniform, as in the reference code. gaussian: normal with
    standard deviation 1 / rank, as in peft. orthogonal: orthonormal rows. svd: the largest right singular vectors of
    the weight. gradient: the directions in which the loss of some training pictures falls fastest, measured before the
    first step. eva: the principal components of the layer's inputs in these pictures, and more of them in layers where
    they explain more. With calibrated steps all are scaled to the same size."""

    rho: float = option(2.0, why="as published", group="Start", advanced=True, ge=1, le=16, needs="!.init eva")
    """Largest rank of a layer as a multiple of its own rank, which the layers have on average. 1: all layers keep their
    rank."""

    @model_validator(mode="after")
    def _components_keep_their_noise_levels(self) -> "InputStartConfig":
        if self.init == "eva" and self.rho > 1 and dict(self).get("min_rank") is not None:
            raise ValueError("min_rank masks the same components in all layers, but init eva gives layers other ranks: "
                             "set rho 1, or another init")
        return self

    def widened(self) -> "InputStartConfig":
        rank = round(self.rank * self.rho) if self.init == "eva" else self.rank
        alpha = None if self.alpha is None else self.alpha * rank / self.rank
        return self if rank == self.rank else self.model_copy(update={"rank": rank, "alpha": alpha})


class InputStartAdapter(base.Adapter):
    """An adapter with parameters `up (out, r)`, `down (r, fan_in)` and the buffer `factor ()` of `low_rank_pair`. Where
    ranks are shared out, the buffer `given (r)`: 1 for the components that the layer has, 0 for the others."""

    up: nn.Parameter
    down: nn.Parameter
    factor: Tensor
    given: Tensor | None
    parts = 1
    """As in `low_rank_pair`."""

    def __init__(self, config: Any, layer: Layer):
        super().__init__(config, layer)
        shares = config.init == "eva" and config.rho > 1
        self.register_buffer("given", torch.ones(config.rank) if shares else None)

    @classmethod
    def after_step(cls, adapters: Sequence[Any], step: int, steps: int) -> list[nn.Parameter]:
        """Some optimizers move parameters without a gradient too."""
        if adapters[0].given is not None:
            torch._foreach_mul_([one.up for one in adapters], [one.given for one in adapters])
            torch._foreach_mul_([one.down for one in adapters], [one.given.unsqueeze(1) for one in adapters])
        return super().after_step(adapters, step, steps)

    def components(self) -> tuple[Tensor, Tensor]:
        """`up`, `down` without the components that the layer does not have; with one, if it has none. All on the meta
        device."""
        if self.given is None or self.given.is_meta:
            return self.up, self.down
        there = self.given.bool()
        there[0] |= not there.any()
        return self.up[:, there], self.down[there]

    @torch.no_grad()
    def begin_with_components(self, layer: Layer, vectors: Tensor, count: int) -> None:
        """Set fresh parameters to `count` components: orthonormal `vectors (k, fan_in)` first, then random ones."""
        first = vectors[:count].to(self.down)
        rest = self.down[len(first) : count].clone()
        calibrated = self.config.step_size == "calibrated"
        if calibrated:
            first = spread(count) * math.sqrt(layer.fan_in) * first
            rest = spread(count) / root_mean_square(rest) * rest if len(rest) else rest
        self.up.zero_()
        self.down.zero_()
        if self.given is not None:
            self.given.copy_(torch.arange(len(self.given)) < count)
        self.down[:count] = torch.cat([first, rest])
        if calibrated and count:
            self.factor.copy_(calibrated_factor(layer, self.down[:count], self.parts))

    def begin_with_pair(self, up: Tensor, down: Tensor) -> None:
        """Set fresh parameters to `up (out, k)`, `down (k, fan_in)`, whose product is subtracted."""
        raise NotImplementedError


def rows(layer: Layer, x: Tensor) -> Tensor:
    """What the weight `(out, fan_in)` is multiplied with: `(n, positions, fan_in)` of inputs x, whose n rows may be
    samples. Of a convolution one row of the patches for each position of its output."""
    if layer.kind != "conv":
        return x.reshape(len(x), -1, layer.channels)
    conv: Any = layer.base
    padded = F.pad(x, conv._reversed_padding_repeated_twice)
    sizes = [(length - d * (k - 1) - 1) // s + 1 for length, d, k, s in zip(
        padded.shape[2:], conv.dilation, conv.kernel_size, conv.stride, strict=True)]
    patches = []
    for place in itertools.product(*map(range, conv.kernel_size)):
        begins = [p * d for p, d in zip(place, conv.dilation, strict=True)]
        cut = [slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(begins, sizes, conv.stride, strict=True)]
        patches.append(padded[(slice(None), slice(None), *cut)].flatten(2))
    return torch.stack(patches, 2).flatten(1, 2).mT


@dataclass
class Moments:
    """Sums over the inputs of one layer."""

    normalised: bool
    """Whether each row of a batch is divided by its largest magnitude."""
    square: Tensor
    """`(fan_in, fan_in)`: of `x x^T`."""
    total: Tensor
    """`(fan_in)`: of x."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    """How many inputs, and how many rows of batches."""

    def add(self, inputs: Tensor) -> None:
        """Take in `(n, positions, fan_in)`."""
        inputs = inputs.to(self.square.dtype)
        if self.normalised:
            inputs = inputs / inputs.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(inputs.dtype).tiny)
        flat = inputs.flatten(0, 1)
        self.square.addmm_(flat.mT, flat)
        self.total += flat.sum(0)
        self.counts += torch.tensor([len(flat), len(inputs)], dtype=torch.float64)

    def components(self, rank: int) -> tuple[Tensor, Tensor]:
        """The part of the variance that each of the largest principal components explains, `(k)` in descending order,
        and the components, `(k, fan_in)`; k is `rank`, or less where fewer explain any. float64."""
        mean = self.total.double() / self.counts[0].to(self.total.device)
        scatter = self.square.to(torch.float64, copy=True).addr_(mean, mean, alpha=-self.counts[0].item())
        values, vectors = largest(scatter, rank)
        whole = scatter.diagonal().sum()
        there = values > NOISE * whole.clamp_min(0)
        return values[there] / whole, vectors[there]

    def pair(self, W: Tensor, rank: int, smallest: bool) -> tuple[Tensor, Tensor]:
        """CorDA's `up (out, k)`, `down (k, fan_in)` for `W (out, fan_in)`, float64; k is `rank`, or less where W is
        smaller or has a lower rank."""
        covariance = self.square.to(torch.float64, copy=True).div_(self.counts[1].item())
        covariance.diagonal().add_(DAMPING * covariance.diagonal().mean())
        turned = W.double() @ covariance
        if smallest:
            left, values, right = torch.linalg.svd(turned, full_matrices=False)
            last = torch.arange(len(values), device=values.device) >= len(values) - rank
            there = last & (values > VANISHED * values[0])
            left, values, right = left[:, there], values[there], right[there]
        else:
            left, values, right = linalg.leading(turned, rank)
        down = torch.linalg.solve(covariance, right.mT).mT
        return left * values.sqrt(), values.sqrt().unsqueeze(1) * down


NOISE = 1e-7
"""Components below this part of the variance are rounding errors of the sums."""


def moments(layer: Layer, init: str, device: torch.device) -> Moments:
    """Empty ones, for a layer that starts as `init` says."""
    dtype = torch.float64 if layer.base.weight.dtype == torch.float64 else torch.float32
    square = torch.zeros(layer.fan_in, layer.fan_in, dtype=dtype, device=device)
    return Moments(init in CORDA, square, square.new_zeros(layer.fan_in))


def largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues `(k)` of a symmetric `matrix (n, n)` in descending order, and their vectors `(k, n)`; k
    is `rank` or n. Of a large matrix by a subspace iteration from random columns."""
    if 4 * (rank + SPARE) > len(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return values.flip(0)[:rank], vectors.mT.flip(0)[:rank]
    columns = torch.randn(len(matrix), rank + SPARE).to(matrix)
    for _ in range(ROUNDS):
        columns = torch.linalg.qr(matrix @ columns).Q
    values, inner = torch.linalg.eigh(columns.mT @ matrix @ columns)
    return values.flip(0)[:rank], (columns @ inner).mT.flip(0)[:rank]


def distributed(parts: list[Tensor], ranks: list[int]) -> list[int]:
    """How many components each layer gets, of the explained `parts (k)` of its variance, in descending order. In all
    the sum of `ranks`, to the largest parts (EVA's redistribution); what is then left, up to the layers' own ranks."""
    order = torch.cat(parts).sort(descending=True, stable=True).indices[: sum(ranks)]
    owners = torch.cat([torch.full((len(one),), number) for number, one in enumerate(parts)])[order]
    counts = torch.bincount(owners, minlength=len(ranks)).tolist()
    left = sum(ranks) - sum(counts)
    for number, rank in enumerate(ranks):
        more = min(left, max(0, rank - counts[number]))
        counts[number], left = counts[number] + more, left - more
    return counts
