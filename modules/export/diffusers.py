"""Files for diffusers: peft's names, without alpha (diffusers refuses it there)."""

from torch import Tensor

from modules.adapters.layers import Layer
from modules.export import keys
from modules.export.forms import Host, Update
from modules.preset.schema import Export

NAMES = keys.PEFT


def holds(axis: str, out: int) -> bool:
    """peft's magnitudes are one per output."""
    return axis == "output"


def notes(forms: set[str]) -> list[str]:
    """Nothing: what is written is exact."""
    return []


HOST = Host("diffusers", ("linear", "conv"), holds, False, notes)


def tensors(update: Update, layer: Layer, W: Tensor, options: Export, magnitudes: bool) -> dict[str, Tensor]:
    """The update's tensors by suffix.

    `magnitudes`: whether any layer of the file has one. peft then gives one to all, set to the base's norm where the
    file says nothing, so a layer without must be given the norm of its own adapted weight.
    """
    assert update.up is not None and update.down is not None
    found = keys.factor_tensors(NAMES, layer, update.up, update.down)
    magnitude = update.magnitude
    if magnitude is None and magnitudes:
        magnitude = (W + (update.up @ update.down).to(W.dtype)).norm(dim=1)
    if magnitude is not None:
        found[NAMES.magnitude] = _vector(magnitude, layer)
    return found


def _vector(magnitude: Tensor, layer: Layer) -> Tensor:
    """`[out]` for a linear layer, `[1, out, 1(, 1)]` for a convolution (peft transposes that norm)."""
    dimensions = layer.base.weight.dim()
    return magnitude.float() if dimensions == 2 else magnitude.float().view(1, -1, *[1] * (dimensions - 2))
