"""DOFT (DoRA-OFT): `W' = diag(exp(l)) W R^T`, a rotation and a magnitude per output (OneTrainer pull request 1335).

Rotation keeps row norms, so `exp(l)` is the relative magnitude itself and no norm is computed.

Or `W' = diag(exp(l)) R W`, the rotation of the output first (LyCORIS' Diag-OFT with rescale). Rows of `R W` have other
norms than W's, and `exp(l)` is relative to those of `R W`; again no norm is computed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base
from modules.adapters.layers import Layer
from modules.adapters.rotation import RotatedConfig, derive_all, rotation


class Config(RotatedConfig):
    """DOFT: a rotation of the layer's input or output, and a magnitude per output feature."""

    method: Literal["doft"] = "doft"
    """Rotates the input of each layer and scales its outputs, with equal step sizes for both."""


class Adapter(base.Adapter):
    """`y = exp(l) * base(x R)` or `exp(l) * (base(x) R^T)`, bias apart; parameter `magnitude (out)`: the log-ratio l in
    units of the buffer `unit ()`."""

    kinds = ("linear", "conv")
    undecayed = ("magnitude",)
    moves_zero = False

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.rotation = rotation(config, layer, parts=2)
        self.magnitude = nn.Parameter(torch.zeros(layer.out_features))
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor(1 / math.sqrt(2) if config.step_size == "calibrated" else 1.0))

    def log_ratio(self) -> Tensor:
        """`l`."""
        return self.unit * self.magnitude

    def weight(self, W: Tensor) -> Tensor:
        return self.rotation.rotate(W) * self.log_ratio().exp().unsqueeze(1)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return self.derive_all([(self, layer)])[0]

    @classmethod
    def derive_all(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        magnitudes: list[Tensor] = [adapter.log_ratio() for adapter, _ in pairs]
        gains = torch.expm1(torch.cat(magnitudes)).split([len(magnitude) for magnitude in magnitudes])
        return derive_all([adapter.rotation for adapter, _ in pairs], gains)

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return self.rotation(x, layer, derived)

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "rotation", "magnitude")
        if terms.axis == "input":
            raise ValueError("the file has a magnitude along the input, but the run has one along the output")
        self.rotation.start_from(terms)
        if terms.magnitude is None:
            return
        with torch.no_grad():
            norms = self.rotation.rotate(layer.dense()).norm(dim=1)
            ratio = torch.where(norms > 0, terms.magnitude.to(norms) / norms, 1.0)
            if (ratio <= 0).any():
                raise ValueError("the file has magnitudes that are not positive, which this method cannot represent")
            self.magnitude.copy_(ratio.log() / self.unit)

    def export_terms(self, W: Tensor) -> base.Terms:
        wanted = self.rotation.rotate(W).norm(dim=1) * self.log_ratio().exp()
        return replace(self.rotation.export_terms(W), magnitude=wanted, axis="output")

    def curves(self) -> dict[str, Tensor]:
        return {"magnitude": self.log_ratio().detach().abs().mean(), "rotation": self.rotation.turned()}
