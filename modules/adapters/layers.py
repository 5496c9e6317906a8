"""A frozen base layer as an adapter sees it: the same few operations for linear, convolution and embedding layers.

Throughout, `x` is the layer's input and `y` its output. "Channels" are the input features of a linear layer, the input
channels of a convolution, the tokens of an embedding. Weights are 2-D `(out, fan_in)`, with `fan_in = channels *
kernel`; the kernel positions of one channel are adjacent.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules import quant
from modules.adapters import fused, linalg


class Layer:
    """A linear layer, dense or quantized; and the interface of the other kinds."""

    kind = "linear"

    fusible = True
    """Whether the passes of `fused` exist for it."""

    def __init__(self, base: Any, name: str):
        self.base, self.name = base, name
        self.out_features, self.channels = self.sizes(base)
        self.kernel = self.kernel_numel(base)
        self.fan_in = self.channels * self.kernel
        self._norms: dict[str, Tensor] = {}

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        return quant.features(base)

    @staticmethod
    def kernel_numel(base: Any) -> int:
        return 1

    # -- the layer itself ---------------------------------------------------------------------------------------------

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias `(out)`."""
        return self.base.bias

    def __call__(self, x: Tensor) -> Tensor:
        """The frozen layer with its bias, bit for bit as it is without an adapter."""
        return self.with_weight(x, None, self.bias)

    def adapted(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer with another weight `(out, fan_in)` instead of its own, with its bias."""
        return self.with_weight(x, weight, self.bias)

    def with_weight(self, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """The layer with another weight `(out, fan_in)` instead of its own (None: its own), and this bias."""
        if weight is not None:
            return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if quant.is_packed(self.base):
            return quant.product(self.base, x, bias)
        return F.linear(x, self.base.weight, bias)

    def without_bias(self, y: Tensor) -> Tensor:
        """`y` minus the frozen bias, if there is one."""
        return y if self.bias is None else y - self.spread_out(self.bias, y)

    # -- low-rank branch ----------------------------------------------------------------------------------------------

    def project(self, x: Tensor, down: Tensor) -> Tensor:
        """`x` through `down (r, fan_in)`, with the layer's stride, padding and dilation."""
        return self.with_weight(x, down)

    def expand(self, y: Tensor, up: Tensor) -> Tensor:
        """The projection `y` through `up (out, r)`."""
        return F.linear(y, up.to(y.dtype))

    # -- channel-wise operations --------------------------------------------------------------------------------------

    def scale_in(self, x: Any, excess: Tensor) -> Any:
        """Channel `j` of `x` times `1 + excess[j]`.

        Takes the excess over 1, not the factor: near 1 a half-precision factor would be rounded to 1.
        """
        return torch.addcmul(x, x, self.spread_in(excess, x))

    def scale_out(self, y: Tensor, excess: Tensor) -> Tensor:
        """Feature `i` of `y` times `1 + excess[i]`, and the bias, which `y` has, as it is."""
        return torch.addcmul(y, self.without_bias(y), self.spread_out(excess, y))

    def rotate_in(self, x: Tensor, excess: Tensor) -> Tensor:
        """Each block of `b` channels `x_k <- x_k (I + excess_k)`, `excess (blocks, b, b)`."""
        return fused.rotated(x, excess)

    def update_in(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """`x + (x first) second` over the channels, `first (channels, q)`, `second (q, channels)`."""
        return fused.updated(x, first, second)

    def rotate_out(self, y: Tensor, excess: Tensor) -> Tensor:
        """Each block of `b` features `y_k <- (I + excess_k) y_k`, `excess (blocks, b, b)`, but for the bias in `y`."""
        return fused.rotated(y, excess.mT, self.base.bias)

    def update_out(self, y: Tensor, first: Tensor, second: Tensor, excess: Tensor | None) -> Tensor:
        """`(I + diag(excess) + first second) y` over the features, `first (out, q)`, `second (q, out)`,
        `excess (out)`, but for the bias in `y`."""
        return fused.updated(y, second.mT, first.mT, excess, self.base.bias)

    def flat(self, x: Tensor) -> Tensor:
        """`x` or `y` as `(n, features, ...)`, with the positions, if any, after the features."""
        return x.reshape(-1, x.shape[-1])

    def spread_in(self, vector: Tensor, x: Tensor) -> Tensor:
        """`vector (channels)` in `x`'s dtype, shaped to multiply `x`."""
        return vector.to(x.dtype)

    def spread_out(self, vector: Tensor, y: Tensor) -> Tensor:
        """`vector (out)` in `y`'s dtype, shaped to multiply `y`."""
        return vector.to(y.dtype)

    # -- the passes of `fused`, without a graph ------------------------------------------------------------------------

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with a `weight` in its own shape and `x`'s dtype, into a new tensor."""
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    def through_gradient(self, grad: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        """The gradient of `through`'s input of this `shape`, a new tensor."""
        return grad @ weight

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight in its own shape; the layer's own tensor where that has the dtype."""
        if not quant.is_packed(self.base):
            return self.base.weight.to(dtype)
        return quant.dense_weight(self.base, dtype if dtype in quant.HALF else torch.float32).to(dtype)

    def gained(self, dtype: torch.dtype, excess_in: Tensor | None, excess_out: Tensor | None) -> Tensor:
        """The frozen weight in its own shape, each channel times `1 + excess_in`, each row times `1 + excess_out`."""
        weight = self.weight_in(dtype)
        if excess_in is not None:
            weight = torch.addcmul(weight, weight, self.spread_in(excess_in, weight))
        if excess_out is not None:
            gain = excess_out.to(dtype).view(-1, *[1] * (weight.dim() - 1))
            weight = torch.addcmul(weight, weight, gain)
        return weight

    def expand_into(self, y: Tensor, h: Tensor, up: Tensor, scale: float) -> None:
        """Add `scale * h up^T` to `y`."""
        y.view(-1, self.out_features).addmm_(h.view(-1, h.shape[-1]), up.mT, alpha=scale)

    def expand_gradient(self, grad: Tensor, h: Tensor, scale: float) -> Tensor:
        """The gradient of `up (out, r)` in `expand_into`."""
        return scale * (grad.reshape(-1, self.out_features).mT @ h.reshape(-1, h.shape[-1]))

    def contract(self, grad: Tensor, up: Tensor, scale: float) -> Tensor:
        """The gradient of `h` in `expand_into`."""
        return grad @ (scale * up)

    def project_back(self, grad: Tensor, x: Tensor, down: Tensor, grad_x: Tensor | None, wanted: bool) -> Tensor | None:
        """The gradient of `down (r, fan_in)` in `project`, in its dtype, if it is `wanted`; that of `x` is added to
        `grad_x`."""
        flat = grad.reshape(-1, grad.shape[-1])
        if grad_x is not None:
            grad_x.view(-1, self.channels).addmm_(flat, down.to(grad.dtype))
        return (flat.mT @ x.reshape(-1, x.shape[-1])).to(down.dtype) if wanted else None

    def block_products(self, x: Tensor, grad: Tensor, size: int) -> Tensor:
        """`x_k^T grad_k (blocks, b, b)` of each block of `size` channels, summed over everything else."""
        x, grad = (t.reshape(-1, self.channels // size, size).transpose(0, 1) for t in (x, grad))
        return torch.bmm(x.mT, grad)

    def sums(self, x: Tensor) -> Tensor:
        """Sums of `x` or `y` over everything but the features, in float32 at least."""
        return x.flatten(0, -2).sum(0, dtype=linalg.at_least_float32(x.dtype))

    def dots(self, x: Tensor, grad: Tensor, offset: Tensor | None = None) -> Tensor:
        """`sums((x - offset) * grad)`, `offset` one value per feature."""
        if self.kind == "linear" and linalg.one_pass_pays(x):
            return linalg.column_dots(x.flatten(0, -2), grad.flatten(0, -2), offset)
        found = self.sums(x * grad)
        return found if offset is None else found - offset.to(found.dtype) * self.sums(grad)

    # -- products with the frozen weight ------------------------------------------------------------------------------

    def dense(self) -> Tensor:
        """The frozen weight `(out, fan_in)` in float32 (float64 if the layer is)."""
        weight = quant.dense_weight(self.base)
        return self.matrix(weight if weight.dtype == torch.float64 else weight.float())

    def matrix(self, weight: Tensor) -> Tensor:
        """A weight in the layer's own shape as `(out, fan_in)`."""
        return weight.flatten(1)

    def native(self, matrix: Tensor) -> Tensor:
        """`(out, fan_in)` back in the layer's own shape; also `(r, fan_in)` as a down projection."""
        return matrix

    def native_up(self, up: Tensor) -> Tensor:
        """`(out, r)` in the shape of an up projection beside `native`'s down projection."""
        return up

    def row_norms(self) -> Tensor:
        """`||W_i||`, float64 `(out)`; computed once."""
        return self._norm("rows", lambda weight: weight.norm(dim=1))

    def col_norms(self) -> Tensor:
        """`||W_:j||` per channel, over outputs and kernel positions, float64 `(channels)`; computed once."""
        return self._norm("cols", lambda weight: weight.unflatten(1, (self.channels, self.kernel)).norm(dim=(0, 2)))

    def rms(self) -> float:
        """Root mean square of the weight's entries, the unit of calibrated steps; that of a fresh layer where the
        weight is zero or has no values."""
        norms = self.row_norms()
        found = 0.0 if norms.is_meta else norms.norm().item() / math.sqrt(self.out_features * self.fan_in)
        return found or 1 / math.sqrt(3 * self.fan_in)

    def is_zero(self) -> bool:
        """Whether all of the weight's entries are zero; not of a weight without values."""
        weight = quant.dense_weight(self.base)
        return not weight.is_meta and not weight.any()

    def anywhere(self, flag: Tensor) -> bool:
        """Whether `flag ()` is true, here or in another process that must take part in reading the weight."""
        return quant.anywhere(self.base, flag)

    def forget(self) -> None:
        """Drop the kept norms: the weight is about to be rounded or moved."""
        self._norms = {}

    def _norm(self, name: str, compute) -> Tensor:
        kept = self._norms.get(name)
        device = quant.device_of(self.base)
        if kept is None or kept.device != device:
            kept = self._norms[name] = compute(self.dense().double())
        return kept


class ConvLayer(Layer):
    """A convolution in one, two or three dimensions, without groups. Channel axis is 1."""

    kind = "conv"

    def __init__(self, base: Any, name: str):
        if base.groups != 1:
            raise ValueError(f"{name}: grouped convolutions (groups = {base.groups}) cannot be adapted; exclude it")
        if base.padding_mode != "zeros":
            raise ValueError(f"{name}: padding mode {base.padding_mode!r} cannot be adapted; exclude it")
        super().__init__(base, name)
        self.ones = (1,) * (base.weight.dim() - 2)
        around = [dilation * (size - 1) for dilation, size in zip(base.dilation, base.kernel_size, strict=True)]
        same, self.padding = base.padding == "same", list(base.padding)
        if isinstance(base.padding, str):
            self.padding = [size // 2 if same else 0 for size in around]
        self.fusible = not same or all(size % 2 == 0 for size in around)
        self.conv = (F.conv1d, F.conv2d, F.conv3d)[base.weight.dim() - 3]

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        return base.out_channels, base.in_channels

    @staticmethod
    def kernel_numel(base: Any) -> int:
        return math.prod(base.kernel_size)

    def with_weight(self, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        base = self.base
        kernel = base.weight if weight is None else self.native(weight).to(x.dtype)
        bias = bias if bias is None or weight is None else bias.to(x.dtype)
        return self.conv(x, kernel, bias, base.stride, base.padding, base.dilation)

    def expand(self, y: Tensor, up: Tensor) -> Tensor:
        return self.conv(y, self.native_up(up).to(y.dtype))

    def rotate_in(self, x: Tensor, excess: Tensor) -> Tensor:
        return x + linalg.turn(x, excess)

    def update_in(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return x + self.expand(self.conv(x, self.native_up(first.mT).to(x.dtype)), second.mT)

    def rotate_out(self, y: Tensor, excess: Tensor) -> Tensor:
        return y + linalg.turn(self.without_bias(y), excess.mT)

    def update_out(self, y: Tensor, first: Tensor, second: Tensor, excess: Tensor | None) -> Tensor:
        plain = self.without_bias(y)
        kept = y if excess is None else torch.addcmul(y, plain, self.spread_out(excess, y))
        return kept + self.expand(self.expand(plain, second), first)

    def flat(self, x: Tensor) -> Tensor:
        return x

    def spread_in(self, vector: Tensor, x: Tensor) -> Tensor:
        return vector.to(x.dtype).view(-1, *self.ones)

    def spread_out(self, vector: Tensor, y: Tensor) -> Tensor:
        return vector.to(y.dtype).view(-1, *self.ones)

    # -- the passes of `fused` ----------------------------------------------------------------------------------------

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        base, bias = self.base, None if bias is None else bias.to(x.dtype)
        return self.conv(x, weight, bias, base.stride, base.padding, base.dilation)

    def through_gradient(self, grad: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        shaped = grad.new_empty(1).expand(shape)  # its values are not read
        return self._backward(grad, shaped, weight, (True, False, False))[0]

    def expand_into(self, y: Tensor, h: Tensor, up: Tensor, scale: float) -> None:
        if y.is_contiguous() and h.is_contiguous():
            y.flatten(2).baddbmm_(up.expand(len(y), -1, -1), h.flatten(2), alpha=scale)
        else:
            y.add_(self.expand(h, up), alpha=scale)

    def expand_gradient(self, grad: Tensor, h: Tensor, scale: float) -> Tensor:
        return scale * (grad.flatten(2) @ h.flatten(2).mT).sum(0)

    def contract(self, grad: Tensor, up: Tensor, scale: float) -> Tensor:
        return self.conv(grad, self.native_up((scale * up).mT))

    def project_back(self, grad: Tensor, x: Tensor, down: Tensor, grad_x: Tensor | None, wanted: bool) -> Tensor | None:
        # One call for both: what they share is prepared once.
        found = self._backward(grad, x, self.native(down).to(grad.dtype), (grad_x is not None, wanted, False))
        if grad_x is not None:
            grad_x.add_(found[0])
        return found[1].flatten(1).to(down.dtype) if wanted else None

    def block_products(self, x: Tensor, grad: Tensor, size: int) -> Tensor:
        x, grad = (t.reshape(len(t), -1, size, t[0, 0].numel()) for t in (x, grad))
        return (x @ grad.mT).sum(0)

    def sums(self, x: Tensor) -> Tensor:
        others = [axis for axis in range(x.dim()) if axis != 1]
        return x.sum(others, dtype=linalg.at_least_float32(x.dtype))

    def _backward(self, grad: Tensor, x: Tensor, kernel: Tensor, mask: tuple[bool, bool, bool]):
        """Gradients of `x`, `kernel` and bias in the layer's convolution, those of the `mask`."""
        base, none = self.base, [0] * len(self.ones)
        return torch.ops.aten.convolution_backward(
            grad, x, kernel, None, base.stride, self.padding, base.dilation, False, none, 1, mask
        )

    def native(self, matrix: Tensor) -> Tensor:
        return matrix.unflatten(1, (-1, *self.base.kernel_size))

    def native_up(self, up: Tensor) -> Tensor:
        return up.view(*up.shape, *self.ones)


class EmbeddingLayer(Layer):
    """An embedding, as the linear layer it is on one-hot tokens: `W (out, tokens)` is the transposed table.

    Tokens have no float values to scale, so `scale_in` gives a pair (tokens, gain of each token).
    """

    kind = "embedding"
    fusible = False

    def __init__(self, base: nn.Embedding, name: str):
        if base.max_norm is not None or base.sparse or base.scale_grad_by_freq:
            raise ValueError(f"{name}: embeddings with max_norm, sparse or scale_grad_by_freq cannot be adapted")
        super().__init__(base, name)

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        return base.embedding_dim, base.num_embeddings

    @property
    def bias(self) -> None:
        return None

    def with_weight(self, x: Any, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        tokens, gain = x if isinstance(x, tuple) else (x, None)
        table = self.base.weight if weight is None else weight.mT.to(self.base.weight.dtype)
        y = F.embedding(tokens, table)
        return y if gain is None else y + y * gain.to(y.dtype)

    def scale_in(self, x: Tensor, excess: Tensor) -> Any:
        return x, excess[x].unsqueeze(-1)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def native(self, matrix: Tensor) -> Tensor:
        return matrix.mT


KINDS: dict[type, type[Layer]] = {
    nn.Linear: Layer,
    nn.Conv1d: ConvLayer,
    nn.Conv2d: ConvLayer,
    nn.Conv3d: ConvLayer,
    nn.Embedding: EmbeddingLayer,
}


def as_layer(base: nn.Module, name: str) -> Layer:
    """The `Layer` around a base module. Raises ValueError, naming the layer, if its kind cannot be adapted."""
    for kind, layer in KINDS.items():
        if isinstance(base, kind):
            return layer(base, name)
    raise ValueError(f"{name}: a {type(base).__name__} cannot be adapted; only {', '.join(k.__name__ for k in KINDS)}")
