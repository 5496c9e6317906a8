"""DOFT (DoRA-OFT): `W' = diag(exp(l)) W R^T`, a rotation and a magnitude per output (OneTrainer pull request 1335).

Rotation keeps row norms, so `exp(l)` is the relative magnitude itself and no norm is ever computed.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base
from modules.adapters.layers import Layer
from modules.adapters.rotation import BlocksConfig, RotationConfig, rotation


class Config(base.AdapterConfig):
    """DOFT: a rotation of the layer's input and a magnitude per output feature."""

    method: Literal["doft"] = "doft"
    """Rotates the input of each layer and scales its outputs; both steps have the same size."""

    rotation: RotationConfig = BlocksConfig()
    """Which rotations are learned."""


class Adapter(base.Adapter):
    """`y = exp(l) * base(x R)`, bias apart; parameter `magnitude (out)`: the log-ratio l."""

    kinds = ("linear", "conv")
    undecayed = ("magnitude",)

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.rotation = rotation(config.rotation, layer)
        self.magnitude = nn.Parameter(torch.zeros(layer.out_features))

    def weight(self, W: Tensor) -> Tensor:
        return self.rotation.rotate(W) * self.magnitude.exp().unsqueeze(1)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {**self.rotation.derive(), "gain": torch.expm1(self.magnitude)}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        y = layer.out(self.rotation.rotate_in(x, layer, derived))
        return layer.add_bias(layer.scale_out(y, derived["gain"]))

    def export_terms(self, W: Tensor) -> base.Terms:
        wanted = W.norm(dim=1) * self.magnitude.exp()
        return replace(self.rotation.export_terms(W), magnitude=wanted, axis="output")

    def curves(self) -> dict[str, Tensor]:
        return {"magnitude": self.magnitude.detach().abs().mean(), "rotation": self.rotation.turned()}
