"""OFT: `W' = W R^T` with an orthogonal `R` on the input channels (Qiu et al., arXiv 2306.07280; OFTv2, arXiv
2506.19847), applied to the layer's input; or `W' = R W`, applied to its output without the bias."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from modules.adapters import base
from modules.adapters.layers import Layer
from modules.adapters.rotation import RotatedConfig, derive_all, rotation


class Config(RotatedConfig):
    """OFT: a rotation of the layer's input or output."""

    method: Literal["oft"] = "oft"
    """Rotates the input of each layer, which keeps the angles between neurons (with side output: between channels)."""


class Adapter(base.Adapter):
    """`y = base(x R)`, or `y = base(x) R^T` without the bias in the rotation."""

    kinds = ("linear", "conv")
    moves_zero = False

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.rotation = rotation(config, layer)

    def weight(self, W: Tensor) -> Tensor:
        return self.rotation.rotate(W)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return self.rotation.derive()

    @classmethod
    def derive_all(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        return derive_all([adapter.rotation for adapter, _ in pairs])

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return self.rotation(x, layer, derived)

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "rotation")
        self.rotation.start_from(terms)

    def export_terms(self, W: Tensor) -> base.Terms:
        return self.rotation.export_terms(W)

    def curves(self) -> dict[str, Tensor]:
        return {"rotation": self.rotation.turned()}
