"""A layer after a rotation of its input, with the rotation applied to the weight.

A layer's input is rotated once per position, forward and backward; the weight once per output and kernel position. The
rotation's own gradient needs neither the rotated input nor the gradient of it: with `z = x R` and an orthogonal `R`,
`dL/dz = (dL/dx) R`, so that block by block `dL/dR = x^T (dL/dx) R`.

A rotation over channels and kernel positions cannot be applied to the input at all: its gradient is that of the weight.
"""

from typing import Any

import torch
from torch import Tensor

from modules.adapters import fused


def pays(layer: Any, x: Tensor) -> bool:
    """Whether it is cheaper to rotate the weight than `x`. Compiled code rotates `x`, independent of sizes."""
    return not torch.compiler.is_compiling() and x.numel() // layer.channels >= layer.kernel * layer.out_features


def turned(layer: Any, x: Tensor, excess: Tensor, excess_out: Tensor | None) -> Tensor:
    """`(1 + excess_out) base(x R) + bias`, `R = I + excess`, `excess (blocks, b, b)`, `excess_out (out)`.

    `R` must be orthogonal, or the gradients are wrong. Kept for the backward pass: `x`, and with `excess_out` the
    result.
    """
    return _Turned.apply(fused.in_compute_dtype(x), excess, excess_out, layer)  # pyright: ignore


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, excess, excess_out, layer):
        y = layer.through(x, _weight(layer, x.dtype, excess, excess_out), layer.base.bias)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, excess, excess_out,
                              None if excess_out is None else y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, excess, excess_out, y = ctx.saved_tensors
        layer, needs, grad_excess, grad_out = ctx.layer, ctx.needs_input_grad, None, None
        if excess_out is not None and needs[2]:
            grad_out = fused.gain_gradient(layer, grad, y, None, None, excess_out)
        grad_x = None
        if needs[0] or needs[1]:
            grad_x = layer.through_gradient(grad, ctx.shape, _weight(layer, grad.dtype, excess, excess_out))
        if needs[1]:
            products = layer.block_products(x, grad_x, excess.shape[1]).to(excess.dtype)
            grad_excess = torch.baddbmm(products, products, excess)
        return grad_x if needs[0] else None, grad_excess, grad_out, None


def turned_over_kernel(layer: Any, x: Tensor, excess: Tensor, excess_out: Tensor | None) -> Tensor:
    """`(1 + excess_out) conv(x, W R^T) + bias` of a convolution, `R = I + excess` over channels and kernel positions,
    `excess (blocks, b, b)`, `excess_out (out)`. R need not be orthogonal.

    Kept for the backward pass: `x`.
    """
    x = fused.in_compute_dtype(x)
    if torch.compiler.is_compiling() or not layer.fusible:
        return layer.with_weight(x, layer.matrix(_weight(layer, x.dtype, excess, excess_out)), layer.bias)
    return _TurnedOverKernel.apply(x, excess, excess_out, layer)  # pyright: ignore


class _TurnedOverKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, excess, excess_out, layer):
        ctx.layer = layer
        ctx.save_for_backward(x, excess, excess_out)
        return layer.through(x, _weight(layer, x.dtype, excess, excess_out), layer.base.bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, excess, excess_out = ctx.saved_tensors
        layer, needs, grad_excess, grad_out = ctx.layer, ctx.needs_input_grad, None, None
        weight = layer.matrix(_weight(layer, grad.dtype, excess, excess_out))
        grad_x = torch.zeros_like(x) if needs[0] else None
        found = layer.project_back(grad, x, weight, grad_x, needs[1] or needs[2])
        if excess_out is not None and needs[2]:
            plain = layer.matrix(_weight(layer, grad.dtype, excess, None))
            grad_out = (found * plain).sum(1, dtype=excess_out.dtype)
        if needs[1]:
            frozen = layer.matrix(layer.gained(grad.dtype, None, excess_out))
            found, frozen = (t.unflatten(1, excess.shape[:2]).transpose(0, 1) for t in (found, frozen))
            grad_excess = torch.bmm(found.mT, frozen).to(excess.dtype)
        return grad_x, grad_excess, grad_out, None


def _weight(layer: Any, dtype: torch.dtype, excess: Tensor, excess_out: Tensor | None) -> Tensor:
    """`diag(1 + excess_out) W R^T` in the layer's own shape; of a convolution R is over the channels, or over channels
    and kernel positions if it has as many rows."""
    weight = layer.gained(dtype, None, excess_out)
    blocks = weight.reshape(len(weight), *excess.shape[:2], -1)
    return (blocks + torch.einsum("nij,onjk->onik", excess.to(dtype), blocks)).view_as(weight)
