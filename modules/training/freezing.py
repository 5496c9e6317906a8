"""Layers that are no longer trained after a share of the steps: text encoders with `targets.text_encoder_stop`.

From then on their parameters require no gradient. The optimizer passes over parameters without one: neither moments
nor weight decay change them, and its state for them stays as it is. What is trained in a step follows from the step
alone, so a resumed run does the same.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from modules.adapters.base import Adapted
from modules.preset.schema import Targets
from modules.training.layer_options import in_denoiser, own_settings


@dataclass(frozen=True)
class Stop:
    """Layers that are trained in the first steps only."""

    last: int
    """The number of those steps."""
    names: frozenset[str]
    """Full names of the layers."""
    parameters: tuple[nn.Parameter, ...]

    def apply(self, step: int) -> None:
        """Set what is trained in step `step` (from 0)."""
        if self.parameters[0].requires_grad != (step < self.last):
            for parameter in self.parameters:
                parameter.requires_grad_(step < self.last)


def last_step(share: float, steps: int) -> int:
    """How many of `steps` steps a layer is trained in."""
    return min(steps, max(1, round(share * steps)))


def stops(adapted: Mapping[str, Adapted], shares: Mapping[str, float], steps: int) -> tuple[Stop, ...]:
    """The layers that stop before the last of `steps` steps, by the share of it in which each is trained."""
    found: dict[int, list[str]] = {}
    for name in adapted:
        if (last := last_step(shares[name], steps)) < steps:
            found.setdefault(last, []).append(name)
    return tuple(
        Stop(last, frozenset(names),
             tuple(p for name in names for p in adapted[name].adapter.parameters() if p.requires_grad))
        for last, names in sorted(found.items())
    )


def shares(model: Any, targets: Targets, names: Collection[str]) -> dict[str, float]:
    """The share of all steps in which each of the layers `names` is trained."""
    return {name: one.stop for name, one in own_settings(model, targets, names).items()}


def texts_until(model: Any, names: Collection[str], stopped: Collection[Stop], steps: int) -> int:
    """The step from which on no text encoder is trained."""
    ends = {name: stop.last for stop in stopped for name in stop.names}
    return max((ends.get(name, steps) for name in names if not in_denoiser(model, name)), default=0)


def notes(model: Any, targets: Targets, names: Collection[str], steps: int) -> list[str]:
    """Sentences about ends that are no ends in a training of `steps` steps."""
    idle = sorted({share for share in shares(model, targets, names).values()
                   if share < 1 and last_step(share, steps) == steps})
    return [f"targets.text_encoder_stop {share:g} has no effect: it is after the last of {steps} steps"
            for share in idle]


def replanned(share: Collection[float], step: int, before: int, now: int) -> str:
    """What differs in the first `step` steps between trainings of `before` and `now` steps, in a clause; or empty."""
    for one in sorted(set(share)):
        earlier, later = last_step(one, before), last_step(one, now)
        if min(earlier, step) != min(later, step):
            return f"text encoders stopped after step {earlier}, and would stop after step {later} now"
    return ""
