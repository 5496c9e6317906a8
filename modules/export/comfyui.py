"""Files for ComfyUI (and Forge, which computes alike)."""

from torch import Tensor

from modules.adapters.layers import Layer
from modules.export import keys
from modules.export.forms import Host, Update, ratio
from modules.preset.schema import Export

NAMES = keys.KOHYA


def holds(axis: str, out: int) -> bool:
    """Both axes; but ComfyUI takes `[1, in]` for an output magnitude where there is a single output."""
    return axis == "output" or out > 1


def notes(forms: set[str]) -> list[str]:
    """Nothing that depends on the forms alone; what depends on the norm is measured, see `other_norms`."""
    return []


def other_norms(options: Export) -> dict[str, str]:
    """The norms that this file was not written for, and which ComfyUI has them."""
    norms = {"original": "as it is today", "adapted": "after its pull request 15458"}
    return {norm: which for norm, which in norms.items() if norm != options.comfyui_norm}


HOST = Host("comfyui", ("linear", "conv", "embedding"), holds, True, notes)


def tensors(update: Update, layer: Layer, W: Tensor, options: Export, magnitudes: bool) -> dict[str, Tensor]:
    """The update's tensors by suffix; `W (out, fan_in)` is the base weight in the layer's own orientation."""
    magnitude = update.magnitude
    if magnitude is not None and update.form.axis == "output" and options.comfyui_norm == "original":
        magnitude = compensated(update, W)
    return assemble(update, layer, W, magnitude)


def compensated(update: Update, W: Tensor) -> Tensor:
    """`magnitude ||W|| / ||V||` `(out)`: ComfyUI divides `V` by the norm of the original weight (export.md 2.1)."""
    assert update.up is not None and update.down is not None and update.magnitude is not None
    V = W + (update.up @ update.down).to(W.dtype)
    return update.magnitude * ratio(W.norm(dim=1), V.norm(dim=1))


def assemble(update: Update, layer: Layer, W: Tensor, magnitude: Tensor | None) -> dict[str, Tensor]:
    """Difference, or factors with alpha and perhaps `magnitude`, in kohya's names."""
    if update.difference is not None:
        difference = update.difference
        return {NAMES.difference: layer.native(difference) if layer.kind == "conv" else difference}
    assert update.up is not None and update.down is not None
    found = keys.factor_tensors(NAMES, layer, update.up, update.down)
    if magnitude is not None:
        found[NAMES.magnitude] = keys.magnitude_tensor(magnitude, update.form.axis, layer.base.weight.dim())
    return found
