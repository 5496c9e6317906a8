"""AdaLoRA: `W' = W + (alpha / rank) up diag(gain) down`, which distributes its rank over the layers (arXiv 2303.10512).

Like a singular value decomposition (eq. 3): a penalty keeps the columns of up and the rows of down orthonormal (eq. 4).
One component is a column, a gain and a row. Its importance is that of its entries, |entry * gradient|, smoothed and
times its own spread (eq. 8 to 11). Over the training the sum of all layers' ranks falls from `rank` to `target_rank`
per layer (eq. 12, cubic): the gains of the least important components are set to zero, and may grow back until the
last phase, for which the choice is final.

As in the authors' code and peft, importance is taken after the step from the gradient that the optimizer saw, which has
the penalty in it and is clipped. Clipping scales a step's gradients alike in all layers, so it changes no ranking
within a step; it keeps a single outlier step from dominating the averages. Unlike there [I]: phases are fractions of
the training, the number of kept components is exactly the budget (ties included), and the final choice is kept.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.dropout import DropoutConfig, DroppingAdapter
from modules.adapters.layers import Layer
from modules.adapters.low_rank import RankConfig, refuse_larger, root_mean_square
from modules.preset.section import option

SMOOTHING = 0.85
"""Of importance and its spread, from step to step: the published beta_1 and beta_2."""

INITIAL_STD = 0.02
"""Of the two factors with raw steps, as published."""


class Config(RankConfig, DropoutConfig):
    """AdaLoRA: learns the rank of each layer."""

    method: Literal["adalora"] = "adalora"
    """Low-rank update that distributes its rank over the layers during training."""

    rank: int = option(12, why="as published: 1.5 times the final mean rank", ge=1, le=4096)
    """Initial rank of each layer's update."""

    target_rank: int | None = option(None, why="as published (8 of 12)", ge=1, le=4096)
    """Mean rank of the layers' updates at the end; single layers end above or below it. null: two thirds of rank. A
    layer whose own rank is lower keeps it."""

    warmup: float = option(0.1, why="importance has to be estimated first", group="Budget", advanced=True, ge=0, lt=1)
    """Fraction of the training before the first component is dropped."""

    final: float = option(
        0.3, why="the remaining components need time to converge", group="Budget", advanced=True, gt=0, le=1
    )
    """Fraction of the training after the last component is dropped, at least one step. Dropped components cannot return
    in this phase."""

    interval: int = option(
        10, why="gives dropped components time to recover", unit="steps", group="Budget", ge=1, advanced=True
    )
    """Steps between two selections of components. A dropped component can grow again in between."""

    orthogonality: float = option(0.1, why="the authors' value; peft uses 0.5", ge=0, le=10, advanced=True)
    """Weight of the penalty, added to the loss, that keeps components orthonormal."""

    @property
    def target(self) -> int:
        """`target_rank` of a layer."""
        return max(1, round(self.rank * 2 / 3)) if self.target_rank is None else min(self.rank, self.target_rank)

    def phases(self, steps: int) -> tuple[int, int]:
        """The steps after which components begin to be dropped, and after which the last are, of `steps`."""
        begin = round(self.warmup * steps)
        return begin, max(1, begin, steps - max(1, round(self.final * steps)))

    @model_validator(mode="after")
    def _there_is_something_to_drop(self) -> "Config":
        if self.target_rank is not None and self.target_rank > self.rank:
            raise ValueError(f"target_rank {self.target_rank} is more than rank {self.rank}, and ranks only fall")
        if self.warmup + self.final > 1:
            raise ValueError(f"warmup {self.warmup:g} and final {self.final:g} are more than the whole training")
        return self


class Importance(nn.Module):
    """The importance of each entry of a parameter, and its spread; both smoothed over the steps."""

    def __init__(self, parameter: Tensor):
        super().__init__()
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.zeros_like(parameter, requires_grad=False))
        self.register_buffer("spread", torch.zeros_like(parameter, requires_grad=False))

    def score(self) -> Tensor:
        """Of each entry (eq. 11)."""
        return self.mean * self.spread


SLOWER = 3.0
"""Calibrated, the factors' root mean square: a step of lr moves each by lr over this. Both multiply the gains, and
without it the change of the weight would accelerate."""


class Adapter(DroppingAdapter):
    """`y = base(x) + factor * up (kept gain (down(x)))`: parameters `up (out, r)`, `gain (r)`, zero at the start, and
    `down (r, fan_in)`; buffers `factor ()` and `kept (r)`, 1, and 0 for what is permanently dropped.

    Calibrated, up and down have a root mean square of 1. Their norm is kept by the penalty, so weight decay acts on the
    gains alone.
    """

    undecayed = ("up", "down")
    reads_gradients = True
    sets_parameters = True

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        up, down = torch.randn(layer.out_features, config.rank), torch.randn(config.rank, layer.fan_in)
        self.calibrated = config.step_size == "calibrated"
        if self.calibrated:
            up, down = SLOWER / root_mean_square(up) * up, SLOWER / root_mean_square(down) * down
            factor = layer.rms() / (SLOWER**2 * config.rank**0.5)
        else:
            up, down, factor = INITIAL_STD * up, INITIAL_STD * down, config.scale
        self.up, self.down, self.gain = nn.Parameter(up), nn.Parameter(down), nn.Parameter(torch.zeros(config.rank))
        self.factor: Tensor
        self.kept: Tensor
        self.register_buffer("factor", torch.tensor(factor))
        self.register_buffer("kept", torch.ones(config.rank))
        self.up_importance, self.down_importance = Importance(self.up), Importance(self.down)
        self.gain_importance = Importance(self.gain)

    def watched(self) -> list[tuple[nn.Parameter, Importance]]:
        """The parameters, each with its importance."""
        return [(self.up, self.up_importance), (self.down, self.down_importance), (self.gain, self.gain_importance)]

    def gains(self) -> Tensor:
        """`(r)`, the factor included; 0 for components that are dropped."""
        return self.factor * self.kept * self.gain

    def weight(self, W: Tensor) -> Tensor:
        return W + (self.gains() * self.up) @ self.down

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {"up": self.gains() * self.up}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return self.branch(x, layer, derived["up"], self.down)

    @classmethod
    def penalty(cls, adapters: Sequence["Adapter"]) -> Tensor | None:
        """The mean of `||F F^T - I||_F` over all factors (eq. 4). Calibrated, F are the factors over the root of their
        number of columns, and `SLOWER`."""
        if adapters[0].config.orthogonality == 0:
            return None
        unit = 1 / SLOWER if adapters[0].calibrated else 1.0
        factors = [unit * factor for adapter in adapters for factor in (adapter.up.mT, adapter.down)]
        return adapters[0].config.orthogonality * distance_from_orthonormal(factors, adapters[0].calibrated)

    @classmethod
    def after_step(cls, adapters: Sequence["Adapter"], step: int, steps: int) -> list[nn.Parameter]:
        """Components are chosen again every `interval` steps, and finally at the end of the second phase, or at the
        next step that is not skipped."""
        config = adapters[0].config
        begin, end = config.phases(steps)
        if step <= end:
            observe([pair for adapter in adapters for pair in adapter.watched()])
        if step >= end or (step > begin and step % config.interval == 0):
            most, least = sum(a.config.rank for a in adapters), sum(a.config.target for a in adapters)
            choose(adapters, budget(step, begin, end, most, least), step >= end)
        return []

    @classmethod
    def replanned(cls, adapters: Sequence["Adapter"], step: int, before: int, now: int) -> str:
        """Both plans are equal up to the first component that would have been dropped at another step."""
        config = adapters[0].config
        (begin, end), (later, last) = config.phases(before), config.phases(now)
        if step >= end:
            return f"the ranks of the layers were final after step {end}, and are kept"
        most, least = sum(a.config.rank for a in adapters), sum(a.config.target for a in adapters)
        steps = range(1, step + 1)
        if all(budget(s, begin, end, most, least) == budget(s, later, last, most, least) for s in steps):
            return ""
        return f"the rank budget followed a schedule of {before} steps until now, and follows one of {now} from here on"

    def score(self) -> Tensor:
        """Importance of each component `(r)`: of its gain, and the means over column and row (eq. 7)."""
        factors = self.up_importance.score().mean(0) + self.down_importance.score().mean(1)
        return self.gain_importance.score() + factors

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up")
        if terms.up is None or terms.down is None:
            return
        refuse_larger(terms.down.shape[0], self.config.rank)
        left, values, right = linalg.product_svd(terms.up, terms.down)
        rows, columns = (SLOWER * math.sqrt(n) if self.calibrated else 1.0 for n in (layer.out_features, layer.fan_in))
        with torch.no_grad():
            self.gain.zero_()
            self.up[:, : len(values)] = rows * left
            self.down[: len(values)] = columns * right
            self.gain[: len(values)] = values / (rows * columns * self.factor.to(values))

    def export_terms(self, W: Tensor) -> base.Terms:
        """The remaining components; a single one of zeros if there is none. On the meta device all: the file's size is
        then the largest it can be."""
        gains, up, down = self.gains(), self.up, self.down
        if not gains.is_meta:
            there = gains.nonzero().flatten() if gains.any() else torch.zeros(1, dtype=torch.long, device=gains.device)
            gains, up, down = gains[there], up[:, there], down[there]
        return base.Terms(up=gains * up, down=down)

    def curves(self) -> dict[str, Tensor]:
        gains = self.gains().detach()
        return {"rank": (gains != 0).sum().to(gains.dtype)}


def distance_from_orthonormal(factors: Sequence[Tensor], by_length: bool) -> Tensor:
    """The mean of `||F F^T - I||_F` over factors `F (r, n)`, those of equal shape together; `by_length`: of
    `F / sqrt(n)`."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for factor in factors:
        groups.setdefault(factor.shape, []).append(factor)
    sums = []
    for (rank, length), group in groups.items():
        stack = torch.stack(group)
        gram = stack @ stack.mT / (length if by_length else 1)
        sums.append((gram - torch.eye(rank, dtype=gram.dtype, device=gram.device)).flatten(1).norm(dim=1).sum())
    return torch.stack(sums).sum() / len(factors)


def observe(pairs: Sequence[tuple[nn.Parameter, Importance]]) -> None:
    """Take the parameters' gradients into account (eq. 8 to 10)."""
    seen = [(parameter, parameter.grad, importance) for parameter, importance in pairs if parameter.grad is not None]
    means, spreads = [importance.mean for *_, importance in seen], [importance.spread for *_, importance in seen]
    now = torch._foreach_mul([parameter for parameter, *_ in seen], [gradient for _, gradient, _ in seen])
    torch._foreach_abs_(now)
    torch._foreach_lerp_(means, now, 1 - SMOOTHING)
    torch._foreach_sub_(now, means)
    torch._foreach_abs_(now)
    torch._foreach_lerp_(spreads, now, 1 - SMOOTHING)


def budget(step: int, begin: int, end: int, most: int, least: int) -> int:
    """How many components there are after `step` (eq. 12): `most` up to `begin`, `least` from `end` on."""
    if step <= begin or step >= end:
        return most if step < end else least
    return int(least + (most - least) * ((end - step) / (end - begin)) ** 3)


def choose(adapters: Sequence[Adapter], count: int, for_good: bool) -> None:
    """Keep the `count` most important components of all layers together, and set the gains of the others to zero. A
    final choice is kept."""
    if torch.cat([adapter.kept for adapter in adapters]).sum() <= count:
        return
    scores = torch.cat([adapter.score() for adapter in adapters])
    chosen = torch.zeros_like(scores)
    chosen[scores.sort(descending=True, stable=True).indices[:count]] = 1
    for adapter, mask in zip(adapters, chosen.split([len(adapter.gain) for adapter in adapters]), strict=True):
        adapter.gain.mul_(mask)
        if for_good:
            adapter.kept.copy_(mask)
