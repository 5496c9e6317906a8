"""The optimizers: for each a class with the options that apply to it, and how it is made from them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.optim import Optimizer

from modules.preset.section import option
from modules.training import low_rank_moments, packaged, rite
from modules.training.eight_bit import (
    AdamW8bit,
    AdEMAMix8bit,
    Lion8bit,
    PagedAdamW8bit,
    PagedAdEMAMix8bit,
    PagedLion8bit,
)
from modules.training.library_optimizers import Came, Muon, StableAdamW
from modules.training.optimizer_options import Moments, Options, Rates, torch_groups
from modules.training.packaged import AdvOptm, PytorchOptimizer


class AdamW(Moments):
    """AdamW with float32 optimizer state, which is not rounded."""

    block: ClassVar[int] = 1

    name: Literal["adamw"] = "adamw"
    """Optimizer."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. Fused on CUDA: element by element, so it is deterministic."""
        fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
        return torch.optim.AdamW(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=fused,
        )


class Adafactor(Options):
    """Adafactor (Shazeer and Stern 2018): second moment with one value per row and column instead of one per weight."""

    name: Literal["adafactor"] = "adafactor"
    """Optimizer."""

    beta2_decay: float = option(-0.8, why="the published value", group="Averages", advanced=True, ge=-1, lt=0)
    """Decay of the second moment: at step t the new squared gradient has weight t to this power."""

    eps: float = option(
        1e-15,
        why="square root of the published 1e-30, which is for squared gradients",
        group="Averages",
        advanced=True,
        gt=0,
    )
    """Lower bound of the square root of the second moment."""

    least_scale: float = option(
        1.0,
        why="adapters start at zero and would hardly change with the published 0.001",
        advanced=True,
        gt=0,
        le=1,
        title="Minimum scale",
    )
    """An update is the learning rate times the tensor's root mean square (RMS), or times this value if the RMS is
    lower."""

    clip: float = option(1.0, why="the published value", group="Stability", advanced=True, gt=0)
    """Update clipping: a larger root mean square (RMS) of a tensor's update is scaled down to this value."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        return torch.optim.Adafactor(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            beta2_decay=self.beta2_decay,
            eps=(self.eps, self.least_scale),
            d=self.clip,
        )


class Prodigy(Moments):
    """Prodigy (Mishchenko and Defazio 2023): estimates the learning rate; training.learning_rate is a factor on it."""

    highest_lr: ClassVar[float] = 10.0
    lowest_lr: ClassVar[float] = 0.1

    name: Literal["prodigy"] = "prodigy"
    """Optimizer."""

    first_lr: float = option(
        1e-6, why="the published value", group="Estimate", advanced=True, title="First LR", gt=0, le=1
    )
    """Initial estimate of the learning rate. The estimate never decreases."""

    growth: float | None = option(None, group="Estimate", advanced=True, gt=1)
    """Largest factor by which the estimate may grow per step. null: unlimited."""

    factor: float = option(1.0, why="the published value", group="Estimate", gt=0, le=100)
    """Factor on the estimate. A value below 1 gives a lower learning rate."""

    bias_correction: bool = option(True, why="as in Adam", group="Estimate", advanced=True)
    """Correct the bias of the moments in the first steps."""

    safe_warmup: bool = option(
        True, why="a warm-up would distort the estimate", group="Estimate", advanced=True,
        needs="training.warmup or training.warmup_share",
    )
    """Exclude the learning-rate warm-up from the estimate."""

    def problems(self, lr: float, device_type: str, rates: Rates = (), unpaired: str = "") -> list[str]:
        found = super().problems(lr, device_type, rates, unpaired)
        if lr < self.lowest_lr:
            found.append(
                f"training.learning_rate is {lr:g}, but prodigy estimates the learning rate and multiplies it by "
                "this value: set training.learning_rate to 1.0."
            )
        return found + [
            f"{option} gives some layers {factor:g} times the learning rate of others, but prodigy estimates one for "
            "all layers: set it to 1.0 or choose another optimizer."
            for option, factor in rates
        ]

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. Raises ValueError for groups of different `lr_scale`, which Prodigy does not support."""
        import prodigyopt

        if len({group["lr_scale"] for group in groups}) > 1:
            raise ValueError(
                "targets.text_encoder_lr_scale or targets.rules give the layers different learning rates, but prodigy "
                "estimates one for all layers."
            )
        return prodigyopt.Prodigy(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            d0=self.first_lr,
            d_coef=self.factor,
            growth_rate=self.growth or float("inf"),
            use_bias_correction=self.bias_correction,
            safeguard_warmup=self.safe_warmup,
        )


class ScheduleFreeAdamW(Moments):
    """Schedule-free AdamW (Defazio et al. 2024): averages the weights instead of lowering the learning rate."""

    block: ClassVar[int] = 1

    name: Literal["schedulefree_adamw"] = "schedulefree_adamw"
    """Optimizer."""

    beta1: float = option(0.9, why="the published value", group="Averages", advanced=True, gt=0, lt=1)
    """Interpolation at which gradients are computed, between the last weights (0) and their average (1)."""

    late_weight: float = option(0.0, why="the published value", group="Averages", advanced=True, ge=0, le=10)
    """Step t is weighted with t to this power in the average of the weights."""

    @property
    def averages(self) -> bool:
        return True

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. It is in training mode; use `averaged` for everything else."""
        import schedulefree

        optimizer = schedulefree.AdamWScheduleFree(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            r=self.late_weight,
        )
        optimizer.train()
        return optimizer


class Rite(Moments):
    """LoRA-RITE (Yen et al. 2024): steps depend on the product `up down` only, not on its factors. For low-rank methods
    only."""

    name: Literal["lora_rite"] = "lora_rite"
    """Optimizer."""

    weight_decay: float = option(0.0, why="the published value", ge=0, le=1, needs="@decayed")
    """Decoupled weight decay: each step shrinks the weights by this times the learning rate. Magnitudes are never
    decayed."""

    eps: float = option(
        1e-10, why="a step has its size for small gradients too; the authors': 1e-6", group="Averages", advanced=True,
        gt=0, le=1,
    )
    """Added to the square roots of the second moment's eigenvalues."""

    skip_above: float = option(1.0, why="the published value", group="Stability", advanced=True, gt=0)
    """A factor's gradient, made independent of the other factor's size, is skipped where its root mean square (RMS) is
    above this value."""

    clip: float = option(1.0, why="the published value", group="Stability", advanced=True, gt=0)
    """Gradient clipping: the norm of all these gradients together is limited to this value."""

    guard: float = option(
        1.0, why="training with small batches diverges without it", group="Stability", advanced=True, ge=0, le=100
    )
    """Damps the steps of down while up is smaller than this many of its own steps. 0: no damping, as published."""

    def problems(self, lr: float, device_type: str, rates: Rates = (), unpaired: str = "") -> list[str]:
        return super().problems(lr, device_type, rates, unpaired) + [
            f"optimizer.name is {self.name}, which trains pairs of factors, but method {name} has none: choose another "
            "optimizer, such as adamw, or a low-rank method."
            for name in [unpaired]
            if name
        ]

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. Parameters outside of pairs get AdamW."""
        made = torch_groups(groups, lr, self.weight_decay)
        for group, given in zip(made, groups, strict=True):
            group.update(pairs=given["pairs"], calibrated=given["calibrated"])
        return rite.Rite(
            made,
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            skip_above=self.skip_above,
            clip=self.clip,
            guard=self.guard,
        )


class LowRankMoments(Moments):
    """LoRA-Pre (Wang et al. 2026): AdamW with low-rank moments; saves memory where full matrices are trained."""

    name: Literal["lora_pre"] = "lora_pre"
    """Optimizer."""

    moment_rank: int = option(
        16, why="a fraction of a full matrix's moments, and all of a low-rank factor's", ge=1, le=4096
    )
    """Rank of the moments."""

    form: low_rank_moments.Form = option(
        "previous", why="its steps are closest to AdamW's", group="Averages", advanced=True
    )
    """How averages are made of the factors, on which secondary sources disagree. previous: those of the steps before,
    and this gradient with its weight. updated: those with this gradient, and it once more. sequential: those with this
    gradient alone, the second factor fitted to the new first one."""

    ridge: float = option(
        1.0, why="follows the moments best where they pass through zero", group="Averages", advanced=True, ge=0, le=100
    )
    """Regularizes the factors of the moments where they are small against a step's gradient. A larger value changes
    them more slowly."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        return low_rank_moments.LowRankMoments(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            rank=self.moment_rank,
            ridge=self.ridge,
            form=self.form,
        )


OptimizerOptions = Annotated[
    AdamW8bit
    | Lion8bit
    | AdEMAMix8bit
    | PagedAdamW8bit
    | PagedLion8bit
    | PagedAdEMAMix8bit
    | AdamW
    | Adafactor
    | Prodigy
    | ScheduleFreeAdamW
    | Rite
    | LowRankMoments
    | Muon
    | Came
    | StableAdamW
    | PytorchOptimizer
    | AdvOptm,
    Field(discriminator="name"),
]

DEFAULT = AdamW8bit()


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside of accelerate's wrapper."""
    from accelerate.optimizer import AcceleratedOptimizer

    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def forget(optimizer: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Drop the optimizer state of these parameters."""
    for parameter in parameters:
        unwrapped(optimizer).state.pop(parameter, None)


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the parameters of a schedule-free optimizer are the averaged ones; other optimizers are left alone.

    Afterwards the training weights are restored bit for bit. The optimizer itself restores them by an interpolation
    that rounds, so a run with sample pictures would differ from one without.
    """
    optimizer = unwrapped(optimizer)
    if not packaged.averages(type(optimizer)):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    training = [p.detach().clone() for p in parameters]
    optimizer.eval()  # pyright: ignore
    try:
        yield
    finally:
        optimizer.train()  # pyright: ignore
        with torch.no_grad():
            for p, saved in zip(parameters, training, strict=True):
                p.copy_(saved)
