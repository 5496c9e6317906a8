"""The optimizers of bitsandbytes, with states in 8 bits."""

from typing import ClassVar, Literal

from torch.optim import Optimizer

from modules.preset.section import option
from modules.training.optimizer_options import Moments, Options, Rates, torch_groups


class _EightBit(Options):
    """An optimizer of bitsandbytes: states of tensors with 4096 elements and more are kept in 8 bits."""

    block: ClassVar[int] = 256
    paged: ClassVar[bool] = False
    unpaged_name: ClassVar[str] = ""

    def problems(self, lr: float, device_type: str, rates: Rates = (), unpaired: str = "") -> list[str]:
        found = super().problems(lr, device_type, rates, unpaired)
        if self.paged and device_type != "cuda":
            found.append(
                f"optimizer.name is paged_{self.unpaged_name}, which moves its state between GPU and main memory and "
                f"needs CUDA, but the device is {device_type}: use {self.unpaged_name}, which computes the same."
            )
        return found

    def _refuse_unpageable(self, groups: list[dict], lr: float) -> None:
        """bitsandbytes itself would silently continue without paging."""
        device_type = next(p.device.type for group in groups for p in group["params"])
        if self.paged and device_type != "cuda":
            raise ValueError(self.problems(lr, device_type)[-1])


class _AdamW8bit(_EightBit, Moments):
    """AdamW with 8-bit states."""

    unpaged_name: ClassVar[str] = "adamw8bit"

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        import bitsandbytes

        self._refuse_unpageable(groups, lr)
        return bitsandbytes.optim.AdamW8bit(
            torch_groups(groups, lr, self.weight_decay),
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            is_paged=self.paged,
        )


class AdamW8bit(_AdamW8bit):
    """AdamW with 8-bit optimizer state: the usual choice, with a quarter of AdamW's memory."""

    name: Literal["adamw8bit"] = "adamw8bit"
    """Optimizer."""


class PagedAdamW8bit(_AdamW8bit):
    """AdamW with 8-bit optimizer state that moves to main memory when the GPU is full."""

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
            torch_groups(groups, lr, self.weight_decay), lr=lr, betas=(self.beta1, self.beta2), is_paged=self.paged
        )


class Lion8bit(_Lion8bit):
    """Lion with 8-bit optimizer state: half of AdamW8bit's memory. Use a third to a tenth of its learning rate."""

    name: Literal["lion8bit"] = "lion8bit"
    """Optimizer."""


class PagedLion8bit(_Lion8bit):
    """Lion with 8-bit optimizer state that moves to main memory when the GPU is full."""

    paged: ClassVar[bool] = True
    name: Literal["paged_lion8bit"] = "paged_lion8bit"
    """Optimizer."""


class _AdEMAMix8bit(_EightBit, Moments):
    """AdEMAMix with 8-bit states (Pagliardini et al. 2024)."""

    unpaged_name: ClassVar[str] = "ademamix8bit"

    beta3: float = option(
        0.9999, why="the published value", group="Averages", advanced=True, gt=0, lt=1, needs=".alpha"
    )
    """Decay of the slow average gradient."""

    alpha: float = option(5.0, why="the published value", group="Averages", advanced=True, ge=0, le=100)
    """Weight of the slow average beside the fast one."""

    slow_warmup: int | None = option(
        None, why="off: a LoRA is trained in fewer steps than the slow average needs", unit="steps", advanced=True,
        ge=1, needs=".alpha",
    )
    """Steps over which alpha and beta3 rise to their values."""

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`."""
        import bitsandbytes

        self._refuse_unpageable(groups, lr)
        return bitsandbytes.optim.AdEMAMix8bit(
            torch_groups(groups, lr, self.weight_decay),  # pyright: ignore
            lr=lr,
            betas=(self.beta1, self.beta2, self.beta3),
            alpha=self.alpha,
            t_alpha=self.slow_warmup,
            t_beta3=self.slow_warmup,
            eps=self.eps,
            is_paged=self.paged,
        )


class AdEMAMix8bit(_AdEMAMix8bit):
    """AdEMAMix with 8-bit optimizer state: adds a second, slow average of the gradient. For long runs."""

    name: Literal["ademamix8bit"] = "ademamix8bit"
    """Optimizer."""


class PagedAdEMAMix8bit(_AdEMAMix8bit):
    """AdEMAMix with 8-bit optimizer state that moves to main memory when the GPU is full."""

    paged: ClassVar[bool] = True
    name: Literal["paged_ademamix8bit"] = "paged_ademamix8bit"
    """Optimizer."""
