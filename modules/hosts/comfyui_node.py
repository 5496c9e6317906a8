"""Files for ComfyUI with our node (comfyui_node/): small and exact for every method, also in 16 bits.

What ComfyUI itself reads, a plain LoRA, a product or a full difference, is written in that form; the last also for a
butterfly of several stages, which is not small. Any other layer has the tensors of modules/files/kinds/gimbal_node.py,
which the node applies in their order, in float32, with one rounding at the end. The layer's names are those of ComfyUI.

With a strength s the weight becomes W + s (W' - W). A change of the bias is ComfyUI's own `.diff_b`.

With export.node_fallback there is a LoRA under the same name. ComfyUI reads the node's tensors last, so they win;
without the node the LoRA is used. With export.node_spelling "oftv2" rotations of linear layers are spelled for the
public node ComfyUI-OFTv2 (export.md 3.4; run with its version 1.7.1).
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.base import Terms
from modules.files import forms, keys
from modules.files.forms import Encoding, Seen
from modules.files.keys import Names
from modules.files.kinds import gimbal_node
from modules.files.kinds.gimbal_node import FORMAT, OVER_KERNEL, PARTS, VERSION
from modules.hosts import How, comfyui
from modules.hosts.parts.arithmetic import Unread
from modules.preset.export_options import Export

FOREIGN, LOG_RATIO, EXACT_MARK, SCALED_MARK = (
    ".oft_R.weight", ".dora_log_multiplier", ".oft_R.cans_oft", ".oft_R.scaled_oft"
)
"""ComfyUI-OFTv2's tensors: packed rotations, log-ratios of the rows, and markers of the exact and the scaled kind."""

FACTORS = ("up", "down", "difference")
"""The parts that are stored in the file's dtype."""

FOREIGN_NAMES = (FOREIGN, LOG_RATIO, EXACT_MARK, SCALED_MARK)

NAMES = replace(
    keys.KOHYA,
    magnitude="",  # read, not written: ComfyUI's arithmetic loses digits in 16 bits, and its norm is not DoRA's
    others=(*keys.KOHYA.others, keys.KOHYA.magnitude, FORMAT, *(f".gimbal_{part}" for part in PARTS), *FOREIGN_NAMES),
    wholes=(*keys.KOHYA.wholes, (FORMAT,), (FOREIGN,)),
    exact=(keys.KOHYA.magnitude, FORMAT, *(f".gimbal_{part}" for part in PARTS if part not in FACTORS), *FOREIGN_NAMES),
)
KINDS, WAYS = comfyui.KINDS, comfyui.WAYS

ROUNDING = 2e-6
"""Largest departure of R from the Cayley transform of its Q in float32; beyond it R is kept whole."""


def notes(forms: Collection[str]) -> list[str]:
    """Which layers need the node."""
    if any("OFTv2 node" in form for form in forms):
        return ["the file needs the public node ComfyUI-OFTv2, version 1.7.1 or later; in bfloat16 (FLUX) its "
                "rotations have errors of several percent of the change; those of our own node do not"]
    if not any("node" in form for form in forms):
        return ["no layer of this file needs the node"]
    return ["the file needs the node for ComfyUI: put the folder comfyui_node into ComfyUI/custom_nodes/gimbal"]


def others(how: How) -> dict[str, How]:
    """A ComfyUI without the node."""
    return {"without the node": replace(how, node=False)} if how.node else {}


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """As ComfyUI."""
    return comfyui.trouble(spelling, family, names)


def fitted(W: Tensor, tensors: dict[str, Tensor], how: How) -> dict[str, Tensor]:
    """Unchanged: the node computes in float32."""
    return tensors


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """As ComfyUI."""
    return comfyui.bias_change(tensors, strength)


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """The node's tensors if there are any, else what ComfyUI itself reads.

    `how.dtype` is that of the weight; the node still computes in float32 (here in float64 if W is).
    """
    unknown = tensors.keys() - NAMES.all()
    if unknown:
        raise Unread(f"neither ComfyUI nor the node reads {', '.join(sorted(unknown))}")
    base = how.base(W)
    if how.node and FORMAT in tensors:
        precise = keys.precise(base)
        with _refusing():
            parts = gimbal_node.read(tensors)
        change = _of_node(precise, parts) - precise
        return (precise + strength * change).to(base.dtype).to(how.model or base.dtype).to(W.dtype)
    if how.node and FOREIGN in tensors:
        return _of_other_node(base, tensors, strength).to(how.model or base.dtype).to(W.dtype)
    return comfyui.effect(W, {suffix: t for suffix, t in tensors.items() if suffix in keys.KOHYA.all()}, strength, how)


# -- the node's arithmetic --------------------------------------------------------------------------------------------


@contextmanager
def _refusing() -> Iterator[None]:
    """The nodes reject invalid tensors."""
    try:
        yield
    except ValueError as error:
        raise Unread(str(error)) from error


def _of_node(W: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """The adapted weight, in the shape and dtype of `W`."""
    given = {part: tensor.to(W) for part, tensor in parts.items()}
    kernel = math.prod(W.shape[2:])
    try:
        V = W.flatten(1)
        for side, name in (("input", "in"), ("output", "out")):
            with _refusing():
                R = gimbal_node.rotation(given, name)
            if R is not None:
                V = forms.rotated(V, R, side, kernel)
        if "up" in given:
            V = V + given["up"] @ given["down"]
        if "difference" in given:
            V = V + given["difference"].reshape(V.shape)
        V = forms.scaled(V, given.get("magnitude_in"), "input", kernel)
        V = forms.scaled(V, given.get("magnitude_out"), "output", kernel)
        if "ratio" in given:
            V = V * given["ratio"].view(len(V), 1)
        return V.reshape(W.shape)
    except RuntimeError as error:
        raise Unread(f"the tensors do not fit the weight {tuple(W.shape)}: {error}") from None


# -- writing ----------------------------------------------------------------------------------------------------------


@cache
def _encodings(spelling: str, rank: int | None) -> tuple[Encoding, ...]:
    tensors, name = (_foreign_tensors, "OFTv2 node") if spelling == "oftv2" else (_tensors, "node")

    def written(view: Seen, names: Names) -> dict[str, Tensor] | None:
        found = tensors(view)
        return found if found is None or rank is None else found | _fallback(view, names, rank)

    beside = "" if rank is None else f", and a LoRA of rank {rank} for those without it"
    return (Encoding(lambda terms: f"{_words(terms)} for the {name}{beside}", written),)


def own(options: Export) -> tuple[Encoding, ...]:
    """The node's form, or the public node's, and perhaps a LoRA with it."""
    return _encodings(options.node_spelling, options.node_fallback)


def _words(terms: Terms) -> str:
    found = ["rotation"] if terms.rotation is not None else []
    found += ["LoRA"] if terms.up is not None else []
    found += ["difference"] if terms.difference is not None else []
    return " and ".join(found or ["update"]) + (f" with {terms.axis} magnitude" if terms.axis else "")


def _tensors(view: Seen) -> dict[str, Tensor] | None:
    """All terms in the node's format; None if there are none."""
    terms, W = view.terms, view.W
    found: dict[str, Tensor] = {}
    if terms.rotation is not None and terms.rotation.dim() == 4:
        return None  # the node has no butterflies
    if terms.rotation is not None:
        side = "in" if terms.side == "input" else "out"
        packed = packed_skew(terms.rotation)
        found |= {f"turn_{side}": _excess(terms.rotation)} if packed is None else {f"skew_{side}": packed}
    if terms.up is not None and terms.down is not None:
        found["up"], found["down"] = keys.balanced(terms.up, terms.down)
    if terms.difference is not None:
        found["difference"] = view.native(terms.difference)
    if terms.magnitude is not None:
        if terms.axis == "output" and terms.up is None and terms.difference is None:
            # The ratio is what was trained; it does not tie the file to this base.
            found["ratio"] = forms.ratio(terms.magnitude.to(W), view.unscaled().norm(dim=1))
        else:
            found["magnitude_in" if terms.axis == "input" else "magnitude_out"] = terms.magnitude
    if not found:
        return None
    over_kernel = forms.is_over_kernel(terms, W.shape[1], view.kernel)
    number = torch.tensor([OVER_KERNEL if over_kernel else VERSION, len(found)])
    return {FORMAT: number, **{f".gimbal_{part}": keys.precise(tensor) for part, tensor in found.items()}}


def packed_skew(R: Tensor) -> Tensor | None:
    """The upper triangles `(blocks, b(b-1)/2)` of the Q with `R = (I + Q)(I - Q)^-1`, `R (blocks, b, b)`, float64.

    None if there is none: R rotates a plane by 180 degrees or mirrors it, or is not a rotation (as the truncated series
    of other trainers). A meta tensor counts as a rotation.
    """
    exact = R.double()
    eye = _eye(exact)
    Q = torch.linalg.solve_ex(exact + eye, exact - eye)[0]  # both factors commute
    skew = (Q - Q.mT) / 2
    if not R.is_meta:
        if not torch.isfinite(skew).all():
            return None
        error = linalg.cayley_excess(skew.float()) - (exact - eye)
        if error.abs().max() > ROUNDING:
            return None
    return linalg.upper_triangles(skew)


def _fallback(view: Seen, names: Names, rank: int) -> dict[str, Tensor]:
    """A LoRA of the whole change; exact if the change does not have a higher rank."""
    up, down = forms.truncated(view.adapted() - view.W, rank)
    return keys.factor_tensors(names, view.layer, up, down)


# -- the public node --------------------------------------------------------------------------------------------------


def _foreign_tensors(view: Seen) -> dict[str, Tensor] | None:
    """ComfyUI-OFTv2's tensors: a rotation of the input of a linear layer, or of a convolution over its kernel too, and
    perhaps a positive ratio per output. Five terms of the series are what OneTrainer reads as well, as its scaled kind.
    """
    terms, kernels = view.terms, view.layer.kind == "conv"
    if terms.rotation is None or terms.rotation.dim() != 3 or terms.side != "input":
        return None
    if view.layer.kind not in ("linear", "conv") or view.dimensions not in (2, 4) or terms.axis == "input":
        return None
    if view.kernel > 1 and not forms.is_over_kernel(terms, view.W.shape[1], view.kernel):
        return None
    series = terms.series
    packed = packed_skew(terms.rotation) if series is None else linalg.upper_triangles(series.double())
    if terms.up is not None or terms.difference is not None or packed is None:
        return None
    scale = 1.0 if series is None else 2 * math.sqrt(series.shape[-1] - 1)
    mark = {EXACT_MARK: torch.ones(1)} if series is None else {SCALED_MARK: torch.tensor(1.0)}
    found = {FOREIGN: (-scale if kernels else scale) * packed, **mark}
    if terms.magnitude is not None:
        length = view.unscaled().norm(dim=1)
        found[LOG_RATIO] = torch.where(length == 0, 1.0, terms.magnitude.to(length) / length).log()
    return found


def _of_other_node(W: Tensor, tensors: dict[str, Tensor], strength: float) -> Tensor:
    """What ComfyUI-OFTv2 computes, in W's dtype; convolutions apply the inverse rotation to the flattened weight."""
    packed = tensors[FOREIGN].to(W)
    with _refusing():
        size = gimbal_node.size_of(packed)
    if SCALED_MARK in tensors:
        packed = packed / (2 * math.sqrt(size - 1))
    fan_in = W[0].numel()
    if fan_in % size or len(packed) not in (1, fan_in // size):
        raise Unread(f"{len(packed)} blocks of {size} do not fit {fan_in} inputs")
    Q = linalg.skew_blocks(packed, size)
    R = _settled(Q) if EXACT_MARK in tensors else _truncated_series(Q)
    turn = (R if W.dim() == 4 else R.mT) - _eye(R)
    blocks = W.reshape(len(W), -1, size)
    change = torch.einsum("okj,kjc->okc", blocks, turn.expand(blocks.shape[1], -1, -1)).reshape(W.shape)
    if LOG_RATIO in tensors:
        gain = tensors[LOG_RATIO].to(W).exp().view(-1, *[1] * (W.dim() - 1))
        change = (W + change) * gain - W
    return W + strength * change


def _settled(Q: Tensor) -> Tensor:
    """The square of the orthogonal part of `I + Q`, which is Q's Cayley transform, as that node computes it in W's
    dtype: by Newton-Schulz steps with the best bounds for each (methods.md 3.7). In float64 exact."""
    if Q.dtype == torch.float64:
        return linalg.cayley_excess(Q) + _eye(Q)
    X = Q + _eye(Q)
    largest = X.abs().sum(-1, keepdim=True).amax(-2, keepdim=True)
    X, low, high = X / largest, 1 / largest, torch.ones_like(largest)
    for _ in range(5 if Q.dtype == torch.bfloat16 else 7):
        product = low * high
        mean = (low**2 + product + high**2) / 3
        above, below = 2 * mean**1.5, product * (low + high)
        rate = 6 / (above + below)
        X = rate * mean * X - rate / 3 * (X @ X.mT @ X)
        spread = (above - below) / (above + below)
        low, high = 1 - spread, 1 + spread
    return X @ X


def _truncated_series(Q: Tensor) -> Tensor:
    """Five terms of Neumann's series: what peft and OneTrainer train with (methods.md 3.2)."""
    square = Q @ Q
    return _eye(Q) + 2 * Q + 2 * square + 2 * square @ Q + square @ square


def _excess(R: Tensor) -> Tensor:
    return R - _eye(R)


def _eye(R: Tensor) -> Tensor:
    return torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
