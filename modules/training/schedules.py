"""How the learning rate changes over a training: a pure function of the step."""

import math

from torch.optim import Optimizer

from modules.preset.schema import Training
from modules.training.optimizers import Options


def factor(options: Training, steps: int, step: int) -> float:
    """What the learning rate is multiplied by in step `step` (0 to `steps` - 1).

    Rises in equal parts to 1 at the last step of the warm-up, then falls to `final_lr` at the last step of all. It is
    never 0 during the warm-up, so that the first step has an effect.
    """
    assert 0 <= step < steps, (step, steps)
    warmup = warmup_steps(options, steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    if options.schedule == "linear":
        return 1 - (1 - options.final_lr) * progress
    if options.schedule == "cosine":
        return options.final_lr + (1 - options.final_lr) * (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def warmup_steps(options: Training, steps: int) -> int:
    """Steps of the warm-up: as set, but a tenth of a training that is not longer than its warm-up (see `notes`)."""
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
    if options.warmup < steps:
        return []
    left = warmup_steps(options, steps)
    instead = f"is shortened to {left} steps" if left > 1 else "is shortened to 1 step" if left else "is left out"
    return [f"training.warmup is {options.warmup} steps, but the training has only {steps}: the warm-up {instead}; "
            "lower it, or train for more steps"]
