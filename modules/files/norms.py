"""Norms as layers: their changes are read, merged and written like a weight of one column."""

from typing import Any

from torch import Tensor

from modules.adapters.layers import Layer


class NormLayer(Layer):
    """A norm with a weight for each feature: `W (out, 1)`. No method adapts it."""

    kind = "norm"
    fusible = False

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        return len(base.weight), 1

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(1)

    def native(self, matrix: Tensor) -> Tensor:
        return matrix.squeeze(1)
