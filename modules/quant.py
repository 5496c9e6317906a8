"""Frozen base layers in packed formats: the only code that knows bitsandbytes' nf4 and int8 layouts."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share one nf4 scale."""

SCALES = 256
"""nf4 scales that share a scale of their own: they are kept in 8 bits."""


def is_packed(layer: Any) -> bool:
    """Whether the layer's weight is stored in a packed format."""
    return isinstance(layer, PackedLinear)


def dense_weight(layer: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight a frozen layer computes with, in the layer's own shape.

    Dense layers give their parameter itself; packed ones a new tensor `(out, in)` in `dtype`.
    """
    return layer.unpacked(dtype) if is_packed(layer) else layer.weight.detach()


def features(layer: Any) -> tuple[int, int]:
    """`(out, in)` of a linear layer; a packed weight's own shape does not say."""
    return layer.out_features, layer.in_features


class FrozenLinear(torch.autograd.Function):
    """`x W^T` for a frozen `W (out, fan_in)` that `dense()` makes anew in the backward pass: no copy is kept.

    For packed weights this is weight-only quantisation: activations are never rounded, so the layer is exactly the
    dense one of `dense_weight`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dense: Callable[[], Tensor]) -> Tensor:
        ctx.dense = dense
        return nn.functional.linear(x, dense().to(x.dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        return grad @ ctx.dense().to(grad.dtype), None


class FrozenTransposed(torch.autograd.Function):
    """`y W` for a frozen `W (out, fan_in)`: the transposed product, with the same memory rule."""

    @staticmethod
    def forward(ctx, y: Tensor, dense: Callable[[], Tensor]) -> Tensor:
        ctx.dense = dense
        return y @ dense().to(y.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        return nn.functional.linear(grad, ctx.dense().to(grad.dtype)), None


class Unpacked(nn.Linear):
    """A packed layer's dense stand-in: like it, computes in the dtype of what it is given."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return nn.functional.linear(input, self.weight.to(input.dtype), bias)


class PackedLinear(nn.Linear):
    """A frozen linear layer that keeps its weight in nf4 or int8 and makes it dense anew whenever it is needed.

    Not bitsandbytes' own layers. Theirs round the activations too (int8), repack the weight in place on some
    processors as soon as they run in eval mode (nf4), cast their bias to whatever comes in, and keep their scales
    where `network.to(device)` does not find them.
    """

    weight: Any
    bias: Any

    def __init__(self, layer: nn.Linear, kind: str, device: torch.device):
        import bitsandbytes.functional as bnb

        nn.Module.__init__(self)  # nn.Linear's own would make a dense weight first
        self.out_features, self.in_features = layer.out_features, layer.in_features
        self.dense_dtype = layer.weight.dtype
        weight = layer.weight.detach().to(device)
        if kind == "nf4":
            packed, state = bnb.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
            second: Any = state.state2
            scales = {"code": state.code, "absmax": state.absmax, "offset": state.offset}
            scales |= {"second_code": second.code, "second_absmax": second.absmax}
        else:
            packed, rows, _ = bnb.int8_vectorwise_quant(weight.half())
            scales = {"rows": rows}
        self.weight = nn.Parameter(packed, requires_grad=False)
        bias = layer.bias
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().to(device), False))
        for name, scale in scales.items():
            self.register_buffer(name, scale)
        self.train(layer.training)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The dense weight `(out, in)`; `dtype` float32, bfloat16 or float16."""
        import bitsandbytes.functional as bnb

        if self.weight.dtype == torch.int8:
            return bnb.int8_vectorwise_dequant(self.weight.data, self.rows).to(dtype)  # pyright: ignore
        scales: Any = self
        second = bnb.QuantState(scales.second_absmax, code=scales.second_code, blocksize=SCALES, dtype=torch.float32)
        shape = torch.Size((self.out_features, self.in_features))
        state = bnb.QuantState(scales.absmax, shape, scales.code, BLOCK, "nf4", dtype, scales.offset, second)
        return bnb.dequantize_4bit(self.weight.data, state)

    def forward(self, input: Tensor) -> Tensor:
        """The dense layer of `dense_weight`."""
        half = input.dtype in (torch.float16, torch.bfloat16)
        dense = partial(dense_weight, self, input.dtype if half else torch.float32)
        y: Any = FrozenLinear.apply(input, dense)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn, recurse: bool = True):
        scales = dict(self.named_buffers())  # they belong to the packed format: a cast must not round them
        stand_in = torch.empty(0, dtype=self.dense_dtype, device=self.weight.device)
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            setattr(self, name, scale.to(self.weight.device))
        self.dense_dtype = fn(stand_in).dtype
        return self


def with_dense_weight(layer: Any, weight: Tensor) -> nn.Module:
    """A frozen copy of `layer` that computes with `weight` (in the layer's shape); `layer` itself is left alone."""
    if is_packed(layer):
        out, fan_in = features(layer)
        with torch.device("meta"):
            new: Any = Unpacked(fan_in, out, bias=layer.bias is not None)
        new.bias = layer.bias
        new.train(layer.training)
    else:
        new = copy.copy(layer)
        new._parameters = dict(layer._parameters)
    dtype = layer.dense_dtype if is_packed(layer) else layer.weight.dtype
    new.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return new


def pack_linears(network: nn.Module, kind: str, device: torch.device | None = None) -> None:
    """Replace every `nn.Linear` in `network` by its packed version, kind `nf4` or `int8`, in place.

    With `device`, one layer after the other is moved and packed there: the dense network never has to fit on it.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child, kind, device or child.weight.device))
