"""Forward and backward passes of adapted layers with minimal memory traffic.

Composed of torch's own operations, a low-rank layer would read and write its output once per term, and keep
intermediate results for the backward pass. Here the terms are added up in place, and gradients of the gains are
computed from tensors that are needed anyway. `x` is the layer's input, `y` its output; all floating-point work is in
`x`'s dtype.
"""

from typing import Any

import torch
from torch import Tensor

from modules.adapters import linalg


def low_rank(
    layer: Any, x: Tensor, up: Tensor, down: Tensor, scale: float = 1.0,
    excess_in: Tensor | None = None, excess_out: Tensor | None = None, active: Tensor | None = None,
) -> Tensor:
    """`(1 + excess_out) base(x (1 + excess_in)) + scale * up (active down(x)) + bias`, of a linear or convolution
    `layer`.

    `up (out, r)`, `down (r, fan_in)`, `excess_in (channels)`, `excess_out (out)`, `active (n, r)` for the n rows of x,
    without a gradient. Kept for the backward pass: `x`, `active down(x)`, and with `excess_out` the result itself.
    """
    x = in_compute_dtype(x)
    return _LowRank.apply(x, up, down, excess_in, excess_out, active, layer, scale)  # pyright: ignore


def by_row(factors: Tensor, h: Tensor, features: int) -> Tensor:
    """`factors (n, q)` in the dtype of `h`, shaped to multiply its n rows, whose q features are in the dimension
    `features`: 1 or -1."""
    middle = [1] * (h.dim() - 2)
    shape = (len(h), *middle, factors.shape[1]) if features == -1 else (len(h), factors.shape[1], *middle)
    return factors.to(h.dtype).view(shape)


def features_of(layer: Any) -> int:
    """The dimension of a layer's inputs and outputs that has the features."""
    return 1 if layer.kind == "conv" else -1


def scaled(layer: Any, x: Tensor, excess_out: Tensor | None) -> Tensor:
    """`(1 + excess_out) base(x) + bias`. Saved for the backward pass: the result, nothing without `excess_out`."""
    return _LowRank.apply(in_compute_dtype(x), None, None, None, excess_out, None, layer, 1.0)  # pyright: ignore


def in_compute_dtype(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast gives matrix products, if it is on."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def by_weight(layer: Any, x: Tensor, excess_in: Tensor | None, excess_out: Tensor | None) -> bool:
    """Whether it is cheaper to scale the weight than what goes through it: the layer sees more positions than it has
    rows or columns. Not in compiled code, where a scaling is fused into the operation before."""
    if torch.compiler.is_compiling() or (excess_in is None and excess_out is None):
        return False
    positions = x.numel() // layer.channels
    return positions >= layer.kernel * (layer.out_features if excess_in is not None else layer.channels)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down, excess_in, excess_out, active, layer, scale):
        bias, h = layer.base.bias, None
        ctx.by_weight = by_weight(layer, x, excess_in, excess_out)
        if ctx.by_weight:
            y = layer.through(x, layer.gained(x.dtype, excess_in, excess_out), bias)
        else:
            inner = x if excess_in is None else layer.scale_in(x, excess_in)
            y = layer.through(inner, layer.weight_in(x.dtype), bias)  # with a gain of 1 it is the base's own output
            if excess_out is not None:
                y.addcmul_(y, layer.spread_out(excess_out, y))
                if bias is not None:
                    y.sub_(layer.spread_out(excess_out * bias.to(excess_out.dtype), y))
        if up is not None:
            h = layer.project(x, down)
            if active is not None:
                h.mul_(by_row(active, h, features_of(layer)))
            layer.expand_into(y, h, up.to(x.dtype), scale)
        ctx.layer, ctx.scale, ctx.shape = layer, scale, x.shape
        ctx.save_for_backward(
            x if up is not None or excess_in is not None else None, h, up, down, excess_in, excess_out,
            None if excess_out is None else y, active,
        )
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, h, up, down, excess_in, excess_out, y, active = ctx.saved_tensors
        layer, scale, needs = ctx.layer, ctx.scale, ctx.needs_input_grad
        grad_up = grad_down = grad_in = grad_out = grad_x = grad_h = None
        if up is not None and (needs[1] or excess_out is not None):
            grad_up = layer.expand_gradient(grad, h, scale)
        if excess_out is not None and needs[4]:
            grad_out = gain_gradient(layer, grad, y, grad_up, up, excess_out)
        if up is not None and (needs[0] or needs[2]):
            grad_h = layer.contract(grad, up.to(grad.dtype), scale)
            if active is not None:
                grad_h.mul_(by_row(active, grad_h, features_of(layer)))
        if needs[0] or (excess_in is not None and needs[3]):
            grad_x, grad_in = _through_base(ctx, grad, x, excess_in, excess_out)
        if grad_h is not None:
            grad_down = layer.project_back(grad_h, x, down, grad_x, needs[2])
        grad_up = grad_up.to(up.dtype) if up is not None and grad_up is not None and needs[1] else None
        return grad_x if needs[0] else None, grad_up, grad_down, grad_in, grad_out, None, None, None


def _through_base(ctx: Any, grad: Tensor, x: Tensor, excess_in: Tensor | None, excess_out: Tensor | None):
    """The gradients of `x` and of `excess_in` through the scaled base alone."""
    layer, grad_in = ctx.layer, None
    if ctx.by_weight:
        grad_x = layer.through_gradient(grad, ctx.shape, layer.gained(grad.dtype, excess_in, excess_out))
    else:
        inner = grad if excess_out is None else torch.addcmul(grad, grad, layer.spread_out(excess_out, grad))
        grad_x = layer.through_gradient(inner, ctx.shape, layer.weight_in(grad.dtype))
    if excess_in is not None and ctx.needs_input_grad[3]:
        grad_in = layer.dots(x, grad_x).to(excess_in.dtype)
        if ctx.by_weight:  # the gain is in grad_x already; a channel that it makes zero has no information about it
            grad_in = _over_gain(grad_in, excess_in, grad.dtype)
    if excess_in is not None and not ctx.by_weight:
        grad_x.addcmul_(grad_x, layer.spread_in(excess_in, grad_x))
    return grad_x, grad_in


def _over_gain(sums: Tensor, excess: Tensor, dtype: torch.dtype) -> Tensor:
    """`sums` over the gains, which were applied in `dtype`: a small one is rounded there."""
    gain = 1 + excess.to(dtype).to(excess.dtype)
    return torch.where(gain == 0, 0.0, sums / torch.where(gain == 0, 1.0, gain))


def gain_gradient(layer: Any, grad: Tensor, y: Tensor, grad_up: Tensor | None, up: Tensor | None, excess: Tensor):
    """`sum(grad * base(x))` per output, from the result `y`: other terms in it are subtracted where they are small."""
    sums = layer.dots(y, grad, layer.base.bias).to(excess.dtype)
    if grad_up is not None and up is not None:
        sums = sums - (grad_up.to(excess.dtype) * up.to(excess.dtype)).sum(1)
    return _over_gain(sums, excess, y.dtype)


def rotated(x: Tensor, excess: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each block of `b` features `x_k <- x_k (I + excess_k)`, `x (..., blocks * b)`, `excess (blocks, b, b)`; a frozen
    `bias (blocks * b)` in `x` is left as it is.

    Kept for the backward pass: `x` without the bias.
    """
    return _Rotated.apply(in_compute_dtype(x), excess, bias)  # pyright: ignore


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, excess, bias):
        plain = x if bias is None else x - bias.to(x.dtype)
        ctx.save_for_backward(plain, excess)
        return _turn(x, plain, excess.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, excess = ctx.saved_tensors
        grad_x = _turn(grad, grad, excess.to(grad.dtype).mT) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        return grad_x, torch.bmm(_blocks(x, excess).mT, _blocks(grad, excess)).to(excess.dtype), None


def _blocks(x: Tensor, excess: Tensor) -> Tensor:
    """A view `(blocks, tokens, b)`."""
    return x.reshape(-1, *excess.shape[:2]).transpose(0, 1)


def _turn(x: Tensor, plain: Tensor, excess: Tensor) -> Tensor:
    """`x` plus each block of `plain` times that of `excess`."""
    if torch.compiler.is_compiling():  # which cannot write through a transposed view, and fuses the sum automatically
        return x + torch.bmm(_blocks(plain, excess), excess).transpose(0, 1).reshape(x.shape)
    turned = x.clone(memory_format=torch.contiguous_format)
    _blocks(turned, excess).baddbmm_(_blocks(plain, excess), excess)
    return turned


def butterfly(y: Tensor, excess: Tensor) -> Tensor:
    """`linalg.butterfly` of `y (n, features, ...)` with orthogonal stages, computed in the dtype of `excess`.

    Kept for the backward pass: the result. The input of each stage is recovered by rotating its output back.
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


def updated(
    x: Tensor, first: Tensor, second: Tensor, excess: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`x (1 + excess) + (x first) second` over the last dimension, `first (n, q)`, `second (q, n)`, `excess (n)`; a
    frozen `bias (n)` in `x` is left as it is.

    Kept for the backward pass: `x` without the bias, and that times `first`.
    """
    return _Updated.apply(in_compute_dtype(x), first, second, excess, bias)  # pyright: ignore


class _Updated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, first, second, excess, bias):
        flat = x.reshape(-1, x.shape[-1])
        plain = flat if bias is None else flat - bias.to(x.dtype)
        h = plain @ first.to(x.dtype)
        ctx.save_for_backward(plain, h, first, second, excess)
        kept = flat if excess is None else torch.addcmul(flat, plain, excess.to(x.dtype))
        return torch.addmm(kept, h, second.to(x.dtype)).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, h, first, second, excess = ctx.saved_tensors
        flat, inner, needs = grad.reshape(-1, grad.shape[-1]), x, ctx.needs_input_grad
        grad_h = flat @ second.to(grad.dtype).mT
        grad_x = grad_excess = None
        if needs[0]:
            kept = flat if excess is None else torch.addcmul(flat, flat, excess.to(grad.dtype))
            grad_x = torch.addmm(kept, grad_h, first.to(grad.dtype).mT).view(grad.shape)
        if excess is not None and needs[3]:
            grad_excess = (flat * inner).sum(0, dtype=excess.dtype)
        grad_first = (inner.mT @ grad_h).to(first.dtype) if needs[1] else None
        return grad_x, grad_first, (h.mT @ flat).to(second.dtype) if needs[2] else None, grad_excess, None
