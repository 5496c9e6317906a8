"""LoKr: `W + scale kron(w1, w2)`, either factor whole or as a low-rank product."""

import torch
from torch import Tensor

from modules.adapters.layers import Layer
from modules.adapters.terms import Product, Terms
from modules.files.writer import About

WORDS = "LoKr"

NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
SUFFIXES = {f".{name}": name for name in NAMES}
ONE, TWO = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
MARKS = tuple(frozenset(one | two) for one in ONE for two in TWO)


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`"""
    first, second = _first(parts), _second(parts)
    if any(len(factor) == 2 and factor[0].shape[1] != factor[1].shape[0] for factor in (first, second)):
        raise ValueError("its factors have shapes that do not match; the file is damaged")
    return first[0].shape[0] * second[0].shape[0], first[-1].shape[1] * second[-1].shape[1]


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the factor that is a product; None if both are whole."""
    found = [parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    return found[0] if found else None


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """The product itself, with the scale in its first factor."""
    (left, *right), second = (tuple(t.to(W.dtype) for t in factor) for factor in (_first(parts), _second(parts)))
    return Terms(product=Product("kronecker", (_scale(parts, about) * left, *right), second))


def _scale(parts: dict[str, Tensor], about: About) -> float:
    """LyCORIS takes no scale where both factors are whole, peft takes its alpha / r everywhere and stores neither."""
    found = rank(parts)
    if "alpha" in parts:
        return parts["alpha"].item() / found if found else 1.0
    found = about.rank() or found
    return about.scale(found) if found else 1.0


def _first(parts: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The small factor, whole or as a pair."""
    if "lokr_w1" in parts:
        return (parts["lokr_w1"],)
    return parts["lokr_w1_a"], parts["lokr_w1_b"]


def _second(parts: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The large factor, whole or as a pair, kernel positions of a channel adjacent."""
    if "lokr_w2" in parts:
        return (parts["lokr_w2"].flatten(1),)
    up, down = parts["lokr_w2_a"], parts["lokr_w2_b"]
    if "lokr_t2" in parts:
        return up.mT.contiguous(), torch.einsum("ij...,jc->ic...", parts["lokr_t2"], down).flatten(1)
    return up.flatten(1), down.flatten(1)
