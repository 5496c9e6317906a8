"""Files for ComfyUI.

Its arithmetic is export.md 2.1 and 2.2, measured with its own code. Forge computes the same, without rotations.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from modules.files import keys, spellings
from modules.hosts import How, Way, is_transformer, is_unet
from modules.hosts.key_maps import comfyui_keys
from modules.hosts.parts import arithmetic, usual
from modules.hosts.parts.arithmetic import Delta, Unread

NAMES = keys.KOHYA
KINDS = ("linear", "conv", "embedding")
own = usual.own

WAYS = {
    "float32": Way(torch.float32, torch.float32, torch.float32),
    "float16": Way(torch.float16, torch.float32, torch.float16),
    "bfloat16": Way(torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "a bfloat16 model in float16": Way(torch.float16, torch.float32, torch.bfloat16),
}
"""Read and run in version 0.28.0, and the same since December 2025. Weights that are patched when they are used, which
is the default on NVIDIA cards (dynamic VRAM) and is done everywhere when memory is short, are patched in the dtype of
the layer's input: float16, for large transformers bfloat16, for text encoders float32. Those that are patched when the
model is loaded are patched in float16 on a GPU, for every dtype of the model, the update in float32, and in float32 on
a CPU. For a float16 model both are equal up to the update's last digit."""

LANGUAGE_MODEL = ("text_encoder.layers.", "text_encoder.model.")

SIXTEEN = (torch.float16, torch.bfloat16)
STEPS = 2
"""How many values of the dtype `fitted` tries on either side of the nearest."""


def notes(forms: Collection[str]) -> list[str]:
    """Forms that are not read everywhere; what depends on the norm is measured, see `others`."""
    found = []
    if any("magnitude" in form for form in forms):
        found.append('ComfyUI\'s loader "Load LoRA (Bypass)" ignores the magnitudes without a warning; load this file '
                     'with "Load LoRA"')
    if any("rotation" in form or "butterfly" in form for form in forms):
        found.append("ComfyUI skips stored rotations wherever it computes in 16 bits (low memory; on NVIDIA cards by "
                     "default since 2026), and such layers then have no effect; export.form auto writes a form that "
                     "it always reads")
    return found


def others(how: How) -> dict[str, How]:
    """The norm that the file was not written for, and the ComfyUI that uses it."""
    which = {"original": "in its current version", "adapted": "after its pull request 15458"}
    return {words: replace(how, norm=norm) for norm, words in which.items() if norm != how.norm}


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Names of diffusers and kohya are recognized as far as a family's key map has them."""
    if spelling == spellings.PEFT and is_unet(family):
        return "it does not find query, key, value and output of the attention under these names; only the rest loads"
    if spelling == spellings.KOHYA_PATH and is_transformer(family) and not comfyui_keys.names(family).issuperset(names):
        return "it does not recognize these names for this model family"
    if spelling == spellings.LEGACY and is_unet(family):
        return "it does not recognize these names for this model family"
    text = spelling == spellings.PEFT_TEXT
    if text and any(name.startswith(LANGUAGE_MODEL) for name in names):
        return "it does not find language models under these names"
    if text and any("text_model." not in name and "encoder.block" not in name for name in names):
        return "it does not find text encoders' layers without text_model. in their names"
    if text and any("encoder.block" in name for name in names):
        return "it does not find the T5 under these names"
    return "it does not recognize such names" if spelling in (spellings.KOHYA_OFT, spellings.BARE) else ""


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Read with any kind; of two, `diff_b` wins."""
    found = tensors.get(NAMES.bias)
    if found is None and keys.NORM in tensors:
        found = tensors.get(keys.NORM_BIAS)
    return None if found is None else strength * found


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """Of several kinds the last in `arithmetic.KINDS` wins, and only that one is read.

    In 16 bits every step is rounded as ComfyUI rounds it: one of weight_adapter/base.py's lines is one line here.
    """
    found = arithmetic.kinds(tensors)
    if not found:
        if bias_change(tensors, strength) is not None:
            return W
        raise Unread(f"ComfyUI reads no update from {', '.join(sorted(tensors)) or 'nothing'}")
    base = how.base(W)
    return _patched(found[-1], base, tensors, strength, how).to(how.model or base.dtype).to(W.dtype)


def _patched(kind: str, base: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """The weight, in the dtype of `base`."""
    if kind == "whole weight":
        return arithmetic.same_shape(tensors[keys.SET], base).to(base)
    if kind in ("norm", "difference"):
        difference = tensors[NAMES.difference if kind == "difference" else keys.NORM]
        return base + strength * arithmetic.same_shape(difference, base).to(base)
    magnitude = tensors.get(NAMES.magnitude)
    delta = _change(kind, base, tensors, strength, how)
    if magnitude is None:
        return base + ((strength * delta.scale) * delta.matrix).to(base)
    V, length = _measured(base, delta, magnitude, how.norm)
    adapted = V * _ratio(magnitude.to(delta.matrix), length, V)
    return adapted if strength == 1 else base + strength * (adapted - base)


def _change(kind: str, base: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Delta:
    """The update before the magnitude, in the dtype of updates."""
    update = how.update or base.dtype
    if kind not in ("rotation", "butterfly"):
        return _delta(kind, base.to(update), tensors)
    if update in SIXTEEN and len(tensors[keys.BLOCKS]):
        raise Unread("ComfyUI cannot apply stored rotations where it computes in 16 bits: it logs an error and leaves "
                     "the layer unchanged")
    turn = _rotation if kind == "rotation" else _butterfly
    turned = turn(base, tensors, strength, update)
    # Their alpha bounds the rotation; for a magnitude ComfyUI still uses it as the scale.
    return Delta(turned.matrix.to(update), 1.0 if NAMES.magnitude not in tensors else turned.scale)


def fitted(W: Tensor, tensors: dict[str, Tensor], how: How) -> dict[str, Tensor]:
    """The tensors with another magnitude, for which ComfyUI, computing in the 16 bits of `how`, comes nearest to what
    it computes from them in the dtype of `W`.

    It divides by the norm plus the machine epsilon of the dtype, and rounds norm, sum and ratio; where it computes
    updates in 16 bits, the magnitude first. So several 16-bit values are tried for each channel. Of all values that
    round to the best one, the one nearest to the given magnitude is stored, which is the best elsewhere.
    """
    magnitude, kind = tensors.get(NAMES.magnitude), (arithmetic.kinds(tensors) or [""])[-1]
    base = how.base(W)
    if magnitude is None or base.dtype not in SIXTEEN or kind in ("", "norm", "difference", "whole weight"):
        return tensors
    wanted = effect(W, tensors, 1.0, replace(how, dtype=None, update=None, model=None)).float()
    plain = _measured(W, _change(kind, W, tensors, 1.0, replace(how, update=None)), magnitude, how.norm)[1]
    V, length = _measured(base, _change(kind, base, tensors, 1.0, how), magnitude, how.norm)
    goal = magnitude.to(W) / plain * length.to(W)
    nearest = goal.to(base.dtype)
    step = torch.finfo(base.dtype).eps * 2.0 ** torch.frexp(nearest.float())[1].sub(1)
    others = [dim for dim in range(W.dim()) if length.shape[dim] == 1]
    errors, found = [], []
    for number in range(-STEPS, STEPS + 1):
        found.append((nearest.float() + number * step).to(base.dtype))
        adapted = (V * _ratio(found[-1], length, V)).to(how.model or base.dtype).float()
        errors.append((adapted - wanted).square().sum(others, keepdim=True))
    best = torch.stack(errors).argmin(0, keepdim=True)
    chosen = torch.stack(found).gather(0, best)[0]
    if how.update == base.dtype:
        chosen = _as_near(magnitude.to(W), chosen, step).to(magnitude)
    else:
        chosen = torch.where(chosen == nearest, goal, chosen.to(goal)).to(magnitude)
    return tensors | {NAMES.magnitude: torch.where(chosen.isfinite(), chosen, magnitude)}


def _as_near(goal: Tensor, numbers: Tensor, step: Tensor) -> Tensor:
    """Of the values that round to `numbers`, the nearest to `goal`; `step`: the spacing of such values."""
    is_power = torch.frexp(numbers.float())[0].abs() == 0.5  # the value below is then nearer
    within, found = torch.where(is_power, 0.24, 0.49) * step, numbers.to(goal)
    return torch.minimum(torch.maximum(goal, found - within), found + within)


def _delta(kind: str, W: Tensor, tensors: dict[str, Tensor]) -> Delta:
    alpha = arithmetic.alpha_of(tensors)
    if kind == "LoRA":
        return arithmetic.low_rank(W, tensors, alpha)
    if kind == "LoHa":
        return arithmetic.hadamard(W, tensors, alpha)
    if kind == "LoKr":
        return _kronecker(W, tensors, alpha)
    return _general(W, tensors, alpha)


def _kronecker(W: Tensor, tensors: dict[str, Tensor], alpha: float | None) -> Delta:
    """Meant for whole kernels of two dimensions: with others the wrong entries are combined, silently.

    With a core, `torch.kron` fails on the memory layout that ComfyUI has (run with PyTorch 2.13).
    """
    core = tensors.get(keys.KRONECKER[-1])
    if core is not None and ".lokr_w2" not in tensors:
        raise Unread("ComfyUI fails on a LoKr with a Tucker core (lokr_t2) and leaves the layer unchanged"
                     if core.dim() == 4 else
                     f"ComfyUI fails on a LoKr with a Tucker core of {core.dim()} dimensions and aborts sampling")
    return arithmetic.kronecker(W, tensors, alpha, paired=(4,))


def _general(W: Tensor, tensors: dict[str, Tensor], alpha: float | None) -> Delta:
    """`W a1 a2 + b1 b2`; or the older `W a2 a1 + b2 b1`, where the shapes allow it and not the newer, or where all
    four matrices are square.

    The shapes are compared as the file has them, before kernels are flattened: a convolution with as many inputs as
    outputs and `b2 [r, in, k, k]` counts as the older, whose product then fails.
    """
    rank, older = general_layout(W, tensors)
    if alpha is not None and rank is None:
        raise Unread("a general update (GLoRA) with alpha, whose shapes do not have a common rank")
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    a1, a2, b1, b2 = (tensors[suffix].to(W).flatten(1) for suffix in keys.GENERAL)
    if not older:
        turned = arithmetic.through(arithmetic.through(W, a1), a2)
        return Delta(turned + arithmetic.shaped(arithmetic.product(b1, b2), W), scale)
    turned = arithmetic.product(arithmetic.product(W, a2), a1)
    added = arithmetic.product(b2, b1)
    if added.numel() == 1:  # broadcast
        return Delta(arithmetic.shaped(turned + added, W), scale)
    return Delta(arithmetic.shaped(turned, W) + arithmetic.shaped(added, W), scale)


def general_layout(W: Tensor, tensors: dict[str, Tensor]) -> tuple[int | None, bool]:
    """The rank of a general update, None if its shapes have no common one, and whether its layout is the older."""
    a1, a2, b1, b2 = arithmetic.need(tensors, *keys.GENERAL)
    if min(tensor.dim() for tensor in (a1, a2, b1, b2)) < 2:
        raise Unread("a general update (GLoRA) with a tensor of less than two dimensions")
    older = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    newer = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    both_square = older and a2.shape[0] == W.shape[0] and W.shape[0] == W.shape[1]
    if newer and not both_square:
        return a2.shape[0], False
    return (a1.shape[0], True) if older else (None, False)


def _rotation(W: Tensor, tensors: dict[str, Tensor], strength: float, update: torch.dtype) -> Delta:
    """`strength (R^T W - W)`, so that the strength counts twice; `rescale` is ignored."""
    alpha = arithmetic.alpha_of(tensors) or 0.0
    R = arithmetic.cayley(tensors[keys.BLOCKS].to(W.device, update), alpha).mT.to(W)
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return Delta(arithmetic.turned_rows(W, strength * R - strength * eye), alpha)


def _butterfly(W: Tensor, tensors: dict[str, Tensor], strength: float, update: torch.dtype) -> Delta:
    """`rescale prod(strength R + (1 - strength) I) W - W`; without factors only the rescale."""
    alpha = arithmetic.alpha_of(tensors)
    if alpha is None:
        raise Unread("ComfyUI fails on a butterfly rotation without alpha and leaves the layer unchanged")
    turned, blocks, factors = W, tensors[keys.BLOCKS].to(W.device, update), tensors.get(keys.RESCALE)
    if len(blocks):
        if strength != 1 and update != W.dtype:
            raise Unread("ComfyUI fails on a butterfly rotation at another strength than 1 where it computes in 16 "
                         "bits, and leaves the layer unchanged")
        R = arithmetic.cayley(blocks, alpha).to(W)
        eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
        turned = arithmetic.butterfly(W, strength * R + (1 - strength) * eye)
    if factors is not None:
        turned = arithmetic.multiplied(turned.to(update), factors, keys.RESCALE.strip("."))
    return Delta(turned - W, alpha)


def _measured(W: Tensor, delta: Delta, magnitude: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """`V = W + delta` at full strength, and what its magnitude is divided by. A magnitude per output with one dimension
    is applied along the last one of the layer if the sizes match (export.md 2.1)."""
    if magnitude.dim() == 0:
        raise Unread("ComfyUI cannot apply a dora_scale that is a single value")
    V = W + (delta.scale * delta.matrix).to(W)
    measured = W if norm == "original" else V
    along_output = magnitude.shape[0] == W.shape[0]  # ambiguous: with one output [1, in] counts as it too
    length = arithmetic.row_norm(measured) if along_output else arithmetic.column_norm(V)
    return V, length + torch.finfo(W.dtype).eps


def _ratio(magnitude: Tensor, length: Tensor, V: Tensor) -> Tensor:
    """The factor on `V`, in its dtype and shape."""
    try:
        return (magnitude / length).to(V).expand(V.shape)
    except RuntimeError:
        raise Unread(f"a dora_scale of the shape {tuple(magnitude.shape)} does not fit the layer {tuple(V.shape)}"
                     ) from None
