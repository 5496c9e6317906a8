"""peft's DeLoRA: `W + (up diag(lambda / (r |up_i| |down_i|)) down) o |W|_column`."""

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "DeLoRA"

NAMES = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
SUFFIXES = {f".{name}": name for name in NAMES}
MARKS = (frozenset(NAMES[:3]),)

SHORTEST = 1e-4
"""peft does not divide by smaller norms."""


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`"""
    up, down = parts["delora_B"], parts["delora_A"]
    if up.dim() != 2 or down.dim() != 2:
        raise ValueError("its factors are not matrices; the file is damaged")
    if up.shape[1] != down.shape[0]:
        raise ValueError(f"its factors have the ranks {up.shape[1]} and {down.shape[0]}; the file is damaged")
    return up.shape[0], down.shape[1]


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the pair."""
    return parts["delora_A"].shape[0]


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """A low-rank pair, all scales folded in."""
    up, down = parts["delora_B"].to(W.dtype), parts["delora_A"].to(W.dtype)
    lengths = up.norm(dim=0).clamp_min(SHORTEST) * down.norm(dim=1).clamp_min(SHORTEST)
    scale = parts["delora_lambda"].to(W.dtype) / (down.shape[0] * lengths)
    columns = parts["delora_w_norm"].to(W.dtype) if "delora_w_norm" in parts else W.norm(dim=0)
    return Terms(up=up * scale, down=down * columns)
