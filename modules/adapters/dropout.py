"""Dropout of whole layers, for every method (kohya's `module_dropout`); and in the branch of low-rank methods, `y =
base(x) + up (down(x))`: of its input (Hu et al., arXiv 2106.09685, in the reference code; peft), of the values between
down and up (kohya, OneTrainer), and of components (kohya's `rank_dropout`). With a magnitude the branch is all that the
adapter adds, `(W' - W) x`, and only its input can be dropped, as in peft. What is kept is divided by its probability,
except whole layers, as there.

A sample's draws are functions of (seed, position) alone, so that they are the same after resuming, with any
accumulation and on any number of processes. Those of `dropout` are made on the device, those of components and layers
in main memory. A layer that does not see the samples as rows (a text encoder's, or one that joins them) has one draw
for all samples of a step; with `dropout` it then drops whole features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from modules.adapters import fused
from modules.adapters.active_rank import ActiveRankAdapter
from modules.adapters.base import GROUP, AdapterConfig
from modules.adapters.layers import Layer
from modules.preset.section import option


class InputDropoutConfig(AdapterConfig):
    """Options of methods whose branch can drop values of its input."""

    dropout: float = option(0.0, why="as in other trainers", group=GROUP, advanced=True, ge=0, lt=1)
    """Probability of dropping each value of the input of what the adapter adds, magnitudes included, drawn for each
    sample; as in peft. Only in training steps."""

    @property
    def drops(self) -> bool:
        return max(self.dropout, self.module_dropout) > 0


class DropoutConfig(InputDropoutConfig):
    """Options of methods whose branch is a product of two factors."""

    dropout: float = option(0.0, why="as in other trainers", group=GROUP, advanced=True, ge=0, lt=1)
    """Probability of dropping each value in an adapter's branch, drawn for each sample. Only in training steps."""

    dropout_of: Literal["input", "inner"] = option(
        "input", why="as published and in peft", group=GROUP, advanced=True, needs=".dropout"
    )
    """input: the branch's input values. inner: the values between down and up, as in kohya's trainer, OneTrainer and
    ai-toolkit; needs less memory."""

    rank_dropout: float = option(0.0, why="as in other trainers", group=GROUP, advanced=True, ge=0, lt=1)
    """Probability of dropping each of a layer's rank components, drawn for each sample. Only in training steps."""

    @property
    def drops(self) -> bool:
        return max(self.dropout, self.rank_dropout, self.module_dropout) > 0


@dataclass(frozen=True)
class Drop:
    """What one layer drops of a micro-batch of `n` samples."""

    config: Any
    inside: bool
    """Whether the adapter drops in its own forward pass; else its layer is left out around it."""
    seeds: tuple[int, ...]
    """Of the samples' draws for `dropout` in this layer; () where samples are not told apart."""
    shared: int
    """The seed of the step's draw."""
    factors: Tensor
    """`(n, r)` float32: of the components of each sample, 0 where dropped."""
    shared_factors: Tensor
    """`(r)` float32: the step's."""
    whole: tuple[bool, ...]
    """Whether each sample has the adapter in this layer."""
    shared_whole: bool
    """The step's."""

    def around(self, x: Any, layer: Layer, adapted: Callable[[Any], Tensor]) -> Tensor:
        """`adapted(x)`, and the base layer for the samples that are left out."""
        kept = self.whole if self.by_sample(x) else (self.shared_whole,)
        if all(kept) or not any(kept):
            return adapted(x) if all(kept) else layer(x)
        order = sorted(range(len(kept)), key=lambda row: not kept[row])
        at = torch.tensor(order, device=x.device)
        inner, outer = x[at[: sum(kept)]], x[at[sum(kept) :]]
        return torch.cat([adapted(inner), layer(outer)])[at.argsort()]

    def by_sample(self, x: Tensor) -> bool:
        """Whether the rows of `x` are the samples."""
        return x.dim() > 1 and len(x) == len(self.seeds)

    def kept(self, x: Tensor, features: int) -> Tensor:
        """Factors that `x` is multiplied by for `dropout`: of its own shape, or that of its dimension `features`."""
        rate = self.config.dropout
        if self.by_sample(x):
            drawn = torch.stack([_uniform(seed, x[0].shape, x.device) for seed in self.seeds])
        else:
            drawn = _along(_uniform(self.shared, x.shape[features : features + 1 or None], x.device), x, features)
        return (drawn >= rate).to(x.dtype if x.is_floating_point() else torch.float32) / (1 - rate)

    def with_adapter(self, x: Tensor) -> Tensor:
        """`x`, zero for the samples that are left out."""
        if self.config.module_dropout == 0:
            return x
        if not self.by_sample(x):
            return x if self.shared_whole else torch.zeros_like(x)
        return x * torch.tensor(self.whole, device=x.device).view(-1, *[1] * (x.dim() - 1))

    def components(self, h: Tensor, features: int) -> Tensor:
        """`h` with the factors of components and layer; its dimension `features` has them once or several times."""
        factors = self.factors if self.by_sample(h) else self.shared_factors
        factors = factors.repeat(*[1] * (factors.dim() - 1), h.shape[features] // factors.shape[-1]).to(h.dtype)
        return h * (_along(factors, h, features) if factors.dim() == 1 else fused.by_row(factors, h, features))


def _along(vector: Tensor, x: Tensor, features: int) -> Tensor:
    """`vector` shaped to multiply the dimension `features` of `x`: 1 or -1."""
    return vector if features == -1 else vector.view(-1, *[1] * (x.dim() - 2))


def _uniform(seed: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Float32 in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


class DroppingAdapter(ActiveRankAdapter):
    """An adapter of a config with dropout, whose forward pass is `branch`."""

    config: Any

    def branch(self, x: Any, layer: Layer, up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
        """`base(x) + scale * up down(x)` with the layer's bias, `up (out, r)`, `down (r, fan_in)`."""
        if self.drop is not None:
            return self._dropped(x, layer, up, down, scale, self.drop)
        return self.masked(x, layer, up, down, scale)

    def _dropped(self, x: Any, layer: Layer, up: Tensor, down: Tensor, scale: float, drop: Drop) -> Tensor:
        features = fused.features_of(layer)
        x = fused.in_compute_dtype(x) if layer.fusible else x
        y = fused.scaled(layer, x, None) if layer.fusible else layer(x)
        rate, of = self.config.dropout, self.config.dropout_of
        tokens = layer.kind == "embedding" and rate > 0 and of == "input"
        inner = x * drop.kept(x, features) if rate > 0 and of == "input" and not tokens else x
        h = self.projected(inner, layer, down)
        if tokens:  # the input is a row of an identity matrix: its one value is kept or not
            h = h * of_tokens(drop, x, layer.channels).to(h.dtype)
        if rate > 0 and of == "inner":
            h = h * drop.kept(h, features)
        return y + layer.expand(drop.components(h, features), scale * up)


def of_tokens(drop: Drop, x: Tensor, channels: int) -> Tensor:
    """Factors `(..., 1)` of tokens `x (...)`; the step's draw is one for each token of the vocabulary."""
    if drop.by_sample(x):
        return drop.kept(x, -1).unsqueeze(-1)
    drawn = _uniform(drop.shared, torch.Size([channels]), x.device)
    return ((drawn >= drop.config.dropout).float() / (1 - drop.config.dropout))[x].unsqueeze(-1)
