"""Our files for the ComfyUI node (comfyui_node/): the trained terms themselves, as `.gimbal_<part>`.

The node applies these tensors of a layer in this order (modules/hosts/comfyui_node.py); see `PARTS`. Tensors marked
`float32` have this dtype in every file.

    .gimbal_format                  float32 [1, number of the other tensors]; [2, number] where `in` is over the columns
    .gimbal_skew_in  .gimbal_skew_out    float32 (blocks, b(b-1)/2): the upper triangle of Q, row by row, with every
                                    factor in it; R = (I + Q)(I - Q)^-1
    .gimbal_turn_in  .gimbal_turn_out    float32 (blocks, b, b): R - I, of blocks that are no such R
                                    in: W <- W blockdiag(R)^T on the channels, or on the columns of the flat weight
                                    (channels and kernel positions); out: W <- blockdiag(R) W on the rows
    .gimbal_up  .gimbal_down        (out, r), (r, fan_in): W <- W + up down; convolutions too are flat
    .gimbal_difference              in the weight's shape: W <- W + difference
    .gimbal_magnitude_in  _out      float32 (channels) or (out): W <- W magnitude / ||W||, the norm of this W
    .gimbal_ratio                   float32 (out): each row of W times ratio

Programs without the node read the LoRA that may be stored under the same name. It was not trained and is ignored here.
"""

from dataclasses import replace

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files import forms
from modules.files.writer import About

NAME = "gimbal_"
"""Prefix of the node's parts, to distinguish them from other kinds' parts."""

VERSION, OVER_KERNEL = 1.0, 2.0
"""The format of a layer, and that of one whose rotation `in` is over channels and kernel positions."""
FORMAT = ".gimbal_format"
PARTS = ("skew_in", "skew_out", "turn_in", "turn_out", "up", "down", "difference", "magnitude_in", "magnitude_out",
         "ratio")
"""A layer's tensors, `.gimbal_<part>`."""

SUFFIXES = {f".{NAME}{part}": f"{NAME}{part}" for part in (*PARTS, "format")}
MARKS = (frozenset({f"{NAME}format"}),)
WORDS = "update for Gimbal's ComfyUI node"

ROWS = ("up", "difference", "magnitude_out", "ratio")
"""Parts with one row, or value, per output."""

LENGTHS = {"magnitude_in": "input", "magnitude_out": "output", "ratio": "output"}
"""Parts that change norms, and the axis of each."""


def read(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's parts by name. Raises ValueError where the node would reject them."""
    parts = {part: tensors[f".gimbal_{part}"] for part in PARTS if f".gimbal_{part}" in tensors}
    version, count = tensors[FORMAT].flatten().tolist()
    if version > OVER_KERNEL:
        raise ValueError(f"written in format {version:g}, but the node reads format {OVER_KERNEL:g}")
    if count != len(parts) or ("up" in parts) != ("down" in parts):
        raise ValueError(f"{count:g} tensors were written, but the file has {', '.join(parts) or 'none'}")
    return parts


def rotation(parts: dict[str, Tensor], side: str) -> Tensor | None:
    """`R (blocks, b, b)` of one side."""
    packed, excess = parts.get(f"skew_{side}"), parts.get(f"turn_{side}")
    if packed is not None:
        excess = linalg.cayley_excess(linalg.skew_blocks(packed, size_of(packed)))
    return None if excess is None else excess + torch.eye(excess.shape[-1], dtype=excess.dtype, device=excess.device)


def size_of(packed: Tensor) -> int:
    """The b of `packed (blocks, b(b-1)/2)`. Raises ValueError if there is none."""
    size = linalg.triangle_size(packed.shape[1])
    if size * (size - 1) != 2 * packed.shape[1]:
        raise ValueError(f"{packed.shape[1]} values per block do not fill a triangle")
    return size


def given(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The node's parts by their own names. Raises ValueError if they are incomplete."""
    return read({f".{part}": tensor for part, tensor in parts.items() if part.startswith(NAME)})


def words(parts: dict[str, Tensor]) -> str:
    """What the layer's terms are."""
    sides = {"in": "input", "out": "output"}
    turned = [f"rotation of the {word}" for side, word in sides.items()
              if {f"{NAME}skew_{side}", f"{NAME}turn_{side}"} & parts.keys()]
    added = [word for part, word in (("up", "LoRA"), ("difference", "difference")) if NAME + part in parts]
    axes = [f" with {axis} magnitude" for part, axis in LENGTHS.items() if NAME + part in parts]
    return f"{' and '.join(turned + added) or 'scale'}{''.join(axes)} for Gimbal's ComfyUI node"


def shape(parts: dict[str, Tensor]) -> tuple[int | None, int | None]:
    """`(out, fan_in)`; the inputs are unknown if they are only rotated, because the kernel size of a convolution is
    unknown.

    Raises ValueError for tensors that are incomplete or disagree.
    """
    own = given(parts)
    outs = {len(own[part]) for part in ROWS if part in own}
    outs |= {len(own[part]) * block(own[part]) for part in ("skew_out", "turn_out") if part in own}
    if len(outs) > 1 or ("up" in own and own["up"].shape[1:] != own["down"].shape[:1]):
        raise ValueError("its tensors for the node have shapes that do not match; the file is damaged")
    wide = own["down"] if "down" in own else own.get("difference")
    return next(iter(outs), None), turned_columns(parts) if wide is None else wide[0].numel()


def turned_columns(parts: dict[str, Tensor]) -> int | None:
    """How many columns a rotation over channels and kernel positions has; None without one."""
    turned = next((parts[NAME + part] for part in ("skew_in", "turn_in") if NAME + part in parts), None)
    over_kernel = parts[f"{NAME}format"].flatten()[0] == OVER_KERNEL
    return len(turned) * block(turned) if turned is not None and over_kernel else None


def channels(parts: dict[str, Tensor]) -> int | None:
    """The input channels, as far as the tensors show them."""
    own = given(parts)
    if "magnitude_in" in own:
        return len(own["magnitude_in"])
    if turned_columns(parts) is not None:
        return None
    return next((len(own[part]) * block(own[part]) for part in ("skew_in", "turn_in") if part in own), None)


def block(tensor: Tensor) -> int:
    """Rows of a rotation's block."""
    return size_of(tensor) if tensor.dim() == 2 else tensor.shape[-1]


def rank(parts: dict[str, Tensor]) -> int | None:
    """Of the pair, or else the size of a block."""
    own = given(parts)
    if "down" in own:
        return len(own["down"])
    return next((block(tensor) for part, tensor in own.items() if part.startswith(("skew", "turn"))), None)


def terms(parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """The stored terms. Raises ValueError for what this program does not write: two rotated sides, or two
    magnitudes."""
    own, count = {part: tensor.to(W) for part, tensor in given(parts).items()}, channels(parts)
    if count not in (None, layer.channels):
        raise ValueError(f"its tensors are for {count} channels, but the layer has {layer.channels}; the file is for "
                         "another model")
    turns = {side: rotation(own, name) for name, side in (("in", "input"), ("out", "output"))}
    turns = {side: turn for side, turn in turns.items() if turn is not None}
    lengths = [part for part in LENGTHS if part in own]
    if len(turns) > 1 or len(lengths) > 1:
        raise ValueError("it has two rotations or two magnitudes, which Gimbal never writes; the file is damaged")
    found = Terms(up=own.get("up"), down=own.get("down"))
    for side, turn in turns.items():
        found = replace(found, rotation=turn, side=side)
    if "difference" in own:
        found = replace(found, difference=own["difference"].flatten(1))
    for part in lengths:
        length = forms.applied(found, layer, W).norm(dim=1) if part == "ratio" else torch.ones_like(own[part])
        found = replace(found, magnitude=own[part] * length, axis=LENGTHS[part])
    return found
