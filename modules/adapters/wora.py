"""WoRA: `W' = m V / ||V||`, `V = beta W + alpha (scale up down)`, alpha and beta learned (Filtering-WoRA,
arXiv 2404.10292, eq. 4-5).

The gradient goes through the norm in full, as in the authors' code: with a detached norm beta drifts through zero
and the layer changes its sign.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters.decomposed import Decomposed, DecomposedConfig
from modules.adapters.layers import Layer
from modules.preset.section import option


class Config(DecomposedConfig):
    """WoRA: DoRA with learned weights of base and update."""

    method: Literal["wora"] = "wora"
    """DoRA with learned weights of base and update."""

    channel_beta: bool = option(False, why="one weight per layer, as published", advanced=True, needs=".learn_weights")
    """Learn the weight of the base (beta) per channel of the axis instead of per layer."""

    learn_weights: bool = option(True, why="the main idea of the method", advanced=True)
    """Learn alpha and beta. Off: both stay at 1."""


WEIGHT_STEP = 0.1
"""Calibrated, a step of lr changes alpha and beta by this times lr: they multiply `up` and `down`."""


class Adapter(Decomposed):
    """`c = alpha * factor`; parameters `alpha ()` and `beta ()` or `(channels)` / `(out)`, in units of the buffer
    `weight_unit ()`, start at 1."""

    undecayed = ("magnitude", "alpha", "beta")

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.learns_weights = config.learn_weights
        unit = WEIGHT_STEP if config.step_size == "calibrated" else 1.0
        self.weight_unit: Tensor
        self.register_buffer("weight_unit", torch.tensor(unit))
        self.alpha = nn.Parameter(torch.tensor(1 / unit), requires_grad=config.learn_weights)
        beta = torch.ones_like(self.magnitude) if config.channel_beta else torch.tensor(1.0)
        self.beta = nn.Parameter(beta / unit, requires_grad=config.learn_weights)

    def weights(self) -> tuple[Tensor, Tensor]:
        return self.weight_unit * self.alpha * self.factor, self.weight_unit * self.beta

    def curves(self) -> dict[str, Tensor]:
        return {**super().curves(), "alpha": (self.weight_unit * self.alpha).detach(),
                "beta": (self.weight_unit * self.beta).detach().mean()}
