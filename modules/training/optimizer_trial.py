"""What an optimizer can do in a training, tried on a few small parameters: whether it takes steps, resumes bit for bit,
looks at shapes, and follows the learning rate. It costs a few milliseconds, and holds for any version of a package.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modules.training.trees import flatten, unflatten

SHAPES = {"up": (12, 4), "down": (4, 16), "skew": (3, 6), "magnitude": (12,)}
"""Parameters of the trial: a low-rank pair, a rotation's angles, a magnitude."""

STEPS = 12
"""Steps of the trial, half of them before the state is saved. Some optimizers wait for ten before the first."""

Build = Callable[[list[dict]], Optimizer]
"""An optimizer over groups as of `setup.parameter_groups`."""

REASONS = {
    "losure": "it needs a closure, that is a further forward and backward pass in each step",
    "does not require grad": "it needs second derivatives, that is a second backward pass in each step",
    "'list' object has no attribute": "it is made from a whole model instead of parameters",
    "process group": "it works between several processes only",
}
"""What errors of the packages mean, by what they have in them."""


@dataclass(frozen=True)
class Trial:
    """What was found."""

    error: str = ""
    """Why it takes no step; empty if it does."""
    unsaved: str = ""
    """Why its state cannot be saved; empty if it can."""
    resumes: bool = True
    """Whether a resumed training equals an uninterrupted one bit for bit."""
    matrices: bool = False
    """Whether its steps depend on the shapes of parameters."""
    uses_rate: bool = True
    """Whether its steps depend on the learning rate."""
    own_rates: bool = True
    """Whether a later group's learning rate has an effect; some take that of the first group for all."""

    def problems(self, options: Any) -> list[str]:
        """Sentences about what cannot work."""
        name = f"optimizer.algorithm is {options.algorithm}"
        if self.error:
            return [f"{name}, which cannot train here: {self.error}. Choose another optimizer (docs/optimizers.md)."]
        if self.unsaved:
            return [f"{name}, whose state cannot be saved ({self.unsaved}), so a training could not be resumed. Choose "
                    "another optimizer (docs/optimizers.md)."]
        return []

    def notes(self, options: Any) -> list[str]:
        """Sentences about what may surprise."""
        name = f"optimizer.algorithm is {options.algorithm}"
        found = []
        if not self.resumes:
            found.append(f"{name}, which does not resume exactly: a training that is stopped and resumed differs from "
                         "an uninterrupted one")
        if not self.uses_rate:
            found.append(f"{name}, which does not use training.learning_rate: it has no effect")
        return found


def trial(build: Build, device: str) -> Trial:
    """Try the optimizer on `device`, or on the CPU where that is missing. It raises nothing."""
    device = device if device != "cuda" or torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else []):
        try:
            whole, _ = _trained(build, device, STEPS)
        except Exception as error:  # of any package, about anything
            return Trial(error=_told(error))
        try:
            half, optimizer = _trained(build, device, STEPS // 2)
            state = _stored(optimizer)
        except Exception as error:
            return Trial(unsaved=_told(error))
        try:
            resumed = _trained(build, device, STEPS, start=(STEPS // 2, half, state))[0]
        except Exception as error:
            return Trial(unsaved=_told(error))
        faster = _trained(build, device, STEPS, rate=2.0)[0]
        last_faster = _trained(build, device, STEPS, last=2.0)[0]
        flat = _trained(build, device, STEPS, flat=True)[0]
    return Trial(
        resumes=all(map(torch.equal, whole, resumed)),
        matrices=any(not torch.allclose(one.flatten(), two) for one, two in zip(whole, flat, strict=True)),
        uses_rate=not all(map(torch.equal, whole, faster)),
        own_rates=not all(map(torch.equal, whole, last_faster)),
    )


def _trained(
    build: Build,
    device: str,
    steps: int,
    start: tuple[int, list[Tensor], dict] | None = None,
    rate: float = 1.0,
    last: float = 1.0,
    flat: bool = False,
) -> tuple[list[Tensor], Optimizer]:
    """The parameters after `steps` steps, from `start` (step, parameters, state) on, and the optimizer. All learning
    rates are multiplied by `rate`, those of the parameters that do not decay also by `last`."""
    torch.manual_seed(7 if start is None else 8)  # random numbers of torch itself are none that a state keeps
    first = start[0] if start else 0
    values = start[1] if start else [_drawn(shape, -1 - number) for number, shape in enumerate(SHAPES.values())]
    parameters = [nn.Parameter((value.flatten() if flat else value).to(device, copy=True)) for value in values]
    optimizer = build(_groups(parameters, flat))
    if start:
        optimizer.load_state_dict(start[2])
    for step in range(first, steps):
        for number, parameter in enumerate(parameters):
            parameter.grad = 0.01 * _drawn(parameter.shape, 100 * step + number).to(device)
        for group in optimizer.param_groups:
            undecayed = any(one is parameters[-1] or one is parameters[-2] for one in group["params"])
            group["lr"] = rate * (last if undecayed else 1.0) * group["initial_lr"]
        optimizer.step()
    return [parameter.detach().cpu().clone() for parameter in parameters], optimizer


def _groups(parameters: list[nn.Parameter], flat: bool) -> list[dict]:
    """As of `setup.parameter_groups`: the pair decays, the others do not."""
    names = list(SHAPES)
    common = {"lr_scale": 1.0, "calibrated": False}
    pair = {**common, "params": parameters[:2], "names": names[:2], "decay": True, "pairs": [] if flat else [(0, 1)]}
    return [pair, {**common, "params": parameters[2:], "names": names[2:], "decay": False, "pairs": []}]


def _drawn(shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))


def _stored(optimizer: Optimizer) -> dict:
    """The optimizer's state as a training state keeps it: JSON and tensors."""
    tensors: dict[str, Tensor] = {}
    values = json.loads(json.dumps(flatten(optimizer.state_dict(), "", tensors, {})))
    return unflatten(values, tensors)


def _told(error: Exception) -> str:
    """An error of a package in a clause."""
    text = f"{type(error).__name__}: {error}".strip().split("\n")[0].rstrip(".")
    for sign, clause in REASONS.items():
        if sign in text:
            return clause
    return text.removeprefix("AssertionError: .").replace("__init__() missing", "missing")
