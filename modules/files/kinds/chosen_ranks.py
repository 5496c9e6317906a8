"""peft's AdaLoRA: `W + scale up diag(values) down`, of which some values were dropped during training."""

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.kinds import low_rank
from modules.files.writer import About

WORDS = "AdaLoRA"

SUFFIXES = {".lora_E": "values"}
MARKS = (frozenset({"up", "down", "values"}),)

TINY = 1e-5
"""peft adds it to the rank."""


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`"""
    if parts["values"].numel() != len(parts["down"]):
        raise ValueError(f"it has {parts['values'].numel()} values for a rank of {len(parts['down'])}; the file is "
                         "damaged")
    return low_rank.shape(parts)


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the pair."""
    return low_rank.rank(parts)


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """The pair, the scale and the values in `up`. peft divides by the initial rank of the training."""
    begun, alpha = about.option("init_r", None), about.option("lora_alpha", None)
    if not isinstance(begun, int | float) or not isinstance(alpha, int | float) or begun < 0:
        raise ValueError("it is a peft AdaLoRA, whose scale is in adapter_config.json; put that file into the same "
                         "folder and rename this one to adapter_model.safetensors")
    up, down = parts["up"].flatten(1).to(W.dtype), parts["down"].flatten(1).to(W.dtype)
    scale = (alpha if alpha > 0 else begun) / (begun + TINY)
    return Terms(up=scale * up * parts["values"].flatten().to(W.dtype), down=down)
