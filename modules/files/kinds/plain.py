"""Whole tensors: a difference, or a weight that takes the old one's place; also those of norm layers."""

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "full difference"

SUFFIXES = {".diff": "diff", ".w_norm": "diff", ".set_weight": "set_weight"}
MARKS = (frozenset({"diff"}), frozenset({"set_weight"}))


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`; a norm layer's vector is `(out, 1)`."""
    tensor = parts.get("set_weight", parts.get("diff"))
    assert tensor is not None
    return tensor.shape[0], tensor[0].numel()


def rank(parts: dict[str, Tensor]) -> int | None:
    """None: these have no rank."""
    return None


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """A full difference."""
    if "set_weight" in parts:
        return Terms(difference=parts["set_weight"].flatten(1).to(W.dtype) - W)
    return Terms(difference=parts["diff"].flatten(1).to(W.dtype))
