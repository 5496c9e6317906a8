"""Names and shapes of an adapter file's tensors.

A key is the layer's name in the host's spelling (`Model.export_key`) and one of these suffixes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from modules.adapters.layers import Layer

ALPHA = 1.0
"""The one alpha of every file. diffusers mis-scales files whose alphas differ (export.md 1.5), so all other scales
are folded into the factors; 1 keeps the factors of small updates well inside half precision's range."""


@dataclass(frozen=True)
class Names:
    """Suffixes of a layer's tensors; empty where the format has none."""

    up: str
    down: str
    magnitude: str
    alpha: str
    difference: str

    def all(self) -> set[str]:
        """Every suffix of the format."""
        return {self.up, self.down, self.magnitude, self.alpha, self.difference} - {""}


KOHYA = Names(".lora_up.weight", ".lora_down.weight", ".dora_scale", ".alpha", ".diff")
PEFT = Names(".lora_B.weight", ".lora_A.weight", ".lora_magnitude_vector.weight", "", "")


def factor_tensors(names: Names, layer: Layer, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """`up (out, r)` and `down (r, fan_in)` in the shapes of files, with alpha where the format has it."""
    rank = down.shape[0]
    scale = ALPHA / rank if names.alpha else 1.0
    up, down = balanced(up / scale, down)
    if layer.kind == "conv":
        up, down = layer.native_up(up), layer.native(down)
    alpha = {names.alpha: torch.tensor(ALPHA)} if names.alpha else {}
    return {names.up: up, names.down: down, **alpha}


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each component's largest entry equal in both factors, away from fp16's limits."""
    above, below = up.abs().amax(dim=0), down.abs().amax(dim=1)
    factor = torch.where((above > 0) & (below > 0), (below / above).sqrt(), 1.0)
    return up * factor, down / factor.unsqueeze(1)


def magnitude_tensor(magnitude: Tensor, axis: str, dimensions: int) -> Tensor:
    """`(out)` as `[out, 1(, 1, 1)]`, `(channels)` as `[1, in(, 1, 1)]`; float32."""
    # One dimension would crash ComfyUI, or give an outer product on a square layer (export.md 2.1).
    shape = [1] * dimensions
    shape[0 if axis == "output" else 1] = -1
    return magnitude.float().view(shape)


def stored(tensors: dict[str, Tensor], names: Names, dtype: torch.dtype, layer: str) -> dict[str, Tensor]:
    """The tensors as the file stores them: factors and differences in `dtype`, magnitudes and alpha in float32.

    Raises ValueError naming `layer` where a value is not finite or beyond the range of `dtype`.
    """
    return {
        suffix: _cast(tensor, torch.float32 if suffix in (names.magnitude, names.alpha) else dtype, layer)
        for suffix, tensor in tensors.items()
    }


def _cast(tensor: Tensor, dtype: torch.dtype, layer: str) -> Tensor:
    largest = tensor.abs().max().item()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{layer}: the trained update has values that are not finite; the training has diverged")
    if largest > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{layer}: the update has values up to {largest:.3g}, beyond the range of {name}; "
            "choose export.dtype float32"
        )
    return tensor.detach().to("cpu", dtype).contiguous()
