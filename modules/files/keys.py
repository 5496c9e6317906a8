"""Names and shapes of an adapter file's tensors.

A key is the layer's name in the host's spelling (`Model.export_key`) and one of these suffixes.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.adapters.layers import Layer

ALPHA = 1.0
"""The one alpha of every file; a pair with a magnitude has its rank instead. diffusers mis-scales files whose alphas
differ (export.md 1.5), so all other scales are folded into the factors; 1 keeps those of small updates well within half
precision's range."""

MIDDLE = ".lora_mid.weight"
"""The core of a convolution's pair in Tucker form, `(r, r, *kernel)`."""
HADAMARD = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
"""LoHa: the entrywise product of two pairs."""
HADAMARD_CORES = (".hada_t1", ".hada_t2")
KRONECKER = (".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2")
"""LoKr: the Kronecker product of two matrices, each whole or as a pair."""
KRONECKER_WHOLE, KRONECKER_PAIR = KRONECKER[3:4], KRONECKER[4:6]
"""The large matrix."""
GENERAL = (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight")
"""GLoRA: `W a1 a2 + b1 b2`."""
BLOCKS = ".oft_blocks"
"""LyCORIS' rotations of the output: `(n, b, b)`, or `(m, n, b, b)` for m butterfly factors."""
RESCALE = ".rescale"
"""Factors of the rows, with `BLOCKS`."""
SET = ".set_weight"
"""The weight itself."""
NORM = ".w_norm"
NORM_BIAS = ".b_norm"
"""Differences of a normalisation's weight and bias."""


def along(vector: Tensor, axis: str, dimensions: int) -> Tensor:
    """`(out)` as `[out, 1(, 1, 1)]`, `(channels)` as `[1, in(, 1, 1)]`; float32 unless it has more digits."""
    # One dimension would crash ComfyUI, or give an outer product on a square layer (export.md 2.1).
    shape = [1] * dimensions
    shape[0 if axis == "output" else 1] = -1
    return precise(vector).view(shape)


def plain(vector: Tensor, axis: str, dimensions: int) -> Tensor:
    """`[n]` for a linear layer, `[1, n, 1(, 1)]` for a convolution: peft transposes that norm."""
    return precise(vector) if dimensions == 2 else precise(vector).view(1, -1, *[1] * (dimensions - 2))


def precise(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Names:
    """Suffixes of a layer's tensors; empty where the format has none."""

    up: str
    down: str
    magnitude: str
    alpha: str
    difference: str
    bias: str = ""
    others: tuple[str, ...] = ()
    """Suffixes of other kinds of tensors that the format has."""
    wholes: tuple[tuple[str, ...], ...] = ()
    """Sets of suffixes that form an update; a layer must have one such set."""
    exact: tuple[str, ...] = ()
    """Suffixes of other tensors that are float32 in every file."""
    magnitude_shape: Callable[[Tensor, str, int], Tensor] = plain
    """`(magnitude (n), axis, dimensions of the weight) -> ` the tensor in the file."""

    def all(self) -> set[str]:
        """Every suffix of the format."""
        return {self.up, self.down, self.magnitude, self.alpha, self.difference, self.bias, *self.others} - {""}

    def is_complete(self, suffixes: Collection[str]) -> bool:
        """Whether a layer's tensors are an update."""
        return any(set(whole) <= set(suffixes) for whole in self.wholes)

    def split(self, key: str) -> tuple[str, str]:
        """A file's key as the layer's name and the suffix, the longest that fits; two empty texts for a foreign key."""
        suffix = max((s for s in self.all() if key.endswith(s)), key=len, default="")
        return (key.removesuffix(suffix), suffix) if suffix else ("", "")


PEFT = Names(".lora_B.weight", ".lora_A.weight", ".lora_magnitude_vector.weight", "", "",
             wholes=((".lora_B.weight", ".lora_A.weight"),), magnitude_shape=plain)

KOHYA = Names(
    ".lora_up.weight", ".lora_down.weight", ".dora_scale", ".alpha", ".diff", ".diff_b",
    others=(PEFT.up, PEFT.down, MIDDLE, *HADAMARD, *HADAMARD_CORES, *KRONECKER, *GENERAL, BLOCKS, RESCALE, SET, NORM,
            NORM_BIAS),
    magnitude_shape=along,
    wholes=((".lora_up.weight", ".lora_down.weight"), PEFT.wholes[0], HADAMARD, GENERAL, (BLOCKS,), (".diff",), (SET,),
            (NORM,), (".diff_b",), (".lokr_w1", ".lokr_w2"), (".lokr_w1_a", ".lokr_w1_b", ".lokr_w2"),
            (".lokr_w1", ".lokr_w2_a", ".lokr_w2_b"), (".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b")),
)
"""kohya's and LyCORIS' names, which ComfyUI and A1111 read; and peft's pair, which they read as well."""


def factor_tensors(
    names: Names, layer: Layer, up: Tensor, down: Tensor, alpha: float = ALPHA
) -> dict[str, Tensor]:
    """`up (out, r)` and `down (r, fan_in)` in the shapes of files, with `alpha` where the format has it."""
    rank = down.shape[0]
    scale = alpha / rank if names.alpha else 1.0
    up, down = balanced(up / scale, down)
    if layer.kind == "conv":
        up, down = layer.native_up(up), layer.native(down)
    return {names.up: up, names.down: down} | ({names.alpha: torch.tensor(alpha)} if names.alpha else {})


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each component's largest entry equal in both factors, to avoid fp16 overflow and
    underflow."""
    if up.is_meta:  # the shapes stay
        return up, down
    above, below = up.abs().amax(dim=0), down.abs().amax(dim=1)
    factor = torch.where((above > 0) & (below > 0), (below / above).sqrt(), 1.0)
    return up * factor, down / factor.unsqueeze(1)


def stored(tensors: dict[str, Tensor], names: Names, dtype: torch.dtype, layer: str) -> dict[str, Tensor]:
    """The tensors as the file stores them: in `dtype`, and in float32 what multiplies the whole weight.

    Raises ValueError naming `layer` where a value is not finite or beyond the range of `dtype`.
    """
    kept = stored_in_full(names)
    return {s: _cast(tensor, torch.float32 if s in kept else dtype, layer) for s, tensor in tensors.items()}


def stored_in_full(names: Names) -> set[str]:
    """Suffixes of the tensors that are float32 in every file (export.md, rule 10)."""
    return {names.magnitude, names.alpha, BLOCKS, RESCALE, *names.exact}


def _cast(tensor: Tensor, dtype: torch.dtype, layer: str) -> Tensor:
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch cannot compute with float8
    largest = tensor.abs().max().item() if tensor.numel() else 0.0
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{layer}: the trained update has non-finite values; the training has diverged")
    if largest > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{layer}: the update has values up to {largest:.3g}, beyond the range of {name}; "
            "choose export.dtype float32"
        )
    return tensor.detach().to("cpu", dtype).contiguous()
