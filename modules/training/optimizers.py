"""The optimizers: for each a class with the options that apply to it, and how it is made from them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch.optim import Optimizer

from modules.preset.section import Section, option

Rates = tuple[tuple[str, float], ...]
"""Options, with their factors, through which some layers learn at another rate than others."""


class Options(Section):
    """What all optimizers have in common.

    `build(groups, lr)` takes groups `{"params": list[Parameter], "lr_scale": float, "decay": bool}` and gives an
    optimizer whose groups keep their full learning rate as `initial_lr`.
    """

    highest_lr: ClassVar[float] = 0.1
    """A learning rate above this one is a mistake, not a choice."""

    block: ClassVar[int] = 0
    """How parameters may be laid side by side for it (see `Flat`): 1 where each number is stepped by itself, more where
    that many numbers share something."""

    averages: ClassVar[bool] = False
    """The optimizer averages weights itself, so a falling learning rate would be applied twice."""

    weight_decay: float = option(0.01, why="the usual value", ge=0, le=1)
    """Decoupled weight decay: per step, weights shrink by this times the learning rate. Magnitudes never decay."""

    def problems(self, lr: float, device_type: str, rates: Rates = ()) -> list[str]:
        """Sentences about what cannot work: `lr` is training.learning_rate, `device_type` as in `torch.device`."""
        if lr <= self.highest_lr:
            return []
        return [
            f"training.learning_rate is {lr:g}, but with this optimizer nothing above {self.highest_lr:g} can train: "
            "try 1e-4 (rates near 1 are for the optimizer prodigy only)."
        ]


def _groups(groups: list[dict], lr: float, weight_decay: float) -> list[dict[str, Any]]:
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


class _Moments(Options):
    """An optimizer that averages gradients and squared gradients as Adam does."""

    beta1: float = option(0.9, why="the usual value", group="Averages", advanced=True, gt=0, lt=1)
    """Decay of the average gradient."""

    beta2: float = option(0.999, why="the usual value", group="Averages", advanced=True, ge=0, lt=1)
    """Decay of the average squared gradient."""

    eps: float = option(1e-8, why="far below usual gradients", group="Averages", advanced=True, gt=0, le=1)
    """Added to the root of the average squared gradient."""


class _EightBit(Options):
    """An optimizer of bitsandbytes: states of tensors with 4096 elements and more are kept in 8 bits."""

    block: ClassVar[int] = 256
    paged: ClassVar[bool] = False
    unpaged_name: ClassVar[str] = ""

    def problems(self, lr: float, device_type: str, rates: Rates = ()) -> list[str]:
        found = super().problems(lr, device_type, rates)
        if self.paged and device_type != "cuda":
            found.append(
                f"optimizer.name is paged_{self.unpaged_name}, which moves its state between GPU and main memory and "
                f"needs CUDA, but the device is {device_type}: use {self.unpaged_name}, which computes the same."
            )
        return found

    def _refuse_unpageable(self, groups: list[dict], lr: float) -> None:
        """bitsandbytes itself would quietly go on without paging."""
        device_type = next(p.device.type for group in groups for p in group["params"])
        if self.paged and device_type != "cuda":
            raise ValueError(self.problems(lr, device_type)[-1])


class _AdamW8bit(_EightBit, _Moments):
    """AdamW with 8-bit states."""

    unpaged_name: ClassVar[str] = "adamw8bit"

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        import bitsandbytes

        self._refuse_unpageable(groups, lr)
        return bitsandbytes.optim.AdamW8bit(
            _groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            is_paged=self.paged,
        )


class AdamW8bit(_AdamW8bit):
    """AdamW with 8-bit states: the usual choice, a quarter of AdamW's memory."""

    name: Literal["adamw8bit"] = "adamw8bit"
    """Optimizer."""


class PagedAdamW8bit(_AdamW8bit):
    """AdamW with 8-bit states that move to main memory when the GPU is full."""

    paged: ClassVar[bool] = True
    name: Literal["paged_adamw8bit"] = "paged_adamw8bit"
    """Optimizer."""


class _Lion8bit(_EightBit):
    """Lion with an 8-bit state (Chen et al. 2023)."""

    highest_lr: ClassVar[float] = 0.03
    unpaged_name: ClassVar[str] = "lion8bit"

    beta1: float = option(0.9, why="the published value", group="Averages", advanced=True, ge=0, lt=1)
    """Weight of the average gradient in the sign that is stepped along."""

    beta2: float = option(0.99, why="the published value", group="Averages", advanced=True, ge=0, lt=1)
    """Decay of the average gradient."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        import bitsandbytes

        self._refuse_unpageable(groups, lr)
        return bitsandbytes.optim.Lion8bit(
            _groups(groups, lr, self.weight_decay), lr=lr, betas=(self.beta1, self.beta2), is_paged=self.paged
        )


class Lion8bit(_Lion8bit):
    """Lion with an 8-bit state: half of AdamW8bit's memory; wants a third to a tenth of its learning rate."""

    name: Literal["lion8bit"] = "lion8bit"
    """Optimizer."""


class PagedLion8bit(_Lion8bit):
    """Lion with an 8-bit state that moves to main memory when the GPU is full."""

    paged: ClassVar[bool] = True
    name: Literal["paged_lion8bit"] = "paged_lion8bit"
    """Optimizer."""


class _AdEMAMix8bit(_EightBit, _Moments):
    """AdEMAMix with 8-bit states (Pagliardini et al. 2024)."""

    unpaged_name: ClassVar[str] = "ademamix8bit"

    beta3: float = option(0.9999, why="the published value", group="Averages", advanced=True, gt=0, lt=1)
    """Decay of the slow average gradient."""

    alpha: float = option(5.0, why="the published value", group="Averages", advanced=True, ge=0, le=100)
    """Weight of the slow average beside the fast one."""

    slow_warmup: int | None = option(
        None, why="off: a LoRA is trained in fewer steps than the slow average needs", unit="steps", advanced=True, ge=1
    )
    """Steps over which alpha and beta3 rise to their values."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        import bitsandbytes

        self._refuse_unpageable(groups, lr)
        return bitsandbytes.optim.AdEMAMix8bit(
            _groups(groups, lr, self.weight_decay),  # pyright: ignore
            lr=lr,
            betas=(self.beta1, self.beta2, self.beta3),
            alpha=self.alpha,
            t_alpha=self.slow_warmup,
            t_beta3=self.slow_warmup,
            eps=self.eps,
            is_paged=self.paged,
        )


class AdEMAMix8bit(_AdEMAMix8bit):
    """AdEMAMix with 8-bit states: a second, slow average of the gradient; for long runs."""

    name: Literal["ademamix8bit"] = "ademamix8bit"
    """Optimizer."""


class PagedAdEMAMix8bit(_AdEMAMix8bit):
    """AdEMAMix with 8-bit states that move to main memory when the GPU is full."""

    paged: ClassVar[bool] = True
    name: Literal["paged_ademamix8bit"] = "paged_ademamix8bit"
    """Optimizer."""


class AdamW(_Moments):
    """AdamW with float32 states: nothing is rounded."""

    block: ClassVar[int] = 1

    name: Literal["adamw"] = "adamw"
    """Optimizer."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. Fused on CUDA: element by element, so it is deterministic."""
        fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
        return torch.optim.AdamW(
            _groups(groups, lr, self.weight_decay), lr=lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=fused
        )


class Adafactor(Options):
    """Adafactor (Shazeer and Stern 2018): one number per row and column instead of one per weight."""

    name: Literal["adafactor"] = "adafactor"
    """Optimizer."""

    beta2_decay: float = option(-0.8, why="the published value", group="Averages", advanced=True, ge=-1, lt=0)
    """The average squared gradient forgets at step t with weight t to this power."""

    eps: float = option(1e-15, why="the published 1e-30 for squared gradients", group="Averages", advanced=True, gt=0)
    """Least root of the average squared gradient."""

    least_scale: float = option(
        1.0, why="adapters start at zero and would hardly move with the published 0.001", advanced=True, gt=0, le=1
    )
    """A tensor moves per step by the learning rate times its root mean square, but at least times this."""

    clip: float = option(1.0, why="the published value", group="Stability", advanced=True, gt=0)
    """A tensor's update is scaled down to this root mean square."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        return torch.optim.Adafactor(
            _groups(groups, lr, self.weight_decay),
            lr=lr,
            beta2_decay=self.beta2_decay,
            eps=(self.eps, self.least_scale),
            d=self.clip,
        )


class Prodigy(_Moments):
    """Prodigy (Mishchenko and Defazio 2023): finds the learning rate itself; training.learning_rate is a factor."""

    highest_lr: ClassVar[float] = 10.0
    lowest_lr: ClassVar[float] = 0.1

    name: Literal["prodigy"] = "prodigy"
    """Optimizer."""

    first_lr: float = option(
        1e-6, why="the published value", group="Estimate", advanced=True, title="First LR", gt=0, le=1
    )
    """The first estimate of the learning rate; it only grows from here."""

    growth: float | None = option(None, why="unlimited", group="Estimate", advanced=True, gt=1)
    """The estimate grows at most by this factor per step."""

    factor: float = option(1.0, why="the published value", group="Estimate", gt=0, le=100)
    """The estimate is multiplied by this: below 1 is more careful."""

    bias_correction: bool = option(True, why="as in Adam", group="Estimate", advanced=True)
    """Correct the averages of the first steps."""

    safe_warmup: bool = option(True, why="a warm-up would disturb the estimate", group="Estimate", advanced=True)
    """Keep the warm-up of the learning rate out of the estimate."""

    def problems(self, lr: float, device_type: str, rates: Rates = ()) -> list[str]:
        found = super().problems(lr, device_type, rates)
        if lr < self.lowest_lr:
            found.append(
                f"training.learning_rate is {lr:g}, but prodigy finds the learning rate itself and multiplies it by "
                "this number: set training.learning_rate to 1.0."
            )
        return found + [
            f"{option} gives some layers {factor:g} times the learning rate of others, but prodigy finds one for all "
            "layers: set it to 1.0 or choose another optimizer."
            for option, factor in rates
        ]

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. Raises ValueError for groups of different `lr_scale`, which Prodigy does not know."""
        import prodigyopt

        if len({group["lr_scale"] for group in groups}) > 1:
            raise ValueError(
                "targets.text_encoder_lr_scale or targets.rules give the layers different learning rates, but prodigy "
                "finds one for all layers."
            )
        return prodigyopt.Prodigy(
            _groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            d0=self.first_lr,
            d_coef=self.factor,
            growth_rate=self.growth or float("inf"),
            use_bias_correction=self.bias_correction,
            safeguard_warmup=self.safe_warmup,
        )


class ScheduleFreeAdamW(_Moments):
    """Schedule-free AdamW (Defazio et al. 2024): averages the weights instead of lowering the learning rate."""

    block: ClassVar[int] = 1
    averages: ClassVar[bool] = True

    name: Literal["schedulefree_adamw"] = "schedulefree_adamw"
    """Optimizer."""

    beta1: float = option(0.9, why="the published value", group="Averages", advanced=True, gt=0, lt=1)
    """How far the training weights lie between the last weights (0) and their average (1)."""

    late_weight: float = option(0.0, why="the published value", group="Averages", advanced=True, ge=0, le=10)
    """Step t counts in the average of the weights with t to this power."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. It comes ready for training; `averaged` is for everything else."""
        import schedulefree

        optimizer = schedulefree.AdamWScheduleFree(
            _groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            r=self.late_weight,
        )
        optimizer.train()
        return optimizer


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
    | ScheduleFreeAdamW,
    Field(discriminator="name"),
]

DEFAULT = AdamW8bit()


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, out of what accelerate's `prepare` has put around it."""
    from accelerate.optimizer import AcceleratedOptimizer

    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def forget(optimizer: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Drop what the optimizer keeps of these parameters: they are as new to it."""
    for parameter in parameters:
        unwrapped(optimizer).state.pop(parameter, None)


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the parameters of a schedule-free optimizer are the averaged ones; other optimizers are left alone.

    Afterwards the training weights are back bit for bit. The optimizer's own way back is a linear interpolation that
    rounds, so a run with sample pictures would differ from one without.
    """
    optimizer = unwrapped(optimizer)
    if not type(optimizer).__module__.startswith("schedulefree."):
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
