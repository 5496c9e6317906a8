"""Forward and backward passes of adapted layers that move the least memory.

Composed of torch's own operations, a low-rank layer would read and write its output once per term, and keep
intermediate results for the backward pass. Here the terms are added up in place, and gradients of the gains come from
what is there anyway. `x` is what the layer is given, `y` what it returns; all floating-point work is in `x`'s dtype.
"""

from typing import Any

import torch
from torch import Tensor

from modules.adapters import linalg


def low_rank(
    layer: Any, x: Tensor, up: Tensor, down: Tensor, scale: float = 1.0,
    excess_in: Tensor | None = None, excess_out: Tensor | None = None,
) -> Tensor:
    """`(1 + excess_out) base(x (1 + excess_in)) + scale * up down(x) + bias`, of a linear or convolution `layer`.

    `up (out, r)`, `down (r, fan_in)`, `excess_in (channels)`, `excess_out (out)`. Kept for the backward pass: `x`,
    `down(x)`, and with `excess_out` the result itself.
    """
    x = in_compute_dtype(x)
    return _LowRank.apply(x, up, down, excess_in, excess_out, layer, scale)  # pyright: ignore


def scaled(layer: Any, x: Tensor, excess_out: Tensor | None) -> Tensor:
    """`(1 + excess_out) base(x) + bias`. Kept for the backward pass: the result, nothing without `excess_out`."""
    return _LowRank.apply(in_compute_dtype(x), None, None, None, excess_out, layer, 1.0)  # pyright: ignore


def in_compute_dtype(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast gives matrix products, if it is on."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down, excess_in, excess_out, layer, scale):
        inner = x if excess_in is None else layer.scale_in(x, excess_in)
        h = None
        if excess_out is None:
            y = layer.frozen(inner, layer.base.bias)
        else:
            y = layer.frozen(inner, None)
            y.addcmul_(y, layer.spread_out(excess_out, y))
        if up is not None:
            h = layer.project(x, down)
            layer.expand_into(y, h, up.to(x.dtype), scale)
        if excess_out is not None and layer.base.bias is not None:
            y.add_(layer.spread_out(layer.base.bias, y))
        ctx.layer, ctx.scale, ctx.shape = layer, scale, x.shape
        ctx.save_for_backward(
            x if up is not None or excess_in is not None else None, h, up, down, excess_in, excess_out,
            None if excess_out is None else y,
        )
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, h, up, down, excess_in, excess_out, y = ctx.saved_tensors
        layer, scale, needs = ctx.layer, ctx.scale, ctx.needs_input_grad
        grad_up = grad_down = grad_in = grad_out = grad_x = grad_h = None
        if up is not None and (needs[1] or excess_out is not None):
            grad_up = layer.expand_gradient(grad, h, scale)
        if excess_out is not None and needs[4]:
            grad_out = _gain_gradient(layer, grad, y, grad_up, up, excess_out)
        if up is not None and (needs[0] or needs[2]):
            grad_h = layer.contract(grad, up.to(grad.dtype), scale)
            grad_down = layer.project_gradient(grad_h, x, down) if needs[2] else None
        if needs[0] or (excess_in is not None and needs[3]):
            inner = grad if excess_out is None else torch.addcmul(grad, grad, layer.spread_out(excess_out, grad))
            grad_x = layer.frozen_gradient(inner, ctx.shape)
            if excess_in is not None:
                grad_in = layer.sum_channels(grad_x * x).to(excess_in.dtype) if needs[3] else None
                grad_x.addcmul_(grad_x, layer.spread_in(excess_in, grad_x))
            if grad_h is not None:
                layer.project_back_into(grad_x, grad_h, down.to(grad.dtype))
        grad_up = grad_up.to(up.dtype) if up is not None and grad_up is not None and needs[1] else None
        return grad_x if needs[0] else None, grad_up, grad_down, grad_in, grad_out, None, None


def _gain_gradient(layer: Any, grad: Tensor, y: Tensor, grad_up: Tensor | None, up: Tensor | None, excess: Tensor):
    """`sum(grad * base(x))` per output, from the result `y`: what else is in it is taken off where it is small."""
    sums = layer.sum_outputs(grad * y).to(excess.dtype)
    if layer.base.bias is not None:
        sums = sums - layer.base.bias.to(excess.dtype) * layer.sum_outputs(grad).to(excess.dtype)
    if grad_up is not None and up is not None:
        sums = sums - (grad_up.to(excess.dtype) * up.to(excess.dtype)).sum(1)
    gain = 1 + excess
    return torch.where(gain == 0, 0.0, sums / torch.where(gain == 0, 1.0, gain))


def rotated(x: Tensor, excess: Tensor) -> Tensor:
    """Each block of `b` features `x_k <- x_k (I + excess_k)`, `x (..., blocks * b)`, `excess (blocks, b, b)`.

    Kept for the backward pass: `x`.
    """
    return _Rotated.apply(in_compute_dtype(x), excess)  # pyright: ignore


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, excess):
        ctx.save_for_backward(x, excess)
        return _turn(x, excess.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, excess = ctx.saved_tensors
        grad_x = _turn(grad, excess.to(grad.dtype).mT) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        return grad_x, torch.bmm(_blocks(x, excess).mT, _blocks(grad, excess)).to(excess.dtype)


def _blocks(x: Tensor, excess: Tensor) -> Tensor:
    """A view `(blocks, tokens, b)`."""
    return x.reshape(-1, *excess.shape[:2]).transpose(0, 1)


def _turn(x: Tensor, excess: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # which cannot write through a transposed view, and fuses the sum by itself
        return x + torch.bmm(_blocks(x, excess), excess).transpose(0, 1).reshape(x.shape)
    turned = x.clone(memory_format=torch.contiguous_format)
    _blocks(turned, excess).baddbmm_(_blocks(x, excess), excess)
    return turned


def butterfly(y: Tensor, excess: Tensor) -> Tensor:
    """`linalg.butterfly` of `y (n, features, ...)` with orthogonal stages, computed in the dtype of `excess`.

    Kept for the backward pass: the result. What each stage was given is turned back from what it returned.
    """
    return _Butterfly.apply(y, excess)  # pyright: ignore


class _Butterfly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, excess):
        turned = linalg.butterfly(y.to(excess.dtype), excess).to(y.dtype)
        ctx.save_for_backward(turned, excess)
        return turned

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        turned, excess = ctx.saved_tensors
        V, G, found = turned.to(excess.dtype), grad.to(excess.dtype), []
        for stage, one in reversed(list(enumerate(excess))):
            after, pulled = (linalg.butterfly_blocks(t, stage, one.shape[-1]) for t in (V, G))
            before = after + torch.einsum("kij,nki...->nkj...", one, after)
            found.append(torch.einsum("nki...,nkj...->kij", pulled, before))
            pulled = pulled + torch.einsum("kij,nki...->nkj...", one, pulled)
            V, G = (linalg.butterfly_features(t, stage) for t in (before, pulled))
        return G.to(grad.dtype), torch.stack(found[::-1]) if ctx.needs_input_grad[1] else None


def updated(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`x + (x first) second` over the last dimension, `first (channels, q)`, `second (q, channels)`.

    Kept for the backward pass: `x` and `x first`.
    """
    return _Updated.apply(in_compute_dtype(x), first, second)  # pyright: ignore


class _Updated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, first, second):
        flat = x.reshape(-1, x.shape[-1])
        h = flat @ first.to(x.dtype)
        ctx.save_for_backward(x, h, first, second)
        return torch.addmm(flat, h, second.to(x.dtype)).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, h, first, second = ctx.saved_tensors
        flat, needs = grad.reshape(-1, grad.shape[-1]), ctx.needs_input_grad
        grad_h = flat @ second.to(grad.dtype).mT
        grad_x = torch.addmm(flat, grad_h, first.to(grad.dtype).mT).view(grad.shape) if needs[0] else None
        grad_first = (x.reshape(-1, x.shape[-1]).mT @ grad_h).to(first.dtype) if needs[1] else None
        return grad_x, grad_first, (h.mT @ flat).to(second.dtype) if needs[2] else None
