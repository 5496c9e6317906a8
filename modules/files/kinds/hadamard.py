"""LoHa: `W + (alpha / r) (w1_a w1_b) o (w2_a w2_b)`, an elementwise product of two low-rank matrices.

LyCORIS' forward pass applies the scale once; its `get_merged_weight` applies it twice, so files that it merged are
wrong where alpha is not the rank. The forward pass is what was trained, and what ComfyUI computes.
"""

import torch
from torch import Tensor

from modules.adapters.layers import Layer
from modules.adapters.terms import Product, Terms
from modules.files.writer import About

WORDS = "LoHa"

NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
SUFFIXES = {f".{name}": name for name in NAMES}
MARKS = (frozenset(NAMES[:4]),)


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`"""
    pairs = [_pair(parts, number) for number in (1, 2)]
    sizes = {(up.shape[0], down.shape[1]) for up, down in pairs}
    if len(sizes) > 1 or any(up.shape[1] != down.shape[0] for up, down in pairs):
        raise ValueError("its four factors have shapes that do not match; the file is damaged")
    return sizes.pop()


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of one of the two products."""
    return parts["hada_w1_b"].shape[0]


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """The product itself, with the scale in its first factor."""
    (first, second), (third, fourth) = (_pair(parts, number) for number in (1, 2))
    first, second, third, fourth = (t.to(W.dtype) for t in (first, second, third, fourth))
    count = parts["hada_w1_b"].shape[0]
    scale = parts["alpha"].item() / count if "alpha" in parts else about.scale(count)
    return Terms(product=Product("hadamard", (scale * first, second), (third, fourth)))


def _pair(parts: dict[str, Tensor], number: int) -> tuple[Tensor, Tensor]:
    """`(out, r)`, `(r, fan_in)` of one product; a Tucker core goes into the second."""
    up, down = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
    core = parts.get(f"hada_t{number}")
    if core is None:
        return up.flatten(1), down.flatten(1)
    return up.mT, torch.einsum("ij...,jc->ic...", core, down).flatten(1)
