"""LoKr: `W + scale kron(w1, w2)`, either factor whole or as a low-rank product."""

import torch
from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.export.kinds.writer import About

WORDS = "LoKr"

NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
SUFFIXES = {f".{name}": name for name in NAMES} | {f".{name}.default": name for name in NAMES}
ONE, TWO = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
MARKS = tuple(frozenset(one | two) for one in ONE for two in TWO)


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`"""
    (up1, down1), (up2, down2) = _first(parts), _second(parts)
    if up1.shape[1] != down1.shape[0] or up2.shape[1] != down2.shape[0]:
        raise ValueError("its factors do not fit together; the file is damaged")
    return up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1]


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the factor that is a product; None if both are whole."""
    found = [parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    return found[0] if found else None


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """A pair of the product of both ranks, or the whole difference where that is smaller."""
    pairs = [tuple(t.to(W.dtype) for t in pair) for pair in (_first(parts), _second(parts))]
    (up1, down1), (up2, down2) = pairs
    scale = _scale(parts, about)
    if up1.shape[1] * up2.shape[1] * sum(W.shape) >= W.numel():
        return Terms(difference=scale * torch.kron(up1 @ down1, up2 @ down2))
    return Terms(up=scale * torch.kron(up1, up2), down=torch.kron(down1, down2))


def _scale(parts: dict[str, Tensor], about: About) -> float:
    """LyCORIS takes no scale where both factors are whole, peft takes its alpha / r everywhere and stores neither."""
    found = rank(parts)
    if "alpha" in parts:
        return parts["alpha"].item() / found if found else 1.0
    found = about.rank() or found
    return about.scale(found) if found else 1.0


def _first(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The small factor as a product."""
    if "lokr_w1" in parts:
        return _split(parts["lokr_w1"])
    return parts["lokr_w1_a"], parts["lokr_w1_b"]


def _second(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The large factor as a product, kernel positions of a channel side by side."""
    if "lokr_w2" in parts:
        return _split(parts["lokr_w2"].flatten(1))
    up, down = parts["lokr_w2_a"], parts["lokr_w2_b"]
    if "lokr_t2" in parts:
        return up.mT, torch.einsum("ij...,jc->ic...", parts["lokr_t2"], down).flatten(1)
    return up.flatten(1), down.flatten(1)


def _split(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A whole matrix as itself and an identity, with the smaller inner size."""
    rows, columns = matrix.shape
    eye = torch.eye(min(rows, columns), dtype=matrix.dtype, device=matrix.device)
    return (matrix, eye) if columns <= rows else (eye, matrix)
