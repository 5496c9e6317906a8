"""Rotations of the input as in peft and OneTrainer, and with a magnitude per output (three sets of keys).

The upper triangles of `Q` are stored row by row. peft and OneTrainer: `R = I + 2Q + 2Q^2 + 2Q^3 + Q^4` (five terms of a
series, not exactly orthogonal). peft without the series: `R = (I - Q)(I + Q)^-1`, the inverse rotation. `W R^T` on
linear layers; on convolutions over channels and kernel positions together, peft `W R^T`, OneTrainer `W R`, which is
peft's of the negative Q.
"""

import math

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files import forms
from modules.files.writer import EARLY, PEFT, About

WORDS = "OFT"

SUFFIXES = {
    ".oft_R.weight": "oft_R",
    ".oft_R.scaled_oft": "scaled",
    ".oft_R.cans_oft": "cans",
    ".oft_R.cans_exp": "exponential",
    ".oft_R.clipped_oft": "clipped",
    ".oft_block_size_metadata": "block_size",
    ".oft_block_share_metadata": "block_share",
    ".oft_coft_metadata": "coft",
    ".scaled_oft_metadata": "scaled_flag",
}
MARKS = (frozenset({"oft_R"}),)

TERMS = 5
"""Those of peft's series unless set, and always of OneTrainer's."""


def block_size(parts: dict[str, Tensor]) -> int:
    """Rows of a block from the number of its parameters, b (b - 1) / 2."""
    count = parts["oft_R"].shape[-1]
    size = linalg.triangle_size(count)
    if parts["oft_R"].dim() != 2 or size * (size - 1) != 2 * count:
        raise ValueError(f"its blocks have {count} values, which do not fill a triangle; the file is damaged")
    return size


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`; the inputs are not known from one shared block."""
    size, count = block_size(parts), len(parts["oft_R"])
    return None, None if count == 1 else count * size


def rank(parts: dict[str, Tensor]) -> int | None:
    """The size of a block."""
    return block_size(parts)


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """A rotation of the channels, of a convolution over its kernel positions too; with its magnitude."""
    size, vector = block_size(parts), parts["oft_R"].to(W.dtype)
    if layer.fan_in % size or len(vector) not in (1, layer.fan_in // size):
        raise ValueError(f"its {len(vector)} blocks of {size} do not match the layer's {layer.fan_in} inputs")
    skew = linalg.skew_blocks(vector * factor(parts, layer, size, about), size)
    if layer.kind == "conv" and about.writer != PEFT:
        skew = -skew  # every formula below then gives the transpose
    shape = (layer.fan_in // size, size, size)
    turn = rotation(skew, parts, about).expand(shape).contiguous()
    found = Terms(rotation=turn, series=skew.expand(shape).contiguous() if is_series(parts, about) else None)
    gain = multiplier(parts, W)
    if gain is not None:
        if len(gain) != layer.out_features:
            raise ValueError(f"its magnitude has {len(gain)} values, but the layer has {layer.out_features} outputs")
        found.magnitude, found.axis = gain * forms.applied(found, layer, W).norm(dim=1), "output"
    return found


def factor(parts: dict[str, Tensor], layer: Layer, size: int, about: About) -> float:
    """The factor on the stored values."""
    flag = parts.get("scaled_flag")
    if size < 2 or not ("scaled" in parts or (flag is not None and bool(flag.any()))):
        return 1.0
    if about.metadata.get(EARLY) == "elements":
        return 1 / math.sqrt(size * (size - 1) / 2)
    slope = 1 if "exponential" in parts and layer.kind == "linear" else 2
    return 1 / (slope * math.sqrt(size - 1))


def rotation(skew: Tensor, parts: dict[str, Tensor], about: About) -> Tensor:
    """`R (blocks, b, b)` of `Q`, by the writer's formula."""
    if "clipped" in parts and parts["clipped"].numel():
        longest = torch.linalg.matrix_norm(skew, 2)
        bound = parts["clipped"].to(skew.dtype).flatten()[0]
        if bound < 0:
            bound = bound.new_tensor(0.95 * (math.pi if "exponential" in parts else 1))
        skew = skew * (bound / longest.clamp_min(bound)).view(-1, 1, 1)
    if about.option("coft", False):
        length = skew.flatten(1).norm(dim=1).view(-1, 1, 1)
        bound = about.option("eps", 6e-5) / math.sqrt(len(skew))
        skew = torch.where(length <= bound, skew, skew * (bound / length))
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    if "exponential" in parts:
        return torch.linalg.matrix_exp(skew)
    if "cans" in parts:
        return eye + linalg.cayley_excess(skew)
    if not about.option("use_cayley_neumann", True):
        return eye + linalg.cayley_excess(-skew)
    return series(skew, about.option("num_cayley_neumann_terms", TERMS))


def is_series(parts: dict[str, Tensor], about: About) -> bool:
    """Whether R is the truncated series of five terms of the stored Q itself."""
    if {"clipped", "exponential", "cans"} & parts.keys() or about.option("coft", False):
        return False
    return about.option("use_cayley_neumann", True) and about.option("num_cayley_neumann_terms", TERMS) == TERMS


def series(skew: Tensor, count: int) -> Tensor:
    """`I + 2Q + ... + 2Q^(n-2) + Q^(n-1)`, with peft's quirks: 3 terms are its 4, and 2 are `I + 2Q`."""
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    if count < 3:
        return eye + 2 * skew if count == 2 else eye.expand_as(skew)
    found, power = eye + 2 * skew, skew
    for _ in range(2, max(count, 4) - 1):
        power = power @ skew
        found = found + 2 * power
    return found + power @ skew


def multiplier(parts: dict[str, Tensor], W: Tensor) -> Tensor | None:
    """The factor on each output `(out)`, from whichever of the three sets of keys there is."""
    if "log_multiplier" in parts:
        return parts["log_multiplier"].flatten().to(W.dtype).exp()
    if "multiplier" in parts:
        return parts["multiplier"].flatten().to(W.dtype)
    if "magnitude" not in parts:
        return None
    before = parts["initial_norm"].flatten().to(W.dtype) if "initial_norm" in parts else W.norm(dim=1)
    return forms.ratio(parts["magnitude"].flatten().to(W.dtype), before)
