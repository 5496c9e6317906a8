"""Pre-Diag: `W' = diag(d) W + (alpha / rank) up down`, d learned per output feature ("Calibrating and Rotating",
arXiv 2511.00051). DoRA without its norm: the diagonal acts on the base weight before the update is added.

As in the framework figure of the authors' repository (img/SORA_FrameWork_1.jpg), without published code: a trainable
diagonal on W alone, beside up and down. d starts at 1; here it is `exp(l)`, which makes the same first step but stays
positive, so that every state has an exact file. The bias is not multiplied.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from modules.adapters import base
from modules.adapters.active_rank import ActiveRankConfig
from modules.adapters.diagonal import Diagonal
from modules.adapters.layers import Layer
from modules.adapters.low_rank import LowRankConfig


class Config(LowRankConfig, ActiveRankConfig):
    """Pre-Diag: a low-rank update and a learned scale per output."""

    method: Literal["prediag"] = "prediag"
    """Scales each output of the base weight and adds a low-rank update: DoRA's idea at LoRA's cost."""


class Adapter(Diagonal):
    """`y = exp(l) * base(x) + factor * up (down(x))`, bias apart."""

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer, parts=2)

    def weight(self, W: Tensor) -> Tensor:
        return self.scaled(W)

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        adapters = [adapter for adapter, _ in pairs]
        up = torch.stack([one.factor for one in adapters]).view(-1, 1, 1) * torch.stack([one.up for one in adapters])
        return base.rows_of(excess=torch.expm1(torch.stack([one.log_ratio() for one in adapters])), up=up)

    def export_terms(self, W: Tensor) -> base.Terms:
        return self.scaled_terms(W, self.factor.to(W) * self.up, self.down)
