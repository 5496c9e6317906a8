"""Rotations of the output: `blockdiag(R^T) W` (LyCORIS' Diag-OFT, kohya's OFT), and butterflies of several (BOFT).

`R = (I + Q)(I - Q)^-1`, `Q = B - B^T`. alpha is not a scale here but the bound of |Q| over all blocks, per output. BOFT
applies R itself, not its transpose, to rows that are permuted differently in each factor.
"""

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files import forms
from modules.files.writer import About

WORDS = "OFT on the output"

SUFFIXES = {".oft_blocks": "oft_blocks", ".rescale": "rescale"}
MARKS = (frozenset({"oft_blocks"}),)

TINY = 1e-8
"""Added to norms in the reference code."""


def words(parts: dict[str, Tensor]) -> str:
    """BOFT's blocks have one more dimension."""
    what = "BOFT" if parts["oft_blocks"].dim() == 4 else WORDS
    return f"{what} with rescale" if "rescale" in parts else what


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, None)`"""
    blocks = parts["oft_blocks"]
    if blocks.dim() not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"its blocks are {tuple(blocks.shape)} and should be square; the file is damaged")
    out = blocks.shape[-3] * blocks.shape[-1]
    if "rescale" in parts and parts["rescale"].numel() != out:
        raise ValueError(f"its rescale has {parts['rescale'].numel()} values for {out} outputs; the file is damaged")
    return out, None


def rank(parts: dict[str, Tensor]) -> int | None:
    """The size of a block."""
    return parts["oft_blocks"].shape[-1]


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """A rotation of the output, in stages for several butterfly factors; rescale as a magnitude."""
    blocks = parts["oft_blocks"].to(W.dtype)
    skew = bounded(blocks - blocks.mT, parts, layer.out_features, about)
    eye = torch.eye(blocks.shape[-1], dtype=W.dtype, device=W.device)
    turn = eye + linalg.cayley_excess(skew)
    is_plain = blocks.dim() == 3
    found = Terms(rotation=turn.mT.contiguous(), side="output") if is_plain else butterfly(turn)
    if "rescale" in parts:
        length = forms.applied(found, layer, W).norm(dim=1)
        found.magnitude, found.axis = parts["rescale"].flatten().to(W.dtype) * length, "output"
    return found


def bounded(skew: Tensor, parts: dict[str, Tensor], out: int, about: About) -> Tensor:
    """Q with its Frobenius norm over all blocks limited to alpha * outputs."""
    if "alpha" not in parts:
        return skew
    bound, length = parts["alpha"].item() * out, skew.norm()
    if about.name.startswith("oft_"):  # kohya: always
        return skew * ((length.clamp(max=bound) + TINY) / (length + TINY))
    return skew * (bound / (length + TINY)) if 0 < bound < length + TINY else skew


def butterfly(turns: Tensor) -> Terms:
    """BOFT's factors `(m, blocks, b, b)`, one after the other."""
    size = turns.shape[-1]
    if size % 2:
        raise ValueError(f"its block size {size} is odd, and BOFT needs an even one")
    if len(turns) == 0:
        return Terms()
    if len(turns) == 1:
        order = torch.arange(size, device=turns.device).view(2, -1).mT.flatten()  # 0, b/2, 1, b/2 + 1, ...
        back = order.argsort()
        return Terms(rotation=turns[0][:, back][:, :, back].contiguous(), side="output")
    return Terms(rotation=turns, side="output")
