"""A1111 (stable-diffusion-webui), its extension Lora. Run: 1.10.1, 1.9.4 and 1.8.0.

It has one norm only, that of each input, for every shape of dora_scale: a magnitude along the output gives a wrong
weight. Two generations differ in a magnitude beside a pair, see `GENERATIONS`.
"""

import re
from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from modules.files import keys, spellings
from modules.files.kinds import gains
from modules.hosts import How, is_transformer
from modules.hosts.key_maps.loading import NO_FAMILY
from modules.hosts.parts import arithmetic, usual
from modules.hosts.parts.arithmetic import Delta, Unread

NAMES = keys.KOHYA
KINDS = ("linear", "conv")
WAYS = usual.WAYS
fitted = usual.fitted
own = usual.own
WORDS = "A1111"

GENERATIONS = ("", "1.9")
"""Values of `How.generation`. The newest (1.10) multiplies by alpha / rank and then decomposes, 1.9 the other way
round; both agree where alpha is the rank. Before 1.9 magnitudes are ignored."""

REQUIRED = {
    "LoRA": (), "LoHa": keys.HADAMARD, "IA3": (gains.WEIGHT,), "norm": (keys.NORM, keys.NORM_BIAS),
    "difference": (NAMES.difference,), "GLoRA": (*keys.GENERAL, NAMES.alpha), "LoKr": (),
    "rotation": (keys.BLOCKS,), "butterfly": (keys.BLOCKS,),
}
ORDER = ("LoRA", "LoHa", "IA3", "LoKr", "difference", "norm", "GLoRA", "rotation", "butterfly")
"""Of several kinds the first is read."""

ATTENTION = re.compile(r"(lora_te2_text_model_encoder_layers_\d+_self_attn)_(q|k|v|out)_proj")
"""SDXL's second text encoder, where A1111 has query, key, value and output as one module."""


def notes(forms: Collection[str]) -> list[str]:
    """What depends on the version."""
    if not any("magnitude" in form for form in forms):
        return []
    return ["A1111 ignores magnitudes before version 1.9"]


def others(how: How) -> dict[str, How]:
    """The older generation."""
    return {"version 1.9": replace(how, generation="1.9")} if not how.generation else {}


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """It recognizes only kohya's names, of the families that it supports."""
    if is_transformer(family):
        return REASONS.get(family, NO_FAMILY)
    if spelling not in (spellings.KOHYA_PATH, spellings.KOHYA_ORIGINAL, spellings.KOHYA_TEXT, spellings.KOHYA_OFT):
        return "it does not recognize such names"
    return ""


REASONS = {
    "flux": "it does not support FLUX",
    "flux2": "it does not support FLUX.2",
    "chroma": "it does not support Chroma",
    "sd3": "it fails on .alpha in a file for SD 3 (1.10) or does not support SD 3",
}


def unfound(family: str, names: Collection[str]) -> dict[str, str]:
    """Those of these names, all in kohya's spelling, that it does not find, and why."""
    if is_transformer(family):
        return dict.fromkeys(names, REASONS.get(family, NO_FAMILY))
    found = {name: "it has no layer with this name" for name in names if name.endswith("text_projection")}
    together: dict[str, list[str]] = {}
    for name in names:
        if family == "sdxl" and (part := ATTENTION.fullmatch(name)):
            together.setdefault(part[1], []).append(name)
    lonely = [name for parts in together.values() if len(parts) < 4 for name in parts]
    return found | dict.fromkeys(lonely, "it needs all of an attention's query, key, value and output layers, or none")


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Read beside full differences only."""
    return arithmetic.bias_beside(_kind(tensors), tensors, strength)


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """Linear in the strength, for every kind."""
    kind = _kind(tensors)
    if not kind:
        raise Unread(f"A1111 reads no update from {', '.join(sorted(tensors)) or 'nothing'}")
    delta, magnitude = _delta(kind, W, tensors), tensors.get(NAMES.magnitude)
    if magnitude is None:
        return W + strength * delta.scale * delta.matrix
    if how.generation == "1.9":
        return W + strength * delta.scale * (_decomposed(W + delta.matrix, magnitude) - W)
    return W + strength * (_decomposed(W + delta.scale * delta.matrix, magnitude) - W)


def _kind(tensors: dict[str, Tensor]) -> str:
    found = [kind for kind in ("IA3", *arithmetic.kinds(tensors)) if set(REQUIRED.get(kind, ("",))) <= tensors.keys()]
    return next((kind for kind in ORDER if kind in found), "")


def _delta(kind: str, W: Tensor, tensors: dict[str, Tensor]) -> Delta:
    alpha = arithmetic.alpha_of(tensors)
    if kind in ("norm", "difference"):
        difference = tensors[NAMES.difference if kind == "difference" else keys.NORM]
        return Delta(_broadcast(difference.to(W), W), 1.0)
    if kind == "IA3":
        return Delta(_gained(W, tensors), 1.0)
    if kind in ("rotation", "butterfly"):
        return Delta(_turned(W, tensors) - W, 1.0)
    if kind == "LoRA":
        return arithmetic.low_rank(W, tensors, alpha)
    if kind == "LoHa":
        return arithmetic.hadamard(W, tensors, alpha)
    if kind == "LoKr":
        return arithmetic.kronecker(W, tensors, alpha, paired=(4,))
    return _general(W, tensors)


def _broadcast(update: Tensor, W: Tensor) -> Tensor:
    """`update` in the shape of `W`: of equal size, or broadcastable by torch."""
    if update.numel() == W.numel():
        return update.reshape(W.shape)
    try:
        return update.expand(W.shape)
    except RuntimeError:
        raise Unread(f"the update has the shape {tuple(update.shape)}, but the layer {tuple(W.shape)}") from None


def _gained(W: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """`W gain` with a gain for each row, or of the inputs: those of the matrix, for every kind of layer."""
    gain, on_input = (tensor.to(W) for tensor in arithmetic.need(tensors, gains.WEIGHT, gains.ON_INPUT))
    if on_input.numel() != 1 or gain.dim() == 0:
        raise Unread(f"A1111 fails on factors of the shape {tuple(gain.shape)}")
    return arithmetic.multiplied(W, gain if on_input else gain.reshape(-1, 1), gains.WEIGHT.strip("."))


def _general(W: Tensor, tensors: dict[str, Tensor]) -> Delta:
    """The older layout, `W a2 a1 + b2 b1`, of linear layers, and without its alpha."""
    if W.dim() > 2:
        raise Unread("A1111 reads a general update (GLoRA) of linear layers only")
    a1, a2, b1, b2 = (tensor.to(W) for tensor in arithmetic.need(tensors, *keys.GENERAL))
    turned = arithmetic.product(arithmetic.product(W, a2), a1)
    added = arithmetic.product(b2, b1)
    if added.numel() == 1:  # broadcast
        return Delta(arithmetic.shaped(turned + added, W), 1.0)
    return Delta(arithmetic.shaped(turned, W) + arithmetic.shaped(added, W), 1.0)


def _turned(W: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """`rescale R^T W`, or of a butterfly `rescale prod(R) W`; alpha times the outputs bounds `Q` of all blocks."""
    R = arithmetic.cayley(tensors[keys.BLOCKS].to(W), (arithmetic.alpha_of(tensors) or 0.0) * W.shape[0])
    if R.dim() == 3:
        return arithmetic.rescaled(arithmetic.turned_rows(W, R.mT), tensors)
    return arithmetic.rescaled(arithmetic.butterfly(W, R), tensors)


def _decomposed(V: Tensor, magnitude: Tensor) -> Tensor:
    """`V magnitude / norm` with the norm of each input, for every axis of the magnitude."""
    try:
        return V * (magnitude.to(V).expand(V.shape) / arithmetic.column_norm(V))
    except RuntimeError:
        raise Unread(f"a dora_scale of the shape {tuple(magnitude.shape)} does not fit the layer") from None


def has(family: str) -> bool:
    """Whether it can load any file of the family; "" is an unknown one."""
    return not is_transformer(family)


def generations(how: How) -> list[tuple[str, How]]:
    """Every generation, by its name in words."""
    return [(f"{WORDS} {name}".strip(), replace(how, generation=name)) for name in GENERATIONS]
