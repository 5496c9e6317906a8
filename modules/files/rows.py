"""A layer's weight in blocks of rows, so that only a part of it is in float32 at a time."""

import torch
from torch import Tensor

from modules import quant
from modules.adapters.layers import Layer

BLOCK = 1 << 20
"""Elements of a block."""


def blocks(layer: Layer) -> list[tuple[int, int]]:
    """First and last row of each."""
    step = max(1, BLOCK // layer.fan_in)
    return [(row, min(row + step, layer.out_features)) for row in range(0, layer.out_features, step)]


def dense(layer: Layer, start: int, stop: int) -> Tensor:
    """Some rows of `layer.dense()`, without dequantizing the others; not of an embedding."""
    weight = quant.dense_weight(layer.base)[start:stop]
    return layer.matrix(weight if weight.dtype == torch.float64 else weight.float())
