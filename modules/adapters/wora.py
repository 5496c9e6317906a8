"""WoRA: `W' = m V / ||V||`, `V = beta W + alpha (scale up down)`, alpha and beta learned (Filtering-WoRA,
arXiv 2404.10292, eq. 4-5).

The gradient goes through the norm in full, as in the authors' code: with a detached norm beta drifts through zero
and the layer changes its sign.

The defaults are those of a LoRA. As published: `first_alpha 8`, `init published`, `magnitude absolute`,
`decay_weights`, raw steps and no `alpha`.
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

    channel_alpha: bool = option(False, why="one weight per layer, as published", advanced=True, needs=".learn_weights")
    """Learn the weight of the update (alpha) per channel of the axis instead of per layer."""

    channel_beta: bool = option(False, why="one weight per layer, as published", advanced=True, needs=".learn_weights")
    """Learn the weight of the base (beta) per channel of the axis instead of per layer."""

    learn_weights: bool = option(True, why="the main idea of the method", advanced=True)
    """Learn alpha and beta. Off: both keep their initial values."""

    first_alpha: float = option(
        1.0, why="the update is that of a LoRA, so that its learning rates apply", group="Start", advanced=True,
        title="Initial alpha", gt=0, le=1000, needs="!.step_size raw",
    )
    """Initial value of the learned weight of the update (alpha), which is a factor on it beside adapter.alpha / rank.
    The authors': 8. Beta starts at 1."""

    init: Literal["kaiming", "gaussian", "orthogonal", "svd", "gradient", "eva", "published"] = option(
        "kaiming", why="as in other trainers", group="Start", advanced=True, title="Initial values"
    )
    """Initial values of down; up starts at zero. kaiming: uniform, as in LoRA's reference code. gaussian: normal with
    standard deviation 1 / rank, as in peft. published: normal with standard deviation 1 / sqrt(rank), as in the
    authors' code. orthogonal: orthonormal rows. svd: the largest right singular vectors of the weight. gradient: the
    directions in which the loss of some training pictures falls fastest, measured before the first step. eva: the
    principal components of the layer's inputs in these pictures, and more of them in layers where they explain more.
    With calibrated steps all are scaled to the same size."""

    decay_weights: bool = option(
        False, why="decay makes steps of alpha and beta larger, and changes nothing else of them", advanced=True,
        needs="optimizer.weight_decay",
    )
    """Apply weight decay to alpha, beta and the changes of the magnitudes too, as in the authors' code; there the
    magnitudes decay towards zero, here towards the base's norms. Off: to up and down alone."""


WEIGHT_STEP = 0.1
"""Calibrated, a step of lr changes alpha and beta by this times lr: they multiply `up` and `down`."""


class Adapter(Decomposed):
    """`c = alpha * factor`; parameters `alpha` and `beta`, each `()` or `(channels)` / `(out)`, in units of the buffer
    `weight_unit ()`. beta starts at 1."""

    undecayed = ("magnitude", "alpha", "beta")

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.learns_weights, self.first = config.learn_weights, config.first_alpha
        if config.decay_weights:
            self.undecayed = ()
        unit = WEIGHT_STEP if config.step_size == "calibrated" else 1.0
        self.weight_unit: Tensor
        self.register_buffer("weight_unit", torch.tensor(unit))
        one = torch.tensor(1.0)
        alpha, beta = (torch.ones_like(self.magnitude) if per_channel else one
                       for per_channel in (config.channel_alpha, config.channel_beta))
        self.alpha = nn.Parameter(config.first_alpha * alpha / unit, requires_grad=config.learn_weights)
        self.beta = nn.Parameter(beta / unit, requires_grad=config.learn_weights)

    def weights(self) -> tuple[Tensor, Tensor]:
        return self.weight_unit * self.alpha * self.factor, self.weight_unit * self.beta

    def curves(self) -> dict[str, Tensor]:
        return {**super().curves(), "alpha": (self.weight_unit * self.alpha).detach().mean(),
                "beta": (self.weight_unit * self.beta).detach().mean()}
