"""How the learning rate changes over a training: a pure function of the step.

The shapes are those of diffusers and transformers. The warm-up is our own: with theirs the first step has no effect.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.optim import Optimizer

from modules.preset.schema import Training
from modules.training.optimizers import Options

TIMESCALE = 10_000
"""Steps, of the schedule inverse_sqrt without a warm-up, as in transformers."""


def factor(options: Training, steps: int, step: int) -> float:
    """What the learning rate is multiplied by in step `step` (0 to `steps` - 1).

    Rises in equal parts to 1 at the last step of the warm-up, then follows the schedule, which falls to `final_lr` at
    the last step of all (but `inverse_sqrt`). It is never 0 in the warm-up, so that the first step has an effect.
    """
    assert 0 <= step < steps, (step, steps)
    warmup = warmup_steps(options, steps)
    if step < warmup:
        return (step + 1) / warmup
    last = steps - 1 - warmup
    if options.schedule == "constant" or last == 0:
        return 1.0
    if options.schedule == "inverse_sqrt":
        return inverse_sqrt(options.timescale or warmup or TIMESCALE)(step - warmup)
    return options.final_lr + (1 - options.final_lr) * _falling(options, steps, last)(step - warmup)


def _falling(options: Training, steps: int, last: int) -> Callable[[int], float]:
    """The part of a schedule above its end, from 1 at step 0 to 0 at step `last`; of a training of `steps` steps."""
    match options.schedule:
        case "linear":
            return polynomial(last, 1.0)
        case "polynomial":
            return polynomial(last, options.power)
        case "cosine":
            return cosine(last, options.cycles or 0.5)
        case "cosine_with_restarts":
            return restarts(last, options.cycles or 2.0)
        case "warmup_stable_decay":
            return stable_decay(last, min(last, max(1, round(options.decay_share * steps))))
    assert options.schedule == "rex", options.schedule
    return lambda step: rex(step / last, options.rex_curve)


def rex(progress: float, curve: float) -> float:
    """`(1 - p) / (1 - c p)`, falling from 1 to 0 for `p` from 0 to 1. Published for `c = 1/2` (Chen, Wolfe and
    Kyrillidis, arXiv 2107.04197), which is all that pytorch_optimizer has; OneTrainer has 0.9."""
    return (1 - progress) / (1 - curve * progress)


@lru_cache(maxsize=8)
def polynomial(last: int, power: float) -> Callable[[int], float]:
    """Diffusers' polynomial decay from 1 at step 0 to 0 at step `last`."""
    from diffusers.optimization import get_polynomial_decay_schedule_with_warmup as make

    return make(_unit_rate(), 0, last, lr_end=0.0, power=power).lr_lambdas[0]


@lru_cache(maxsize=8)
def cosine(last: int, waves: float) -> Callable[[int], float]:
    """Diffusers' cosine: this many waves from step 0 to step `last`."""
    from diffusers.optimization import get_cosine_schedule_with_warmup as make

    return make(_unit_rate(), 0, last, num_cycles=waves).lr_lambdas[0]


@lru_cache(maxsize=8)
def restarts(last: int, falls: float) -> Callable[[int], float]:
    """Diffusers' cosine with hard restarts: this many falls from step 0 to step `last`."""
    from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup as make

    return make(_unit_rate(), 0, last, num_cycles=falls).lr_lambdas[0]  # pyright: ignore


@lru_cache(maxsize=8)
def stable_decay(last: int, decay: int) -> Callable[[int], float]:
    """Transformers' warm-up, stable, decay without the first: 1, and half a cosine in the `decay` steps to `last`."""
    from transformers.optimization import get_wsd_schedule as make

    return make(_unit_rate(), 0, num_decay_steps=decay, num_training_steps=last).lr_lambdas[0]


@lru_cache(maxsize=8)
def inverse_sqrt(timescale: int) -> Callable[[int], float]:
    """Transformers' `1 / sqrt(1 + step / timescale)`."""
    from transformers.optimization import get_inverse_sqrt_schedule as make

    return make(_unit_rate(), 0, timescale=timescale).lr_lambdas[0]


def _unit_rate() -> Optimizer:
    """What the libraries' schedules are made for: they refer to its learning rate."""
    return torch.optim.SGD([torch.zeros(1)], lr=1.0)


def warmup_steps(options: Training, steps: int) -> int:
    """Steps of the warm-up: as set, but a tenth of a training that is not longer than its warm-up (see `notes`)."""
    if options.warmup_share is not None:
        return int(options.warmup_share * steps)
    return options.warmup if options.warmup < steps else steps // 10


def replanned(options: Training, step: int, before: int, now: int) -> str:
    """What differs in the first `step` steps between trainings of `before` and `now` steps, in a clause; or empty."""
    if all(factor(options, before, done) == factor(options, now, done) for done in range(step)):
        return ""
    last = f"it was {options.learning_rate * factor(options, before, step - 1):.3g} in step {step}"
    if step == now:
        return f"the learning-rate schedule has not reached its end; {last}"
    following = options.learning_rate * factor(options, now, step)
    return (f"the learning rate follows the schedule of {now} steps from here on; {last} and is {following:.3g} in "
            f"step {step + 1}")


def apply(optimizer: Optimizer, value: float) -> None:
    """Set the learning rate of each group to `value` times its full one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * value


def problems(options: Training, optimizer: Options) -> list[str]:
    """Sentences about what cannot work."""
    if optimizer.averages and options.schedule != "constant":
        return [
            f"training.schedule is {options.schedule}, but a schedule-free optimizer replaces the schedule: "
            "set training.schedule to constant or choose another optimizer."
        ]
    return []


def notes(options: Training, steps: int) -> list[str]:
    """Sentences about what is done differently in a training of `steps` steps."""
    if options.warmup_share is not None or options.warmup < steps:
        return []
    left = warmup_steps(options, steps)
    instead = f"is shortened to {left} steps" if left > 1 else "is shortened to 1 step" if left else "is left out"
    return [f"training.warmup is {options.warmup} steps, but the training has only {steps}: the warm-up {instead}; "
            "lower it, or train for more steps"]
