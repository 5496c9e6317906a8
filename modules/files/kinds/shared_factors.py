"""peft's VeRA: `W + diag(rows) B diag(ranks) A`, with one random pair `A`, `B` of the largest layer for all layers."""

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "VeRA"

SUFFIXES = {".vera_lambda_b": "vera_rows", ".vera_lambda_d": "vera_ranks"}
SHARED = {".vera_A": "vera_A", ".vera_B": "vera_B"}
"""Suffixes of the tensors that all layers share."""
MARKS = (frozenset({"vera_rows", "vera_ranks"}),)
PARTS = ("vera_rows", "vera_ranks", "vera_A", "vera_B")


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, None)`: the inputs are the first of those in `A`."""
    if not {"vera_A", "vera_B"} <= parts.keys():
        raise ValueError("it is a VeRA without its random projections (vera_A, vera_B), which are needed to compute "
                         "its weights; save it again with save_projection, or merge it in peft")
    rows, ranks, A, B = (parts[part] for part in PARTS)
    if A.dim() != 2 or B.dim() != 2 or len(B) < rows.numel() or min(len(A), B.shape[1]) < ranks.numel():
        raise ValueError("its tensors do not match its projections; the file is damaged")
    return rows.numel(), None


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the pair."""
    return parts["vera_ranks"].numel()


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """The layer's part of the pair, with its factors."""
    rows, ranks, A, B = (parts[part].to(W.dtype) for part in PARTS)
    if A.shape[1] < layer.fan_in:
        raise ValueError(f"its projection is for {A.shape[1]} inputs, but the layer has {layer.fan_in}; the file is "
                         "for another model")
    up = rows.flatten()[:, None] * B[: rows.numel(), : ranks.numel()]
    return Terms(up=up, down=ranks.flatten()[:, None] * A[: ranks.numel(), : layer.fan_in])
