"""What is no longer trained after a share of the steps: text encoders with `targets.text_encoder_stop`, new tokens.

From then on their parameters require no gradient. The optimizer passes over parameters without one: neither moments
nor weight decay change them, and its state for them stays as it is. What is trained in a step follows from the step
alone, so a resumed run does the same.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from modules.adapters.base import Adapted
from modules.preset.schema import Targets, Token
from modules.training import new_tokens
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


def stops(
    parameters: Mapping[str, Sequence[nn.Parameter]], shares: Mapping[str, float], steps: int
) -> tuple[Stop, ...]:
    """What stops before the last of `steps` steps, by its parameters and the share of the steps it is trained in."""
    found: dict[int, list[str]] = {}
    for name in parameters:
        if (last := last_step(shares[name], steps)) < steps:
            found.setdefault(last, []).append(name)
    return tuple(Stop(last, frozenset(names), tuple(p for name in names for p in parameters[name]))
                 for last, names in sorted(found.items()))


def parameters(model: Any, targets: Targets, adapted: Mapping[str, Adapted]) -> Mapping[str, Sequence[nn.Parameter]]:
    """All that is trained: by the layer's full name, or a new token's `text_encoder.<token>`."""
    layers = {name: [p for p in one.adapter.parameters() if p.requires_grad] for name, one in adapted.items()}
    return layers | {_name(one): new_tokens.parameters(model, n) for n, one in enumerate(targets.tokens)}


def _name(one: Token) -> str:
    return f"text_encoder.{one.token}"


def shares(model: Any, targets: Targets, names: Collection[str]) -> dict[str, float]:
    """The share of all steps in which each of the layers `names`, and each new token, is trained."""
    layers = {name: one.stop for name, one in own_settings(model, targets, names).items()}
    return layers | {_name(one): one.stop for one in targets.tokens}


def texts_until(model: Any, names: Collection[str], stopped: Collection[Stop], steps: int) -> int:
    """The step from which on no text encoder is trained."""
    ends = {name: stop.last for stop in stopped for name in stop.names}
    return max((ends.get(name, steps) for name in names if not in_denoiser(model, name)), default=0)


def notes(model: Any, targets: Targets, names: Collection[str], steps: int) -> list[str]:
    """Sentences about ends that are no ends in a training of `steps` steps."""
    idle = sorted({share for share in shares(model, targets, names).values()
                   if share < 1 and last_step(share, steps) == steps})
    return [f"a stop after {share:g} of the steps (targets.text_encoder_stop, encoders or tokens) has no effect: it is "
            f"after the last of {steps} steps" for share in idle]


def replanned(share: Collection[float], step: int, before: int, now: int) -> str:
    """What differs in the first `step` steps between trainings of `before` and `now` steps, in a clause; or empty."""
    for one in sorted(set(share)):
        earlier, later = last_step(one, before), last_step(one, now)
        if min(earlier, step) != min(later, step):
            return f"the text encoders' training stopped after step {earlier}, and would stop after step {later} now"
    return ""
