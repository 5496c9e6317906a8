"""What all optimizers have in common: their options, what can be wrong with them, and torch's parameter groups."""

from typing import Any, ClassVar

from modules.preset.section import Section, option

Rates = tuple[tuple[str, float], ...]
"""Options, with their factors, that give some layers another learning rate than others."""


class Options(Section):
    """What all optimizers have in common.

    `build(groups, lr)` takes the groups of `setup.parameter_groups` and gives an optimizer whose groups keep their full
    learning rate as `initial_lr`.
    """

    highest_lr: ClassVar[float] = 0.1
    """A learning rate above this one is a mistake, not a choice."""

    block: ClassVar[int] = 0
    """How parameters may be joined for it (see `Flat`): 0 not at all, 1 for elementwise updates, more where blocks of
    that many elements share state."""

    keeps_gradients: ClassVar[bool] = True
    """Whether gradients are the same after a step, for methods that look at them."""

    weight_decay: float = option(0.01, why="the common default", ge=0, le=1, needs="@decayed")
    """Decoupled weight decay: each step shrinks the weights by this times the learning rate. Magnitudes are never
    decayed."""

    def problems(self, lr: float, device_type: str, rates: Rates = (), unpaired: str = "") -> list[str]:
        """Sentences about what cannot work: `lr` is training.learning_rate, `device_type` as in `torch.device`, and
        `unpaired` the name of a method whose parameters are not pairs of factors."""
        if lr <= self.highest_lr:
            return []
        return [
            f"training.learning_rate is {lr:g}, which is too high for this optimizer (at most {self.highest_lr:g}): "
            "try 1e-4 (rates near 1 are for optimizers that estimate the rate, such as prodigy)."
        ]

    @property
    def averages(self) -> bool:
        """Whether the optimizer averages the weights, which replaces a learning-rate schedule."""
        return False

    def notes(self, lr: float, device_type: str) -> list[str]:
        """Sentences about what may surprise; arguments as of `problems`."""
        return []


def torch_groups(groups: list[dict], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Torch's parameter groups, each with its own learning rate and weight decay."""
    return [
        {
            "params": group["params"],
            "lr": lr * group["lr_scale"],
            "initial_lr": lr * group["lr_scale"],
            "weight_decay": weight_decay if group["decay"] else 0.0,
        }
        for group in groups
    ]


class Moments(Options):
    """An optimizer that averages gradients and squared gradients as Adam does."""

    beta1: float = option(0.9, why="the common default", group="Averages", advanced=True, gt=0, lt=1)
    """Decay rate of the first moment (average gradient)."""

    beta2: float = option(0.999, why="the common default", group="Averages", advanced=True, ge=0, lt=1)
    """Decay rate of the second moment (average squared gradient)."""

    eps: float = option(1e-8, why="much smaller than typical gradients", group="Averages", advanced=True, gt=0, le=1)
    """Added to the square root of the second moment."""
