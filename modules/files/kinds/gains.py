"""Factors of the rows or channels alone (IA3): LyCORIS' `W (1 + gain)`, and peft's `W gain`, which also scales the bias
if it is on the outputs."""

import re

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "IA3"

WEIGHT, ON_INPUT = ".weight", ".on_input"
"""LyCORIS' suffixes. The first is a gain only beside the second; see `kinds.grouped`."""

SUFFIXES = {ON_INPUT: "on_input", ".ia3_l": "factors"}
MARKS = (frozenset({"gain", "on_input"}), frozenset({"factors"}))


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, None)`, or `(None, fan_in)` where the tensors say that they are a linear layer's inputs."""
    if "gain" in parts:
        gain = parts["gain"]
        if parts["on_input"].numel() != 1:
            raise ValueError(f"its on_input has {parts['on_input'].numel()} values; the file is damaged")
        if not parts["on_input"].any():
            return gain.numel(), None
        return None, gain.numel() if gain.dim() == 1 else None
    factors = parts["factors"]
    if factors.dim() < 2 or factors.numel() != max(factors.shape[:2]):
        raise ValueError(f"its factors are {tuple(factors.shape)} and should be one row or column; the file is damaged")
    if factors.dim() > 2:  # a convolution's are along the second dimension, for inputs and outputs alike
        return None, None
    return (None, factors.numel()) if factors.shape[0] == 1 else (factors.numel(), None)


def rank(parts: dict[str, Tensor]) -> int | None:
    """None: these have no rank."""
    return None


def axis(parts: dict[str, Tensor], layer: Layer, about: About) -> str:
    """Whether the outputs or the inputs are multiplied. Raises ValueError for a number of factors that matches
    neither."""
    if "gain" in parts:
        return "input" if parts["on_input"].any() else "output"
    count, sides = parts["factors"].numel(), {"input": layer.channels, "output": layer.out_features}
    fits = [side for side, size in sides.items() if size == count]
    if parts["factors"].dim() == 2:
        fits = [side for side in fits if (side == "input") == (parts["factors"].shape[0] == 1)]
    elif len(fits) > 1:
        fits = ["input" if _is_listed(about) else "output"]
    if not fits:
        raise ValueError(f"it has {count} factors, but the layer has {layer.channels} inputs and {layer.out_features} "
                         "outputs; the file is for another model")
    return fits[0]


def _is_listed(about: About) -> bool:
    """Whether peft's options name the layer among those whose inputs are multiplied."""
    listed = about.option("feedforward_modules", None)
    if isinstance(listed, str):
        try:
            return bool(re.fullmatch(listed, about.name))
        except re.error as error:
            raise ValueError(f"feedforward_modules in its options is {listed!r}, which is not a valid "
                             "pattern") from error
    return isinstance(listed, list) and any(about.name.endswith(str(end)) for end in listed)


def factors(parts: dict[str, Tensor], W: Tensor) -> Tensor:
    """The factors, `(n)`."""
    return 1 + parts["gain"].flatten().to(W.dtype) if "gain" in parts else parts["factors"].flatten().to(W.dtype)


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """Magnitudes: the base's norms times the factors."""
    along, found = axis(parts, layer, about), factors(parts, W)
    lengths = W.norm(dim=1)
    if along == "input":
        lengths = W.unflatten(1, (layer.channels, layer.kernel)).norm(dim=(0, 2))
    if len(found) != len(lengths):
        raise ValueError(f"it has {len(found)} factors along the {along}, but the layer has {len(lengths)}; the file "
                         "is for another model")
    return Terms(magnitude=found * lengths, axis=along)


def of_bias(parts: dict[str, Tensor], layer: Layer, base: Tensor | None, about: About) -> Tensor | None:
    """The change of the layer's bias `base (out)`: peft multiplies the layer's output."""
    if base is None or "factors" not in parts or axis(parts, layer, about) == "input":
        return None
    return base * (parts["factors"].flatten().to(base) - 1)
