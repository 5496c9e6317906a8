"""Forge (stable-diffusion-webui-forge): ComfyUI's reader of 2024, in float32 always. Run: June 2025.

It has no rotations. An output magnitude is divided by the norm of the original weight, as in the current ComfyUI. It
loads nothing from a file with more than twelve unknown keys.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from modules.files import keys, spellings
from modules.hosts import How, comfyui, is_transformer
from modules.hosts.key_maps.loading import KNOWN, NO_FAMILY
from modules.hosts.parts import arithmetic, usual
from modules.hosts.parts.arithmetic import Unread

NAMES = keys.KOHYA
KINDS = ("linear", "conv")
WAYS = usual.WAYS
fitted = usual.fitted
others = usual.others
own = usual.own
WORDS = "Forge"
ROTATIONS = (keys.BLOCKS, keys.RESCALE)


def notes(forms: Collection[str]) -> list[str]:
    """What it does not read."""
    if any("stored" in form for form in forms):
        return ["Forge reads no stored rotations, and nothing from a file with more than twelve tensors of them"]
    return []


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """It recognizes most programs' names; for transformers, diffusers' names for FLUX only."""
    if family not in ("", *KNOWN):
        return NO_FAMILY
    if spelling == spellings.KOHYA_OFT:
        return "only sd-scripts itself and A1111 read them"
    if is_transformer(family) and spelling == spellings.KOHYA_PATH:
        return "it does not recognize these names for this model family"
    unknown = (spellings.PEFT, spellings.LEGACY, spellings.LYCORIS)
    if is_transformer(family) and family != "flux" and spelling in unknown:
        return "it does not recognize these names for this model family"
    return ""


def unfound(family: str, names: Collection[str]) -> dict[str, str]:
    """Those of these names, all in kohya's spelling, that it does not find, and why."""
    return {} if family in KNOWN else dict.fromkeys(names, NO_FAMILY)


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """As ComfyUI."""
    return comfyui.bias_change(tensors, strength)


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """As ComfyUI without rotations, and with the original norm."""
    known = {suffix: tensor for suffix, tensor in tensors.items() if suffix not in ROTATIONS}
    if not arithmetic.kinds(known) and bias_change(known, strength) is None:
        what = "stored rotations" if keys.BLOCKS in tensors else ", ".join(sorted(tensors)) or "nothing"
        raise Unread(f"Forge reads no update from {what}")
    try:
        return comfyui.effect(W, _filled(W, _with_rank(W, known)), strength, How())
    except Unread as reason:
        raise Unread(str(reason).replace("ComfyUI", "Forge")) from None


def _with_rank(W: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with alpha in the factors, where ComfyUI finds no rank for it and fails: for Forge the rank of a
    general update is a2's."""
    if arithmetic.kinds(tensors)[-1:] != ["GLoRA"] or NAMES.alpha not in tensors:
        return tensors
    rank, _ = comfyui.general_layout(W, tensors)
    alpha = arithmetic.alpha_of(tensors)
    if rank is not None or alpha is None:
        return tensors
    _, a2, b1, _ = keys.GENERAL
    scale = alpha / tensors[a2].shape[0]
    scaled = {suffix: tensors[suffix].to(W) * scale for suffix in (a2, b1)}
    return {suffix: tensor for suffix, tensor in tensors.items() if suffix != NAMES.alpha} | scaled


def _filled(W: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a difference of fewer rows, channels or kernel positions padded with zeros: Forge adds such a
    one to the first ones of a convolution."""
    found = tensors.get(NAMES.difference)
    if found is None or found.shape == W.shape or not found.dim() == W.dim() == 4:
        return tensors
    if any(there > size for there, size in zip(found.shape, W.shape, strict=True)):
        raise Unread(f"Forge enlarges the layer for a difference of the shape {tuple(found.shape)}")
    whole = torch.zeros_like(W)
    whole[tuple(slice(size) for size in found.shape)] = found.to(W)
    return tensors | {NAMES.difference: whole}
