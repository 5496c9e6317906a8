"""Optimizers of the package pytorch_optimizer that have options of their own here; all others are in `packaged`."""

from typing import ClassVar, Literal

from torch.optim import Optimizer

from modules.preset.section import option
from modules.training.optimizer_options import Moments, Options, torch_groups
from modules.training.packaged import apart


class Muon(Moments):
    """Muon (Jordan et al. 2024) with the step size of Moonlight (Liu et al. 2025): the step of a matrix is its momentum
    with all singular values equal. What is no matrix gets AdamW. Needs a learning rate as AdamW does."""

    keeps_gradients: ClassVar[bool] = False

    name: Literal["muon"] = "muon"
    """Optimizer."""

    momentum: float = option(0.95, why="the published value", group="Averages", ge=0, lt=1)
    """Weight of the past in a matrix' average gradient."""

    nesterov: bool = option(True, why="as published", group="Averages", advanced=True)
    """Take the step from the average gradient as it would be one step later."""

    iterations: int = option(5, why="the published value", advanced=True, ge=1, le=20)
    """Newton-Schulz iterations, which make the singular values equal."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        from pytorch_optimizer import Muon as Original

        made = apart(groups, self.weight_decay, lr)
        for group in made:
            if not group["use_muon"]:
                group.update(betas=(self.beta1, self.beta2), eps=self.eps)
        return Original(
            made, lr=lr, momentum=self.momentum, nesterov=self.nesterov, ns_steps=self.iterations, use_adjusted_lr=True
        )


class Came(Options):
    """CAME (Luo et al. 2023): Adafactor whose steps are smaller where they change much from step to step."""

    name: Literal["came"] = "came"
    """Optimizer."""

    beta1: float = option(0.9, why="the published value", group="Averages", advanced=True, gt=0, lt=1)
    """Decay rate of the average step."""

    beta2: float = option(0.999, why="the common default", group="Averages", advanced=True, ge=0, lt=1)
    """Decay rate of the second moment (average squared gradient)."""

    beta3: float = option(0.9999, why="the published value", group="Averages", advanced=True, ge=0, lt=1)
    """Decay rate of the instability (average squared deviation of steps from their average)."""

    clip: float = option(1.0, why="the published value", group="Stability", advanced=True, gt=0)
    """Update clipping: a larger root mean square (RMS) of a tensor's update is scaled down to this value."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        from pytorch_optimizer import CAME

        return CAME(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2, self.beta3),
            clip_threshold=self.clip,
        )


class StableAdamW(Moments):
    """StableAdamW (Wortsman et al. 2023): AdamW with Adafactor's update clipping; needs no gradient clipping."""

    name: Literal["stable_adamw"] = "stable_adamw"
    """Optimizer."""

    beta2: float = option(0.99, why="the published value", group="Averages", advanced=True, ge=0, lt=1)
    """Decay rate of the second moment (average squared gradient)."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        from pytorch_optimizer import StableAdamW as Original

        return Original(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            kahan_sum=False,  # adapters are in float32
        )
