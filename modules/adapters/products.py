"""Products with the frozen weights of layers of equal shape."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.adapters.layers import Layer


def frozen_rows(down: Tensor, layers: Sequence[Layer]) -> Tensor:
    """`W down^T` of each layer, `(layers, r, fan_in) -> (layers, out, r)`."""
    return _FrozenProducts.apply(down, layers, True)  # pyright: ignore


def frozen_cols(up: Tensor, layers: Sequence[Layer]) -> Tensor:
    """`up^T W` of each layer, `(layers, out, r) -> (layers, r, fan_in)`."""
    return _FrozenProducts.apply(up, layers, False)  # pyright: ignore


class _FrozenProducts(torch.autograd.Function):
    """Products with the frozen weights of layers of equal shape. Weights are dequantized one at a time, and again in
    the backward pass: no copy is kept."""

    @staticmethod
    def forward(ctx, factor: Tensor, layers: Sequence[Layer], rows: bool):
        ctx.layers, ctx.rows = layers, rows
        return torch.stack([
            _product(layer, one if rows else one.mT, rows) for layer, one in zip(layers, factor, strict=True)
        ])

    @staticmethod
    def backward(ctx, *grads: Tensor):
        found = [
            _product(layer, one.mT if ctx.rows else one, not ctx.rows)
            for layer, one in zip(ctx.layers, grads[0], strict=True)
        ]
        return torch.stack(found), None, None


def _product(layer: Layer, factor: Tensor, rows: bool) -> Tensor:
    """`W factor^T (out, r)` of `factor (r, fan_in)` if `rows`, else `factor W (r, fan_in)` of `factor (r, out)`."""
    W = layer.dense().to(factor.dtype)
    return W @ factor.mT if rows else factor @ W
