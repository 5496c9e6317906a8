"""Frozen base layers that are quantized, offloaded or sharded: the only code that knows how weights are stored."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)

BLOCK = 64
"""Weights that share one nf4 scale."""

SCALES = 256
"""nf4 scales that share a second scale: they are quantized to 8 bits."""


def is_packed(layer: Any) -> bool:
    """Whether the layer's weight has to be dequantized, or copied to the device, for each use."""
    return isinstance(layer, PackedLinear)


def is_rounded(layer: Any) -> bool:
    """Whether the layer computes with a rounded weight."""
    return is_packed(layer) and layer.kind != "dense"


def dense_weight(layer: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight a frozen layer computes with, in the layer's own shape.

    Dense layers give their parameter itself; packed ones a new tensor `(out, in)` in `dtype`; sharded ones a new tensor
    that is gathered from all processes.
    """
    return layer.unpacked(dtype) if is_packed(layer) else whole(layer.weight.detach())


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only its shard of `tensor`. Within a layer's own forward and backward pass it has all:
    FSDP gathers the weight for that time."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Any) -> Tensor:
    """`tensor` itself, or gathered where it is sharded. All processes have to call this, in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def anywhere(layer: Any, flag: Tensor) -> bool:
    """Whether `flag ()` is true here, or in another process with a shard of the layer's weight. What depends on it may
    gather that weight, which takes all of them: they must not disagree because of rounding."""
    if not is_sharded(layer.weight):
        return bool(flag)
    agreed = flag.float()
    torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX, layer.weight.device_mesh.get_group())
    return bool(agreed)


def features(layer: Any) -> tuple[int, int]:
    """`(out, in)` of a linear layer; a packed weight's own shape does not say."""
    return layer.out_features, layer.in_features


class FrozenLinear(torch.autograd.Function):
    """`x W^T`, plus a frozen `bias`, for a frozen `W (out, fan_in)` that `dense()` makes again in the backward pass: no
    copy is kept.

    This is weight-only quantization: activations are never rounded, so the layer is exactly the dense one of
    `dense_weight`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dense: Callable[[], Tensor], bias: Tensor | None = None) -> Tensor:
        ctx.dense = dense
        return nn.functional.linear(x, dense().to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        return grad @ ctx.dense().to(grad.dtype), None, None


def product(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T` for a packed layer, plus `bias`; the weight is dequantized to `x`'s half precision or to float32."""
    dense = partial(dense_weight, layer, x.dtype if x.dtype in HALF else torch.float32)
    return FrozenLinear.apply(x, dense, bias)  # pyright: ignore


class Unpacked(nn.Linear):
    """The dense replacement of a packed layer: like it, computes in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return nn.functional.linear(input, self.weight.to(input.dtype), bias)


class PackedLinear(nn.Linear):
    """A frozen linear layer with its weight in nf4, int8 or fp8, or dense in main memory, that is dequantized on its
    device for each use.

    nf4 and int8 are not bitsandbytes' own layers. Theirs round the activations too (int8), repack the weight in place
    on some processors as soon as they run in eval mode (nf4), cast their bias to the input's dtype, and have their
    scales where `network.to(device)` does not find them.
    """

    weight: Any
    bias: Any

    def __init__(self, layer: nn.Linear, kind: str, device: torch.device):
        nn.Module.__init__(self)  # nn.Linear's own would make a dense weight first
        self.out_features, self.in_features = layer.out_features, layer.in_features
        self.kind, self.device, self.dense_dtype = kind, device, layer.weight.dtype
        self.in_memory = False
        packed, scales = PACKERS[kind](layer.weight.detach().to(device))
        self.weight = nn.Parameter(packed, requires_grad=False)
        bias = layer.bias
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().to(device), False))
        for name, scale in scales.items():
            self.register_buffer(name, scale)
        self.train(layer.training)

    def keep_in_memory(self) -> None:
        """From now on the weight and its scales stay in main memory and are copied to the device for each use."""
        self.in_memory = True
        self._move()

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The dense weight `(out, in)` on the layer's device; `dtype` float32, bfloat16 or float16."""
        here = {name: scale.to(self.device, non_blocking=True) for name, scale in self.named_buffers()}
        weight = self.weight.detach().to(self.device, non_blocking=True)
        return UNPACKERS[self.kind](weight, here, (self.out_features, self.in_features), dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The dense layer of `dense_weight`."""
        return product(self, input, self.bias)

    def _apply(self, fn, recurse: bool = True):
        """Casts must not round packed weights and scales. Offloaded ones stay in main memory."""
        moved = fn(torch.empty(0, dtype=self.dense_dtype, device=self.device))
        self.device, self.dense_dtype = moved.device, moved.dtype
        if self.bias is not None:
            self.bias = nn.Parameter(fn(self.bias.detach()), requires_grad=False)
        self._move()
        return self

    def _move(self) -> None:
        if self.kind == "dense":
            self.weight = nn.Parameter(self.weight.detach().to(self.dense_dtype), requires_grad=False)
        self.weight = nn.Parameter(self._at_home(self.weight.detach()), requires_grad=False)
        for name, scale in list(self.named_buffers()):
            setattr(self, name, self._at_home(scale))

    def _at_home(self, tensor: Tensor) -> Tensor:
        """`tensor` where it is kept. From pinned memory copies to the device are asynchronous."""
        if not self.in_memory:
            return tensor.to(self.device)
        tensor = tensor.to("cpu")
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


# -- formats: weight (out, in) to the packed tensor and its scales, and back ------------------------------------------


def _pack_nf4(weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    second: Any = state.state2
    scales = {"code": state.code, "absmax": state.absmax, "offset": state.offset}
    return packed, scales | {"second_code": second.code, "second_absmax": second.absmax}


def _unpack_nf4(packed: Tensor, scales: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    import bitsandbytes.functional as bnb

    second = bnb.QuantState(
        scales["second_absmax"], code=scales["second_code"], blocksize=SCALES, dtype=torch.float32
    )
    code, offset = scales["code"], scales["offset"]
    state = bnb.QuantState(scales["absmax"], torch.Size(shape), code, BLOCK, "nf4", dtype, offset, second)
    return bnb.dequantize_4bit(packed, state)


def _pack_int8(weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    import bitsandbytes.functional as bnb

    packed, rows, _ = bnb.int8_vectorwise_quant(weight.half())
    return packed, {"rows": rows}


def _unpack_int8(packed: Tensor, scales: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    import bitsandbytes.functional as bnb

    return bnb.int8_vectorwise_dequant(packed, scales["rows"]).to(dtype)


def _pack_fp8(weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """e4m3 with a scale per row, so that each row's largest weight is the format's largest value. Stored as bytes,
    because libraries read a network's dtype from its weights."""
    largest = weight.float().abs().amax(1)
    rows = torch.where(largest > 0, largest / torch.finfo(torch.float8_e4m3fn).max, 1.0)
    return (weight.float() / rows[:, None]).to(torch.float8_e4m3fn).view(torch.uint8), {"rows": rows}


def _unpack_fp8(packed: Tensor, scales: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return (packed.view(torch.float8_e4m3fn).float() * scales["rows"][:, None]).to(dtype)


def _pack_dense(weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return weight, {}


def _unpack_dense(packed: Tensor, scales: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return packed.to(dtype)


PACKERS = {"nf4": _pack_nf4, "int8": _pack_int8, "fp8": _pack_fp8, "dense": _pack_dense}
UNPACKERS = {"nf4": _unpack_nf4, "int8": _unpack_int8, "fp8": _unpack_fp8, "dense": _unpack_dense}


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
    new.weight = nn.Parameter(weight.to(dtype_of(layer)), requires_grad=False)
    return new


def pack_linears(network: nn.Module, kind: str, device: torch.device | None = None) -> None:
    """Replace every `nn.Linear` in `network` by its packed version, kind `nf4`, `int8`, `fp8` or `dense`, in place.

    With `device`, layers are moved and packed there one by one: the dense network never has to fit on it.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and (kind == "dense" or child.weight.numel() >= BLOCK):  # else nothing is saved
                setattr(parent, name, PackedLinear(child, kind, device or child.weight.device))


def keep_in_memory(network: nn.Module) -> None:
    """Keep the weights of all linear layers of `network` in main memory, packed or dense as they are, in place."""
    pack_linears(network, "dense")
    for module in network.modules():
        if isinstance(module, PackedLinear):
            module.keep_in_memory()


def move_own(module: nn.Module, device: torch.device) -> None:
    """Move a module's own weights to `device`, not those of the modules in it. Blocks that are kept in main memory stay
    there."""
    if module._parameters or module._buffers:
        module._apply(lambda tensor: tensor.to(device), recurse=False)


def dtype_of(layer: Any) -> torch.dtype:
    """The dtype of a frozen layer's dense weight; a packed weight's own may be another."""
    return layer.dense_dtype if is_packed(layer) else layer.weight.dtype


def device_of(layer: Any) -> torch.device:
    """The device a frozen layer computes on; its weight may be on another."""
    return layer.device if is_packed(layer) else layer.weight.device
