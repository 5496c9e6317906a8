"""The largest norm of an update: kohya's scale_weight_norms, for other methods as in LyCORIS."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from modules.adapters.base import GROUP, Adapter, AdapterConfig
from modules.preset.section import option


class LimitedConfig(AdapterConfig):
    """Options of methods whose update is a product of factors, which can be scaled."""

    max_norm: float | None = option(None, why="updates are not limited", group=GROUP, advanced=True, gt=0)
    """Largest Frobenius norm of the product of a layer's factors, with alpha / rank but without magnitudes. A larger
    one is scaled down after each step, all factors alike, as kohya's scale_weight_norms does with LyCORIS. null: no
    limit."""

    @property
    def limits_norm(self) -> bool:
        return self.max_norm is not None


class Limited(Adapter):
    """An adapter of a config with a largest norm."""

    config: Any

    def limited(self) -> tuple[Tensor, list[nn.Parameter]]:
        """The norm `()` of the product, and its factors."""
        raise NotImplementedError

    @classmethod
    def after_step(cls, adapters: Sequence["Limited"], step: int, steps: int) -> list[nn.Parameter]:
        for adapter in adapters:
            if adapter.config.max_norm is not None:
                norm, factors = adapter.limited()
                share = (adapter.config.max_norm / norm).clamp_max(1) ** (1 / len(factors))
                for factor in factors:
                    factor.mul_(share)
        return []


def pair_norm(up: Tensor, down: Tensor) -> Tensor:
    """The Frobenius norm `()` of `up (out, r) down (r, fan_in)`, from their Gram matrices."""
    return ((up.mT @ up) * (down @ down.mT)).sum().clamp_min(0).sqrt()
