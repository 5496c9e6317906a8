"""GLoRA: `W + scale (W a1 a2 + b1 b2)`, `a` on the channels. The old layout has the two factors exchanged."""

import torch
from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.writer import About

WORDS = "GLoRA"

SUFFIXES = {f".{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")}
MARKS = (frozenset({"a1", "a2", "b1", "b2"}),)


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`"""
    a, b = _pairs(parts)
    if a[0].shape[1] != a[1].shape[0] or b[0].shape[1] != b[1].shape[0] or a[0].shape[0] != a[1].shape[1]:
        raise ValueError("its four factors have shapes that do not match; the file is damaged")
    return b[0].shape[0], b[1].shape[1]


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the part that is added."""
    return _pairs(parts)[1][1].shape[0]


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """A pair of both ranks, or the whole difference where that is smaller."""
    (a1, a2), (b1, b2) = (tuple(t.to(W.dtype) for t in pair) for pair in _pairs(parts))
    if a1.shape[0] != layer.channels:
        raise ValueError(f"its first factors are for {a1.shape[0]} channels, but the layer has {layer.channels}")
    scale = parts["alpha"].item() / a2.shape[0] if "alpha" in parts else 1.0
    through = torch.einsum("ock,cr->ork", W.unflatten(1, (layer.channels, layer.kernel)), a1)
    count = a2.shape[0] * layer.kernel + b2.shape[0]
    if count * sum(W.shape) >= W.numel():
        spread = torch.einsum("ork,rc->ock", through, a2).flatten(1)
        return Terms(difference=scale * (spread + b1 @ b2))
    positions = torch.eye(layer.kernel, dtype=W.dtype, device=W.device)
    down = torch.einsum("rc,kl->rkcl", a2, positions).flatten(2).flatten(0, 1)
    return Terms(up=scale * torch.cat([through.flatten(1), b1], 1), down=torch.cat([down, b2]))


def _pairs(parts: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`(channels, r), (r, channels)` and `(out, r), (r, fan_in)`, whichever layout the file has."""
    a1, a2, b1, b2 = (parts[name] for name in ("a1", "a2", "b1", "b2"))
    if "bm" in parts:
        b2 = torch.einsum("ij...,jc->ic...", parts["bm"], b2.flatten(1))
    a1, a2, b1, b2 = (t.flatten(1) for t in (a1, a2, b1, b2))
    if b1.shape[1] == b2.shape[0] and a1.shape[1] == a2.shape[0] and a1.shape[0] == a2.shape[1]:
        return (a1, a2), (b1, b2)
    return (a2, a1), (b2, b1)
