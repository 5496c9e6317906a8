"""Low-rank pairs: `W + (alpha / rank) up down`, with a core between them on Tucker convolutions."""

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "LoRA"

UPS = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight",
       ".lora_B", ".up.weight")
"""The last are XLabs'."""
SUFFIXES = {
    **dict.fromkeys(UPS, "up"),
    **{s.replace("up", "down").replace("lora_B", "lora_A"): "down" for s in UPS},
    ".lora_mid.weight": "mid",
    ".lora_B.bias": "up_bias",
    ".reshape_weight": "reshape",
}
MARKS = (frozenset({"up", "down"}),)


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`"""
    if parts["down"].dim() < 2 or parts["up"].dim() < 2:
        raise ValueError("its factors are not matrices; the file is damaged")
    up, down = parts["up"].flatten(1), parts["down"]
    inner = down.shape[0]
    if "mid" in parts:
        if parts["mid"].shape[:2] != (up.shape[1], inner):
            raise ValueError(f"its core is {tuple(parts['mid'].shape)}, which does not match its factors")
        return up.shape[0], down.shape[1] * parts["mid"][0, 0].numel()
    if up.shape[1] != inner:
        raise ValueError(f"its factors have the ranks {up.shape[1]} and {inner}; the file is damaged")
    return up.shape[0], down[0].numel()


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the pair."""
    return parts["down"].shape[0]


def scale(parts: dict[str, Tensor], about: About) -> float:
    """The factor on the product."""
    count = parts["down"].shape[0]
    return parts["alpha"].item() / count if "alpha" in parts and parts["alpha"].numel() else about.scale(count)


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """The pair, every scale in `up`."""
    up, down = parts["up"].flatten(1).to(W.dtype), parts["down"].to(W.dtype)
    if "mid" in parts:
        core = parts["mid"].to(W.dtype).flatten(2)
        down = (core.transpose(1, 2) @ down.flatten(1)).transpose(1, 2)  # (r, kernel, in) -> (r, in, kernel)
    return Terms(up=scale(parts, about) * up, down=down.flatten(1))
