"""peft's low-rank pair of an embedding: `table + scale (B A)^T`, with the tokens as rows of the table."""

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "LoRA"

SUFFIXES = {".lora_embedding_A": "tokens_up", ".lora_embedding_B": "tokens_down"}
MARKS = (frozenset({"tokens_up", "tokens_down"}),)


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(tokens, width)`"""
    up, down = parts["tokens_up"], parts["tokens_down"]
    if up.dim() != 2 or down.dim() != 2 or up.shape[0] != down.shape[1]:
        raise ValueError(f"its factors are {tuple(up.shape)} and {tuple(down.shape)}, which do not match; the file is "
                         "damaged")
    return up.shape[1], down.shape[0]


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the pair."""
    return len(parts["tokens_up"])


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """The pair of the table `W (tokens, width)`."""
    up, down = parts["tokens_up"].mT.to(W.dtype), parts["tokens_down"].mT.to(W.dtype)
    return Terms(up=about.scale(up.shape[1]) * up, down=down)
