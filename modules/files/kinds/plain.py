"""Whole tensors: a difference, or a weight that replaces the old one; also those of norm layers."""

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "full difference"

SUFFIXES = {".diff": "diff", ".w_norm": "diff", ".set_weight": "set_weight"}
WEIGHT = ".weight"
"""The suffix of layers that peft saves in full; see `kinds.grouped`."""
MARKS = (frozenset({"diff"}), frozenset({"set_weight"}))


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`; a norm layer's vector is `(out, 1)`."""
    tensor = matrix(parts)
    return tensor.shape[0], tensor.shape[1]


def rank(parts: dict[str, Tensor]) -> int | None:
    """None: these have no rank."""
    return None


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """A full difference."""
    given = matrix(parts).to(W.dtype)
    return Terms(difference=given - W if "set_weight" in parts else given)


def matrix(parts: dict[str, Tensor]) -> Tensor:
    """What is given, as `(out, fan_in)`."""
    tensor = parts["set_weight"] if "set_weight" in parts else parts["diff"]
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
