"""DoRA: `W' = m V / ||V||`, `V = W + (alpha / rank) up down` (Liu et al., arXiv 2402.09353, eq. 5)."""

from typing import Literal

from torch import Tensor

from modules.adapters.decomposed import Decomposed, DecomposedConfig
from modules.adapters.layers import Layer
from modules.preset.section import option


class Config(DecomposedConfig):
    """DoRA: learns magnitude and direction of the weight separately."""

    method: Literal["dora"] = "dora"
    """Low-rank update of the weight's direction, and a learned magnitude."""

    norm_gradient: Literal["detached", "full"] = option("detached", why="as published (section 4.3)", advanced=True)
    """detached: the norm is a constant in the backward pass. full: gradients flow through the norm."""


class Adapter(Decomposed):
    """`c = factor`, `beta = 1`."""

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.full_gradient = config.norm_gradient == "full"

    def weights(self) -> tuple[Tensor, Tensor]:
        return self.factor, self.factor.new_tensor(1.0)
