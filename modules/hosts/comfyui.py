"""Files for ComfyUI.

Its arithmetic is export.md 2.1 and 2.2, measured with its own code. Forge computes alike, without rotations.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from modules.files import keys, spellings
from modules.files.forms import Encoding
from modules.hosts import TRANSFORMERS, UNETS, How
from modules.hosts.parts import arithmetic
from modules.hosts.parts.arithmetic import Delta, Unread
from modules.preset.schema import Export

NAMES = keys.KOHYA
KINDS = ("linear", "conv", "embedding")


def notes(forms: Collection[str]) -> list[str]:
    """Forms that are not read everywhere; what depends on the norm is measured, see `others`."""
    found = []
    if any("magnitude" in form for form in forms):
        found.append('ComfyUI\'s loader "Load LoRA (Bypass)" ignores the magnitudes without a warning; load this file '
                     'with "Load LoRA"')
    if any("rotation" in form or "butterfly" in form for form in forms):
        found.append("ComfyUI skips stored rotations wherever it computes in 16 bits (low memory; on NVIDIA cards by "
                     "default since 2026), and such layers then do nothing; export.form auto writes what it always "
                     "reads")
    return found


def others(how: How) -> dict[str, How]:
    """The norm that the file was not written for, and which ComfyUI has it."""
    which = {"original": "as it is today", "adapted": "after its pull request 15458"}
    return {words: replace(how, norm=norm) for norm, words in which.items() if norm != how.norm}


def own(options: Export) -> tuple[Encoding, ...]:
    """None."""
    return ()


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Names of diffusers and kohya are known as far as a family's key map goes."""
    if spelling == spellings.PEFT and family in UNETS:
        return "it does not find query, key, value and output of the attention under these names; only the rest loads"
    if spelling == spellings.KOHYA_PATH and family in TRANSFORMERS:
        return "it does not know these names for this kind of model"
    if spelling == spellings.LEGACY and family in UNETS:
        return "it does not know these names for this kind of model"
    text = spelling == spellings.PEFT_TEXT
    if text and any("text_model." not in name and "encoder.block" not in name for name in names):
        return "it does not find text encoders' layers without text_model. in their names"
    if text and any("encoder.block" in name for name in names):
        return "it does not find the T5 under these names"
    return "it does not know such names" if spelling in (spellings.KOHYA_OFT, spellings.BARE) else ""


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Read beside any kind; of two, `diff_b` wins."""
    found = tensors.get(NAMES.bias)
    if found is None and keys.NORM in tensors:
        found = tensors.get(keys.NORM_BIAS)
    return None if found is None else strength * found


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """Of several kinds the last in `arithmetic.KINDS` wins, and only that one is read.

    With `how.dtype` everything is computed in it, as ComfyUI does where it patches weights on the fly.
    """
    found = arithmetic.kinds(tensors)
    if not found:
        if bias_change(tensors, strength) is not None:
            return W
        raise Unread(f"ComfyUI reads no update from {', '.join(sorted(tensors)) or 'nothing'}")
    kind, base = found[-1], W.to(how.dtype or W.dtype)
    if kind == "whole weight":
        return arithmetic.same_shape(tensors[keys.SET], W).to(base).to(W.dtype)
    if kind in ("norm", "difference"):
        difference = tensors[NAMES.difference if kind == "difference" else keys.NORM]
        return (base + strength * arithmetic.same_shape(difference, W).to(base)).to(W.dtype)
    magnitude = tensors.get(NAMES.magnitude)
    if kind in ("rotation", "butterfly"):
        if base.dtype in (torch.float16, torch.bfloat16) and len(tensors[keys.BLOCKS]):
            raise Unread("ComfyUI cannot apply stored rotations where it computes in 16 bits: it logs an error and "
                         "keeps the layer as it was")
        turned = _rotation(base, tensors, strength) if kind == "rotation" else _butterfly(base, tensors, strength)
        # Their alpha bounds the rotation; for a magnitude ComfyUI takes it as the scale all the same.
        delta = Delta(turned.matrix, 1.0 if magnitude is None else turned.scale)
    else:
        delta = _delta(kind, base, tensors)
    if magnitude is None:
        return (base + strength * delta.scale * delta.matrix).to(W.dtype)
    return (base + strength * (_decomposed(base, delta, magnitude, how.norm) - base)).to(W.dtype)


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
    """Made for whole kernels of two dimensions: with others the wrong entries come together, silently.

    With a core, `torch.kron` fails on the order in which ComfyUI has the numbers (run with PyTorch 2.13).
    """
    core = tensors.get(keys.KRONECKER[-1])
    if core is not None and ".lokr_w2" not in tensors:
        raise Unread("ComfyUI fails on a LoKr with a Tucker core (lokr_t2) and keeps the layer as it was"
                     if core.dim() == 4 else
                     f"ComfyUI fails on a LoKr with a Tucker core of {core.dim()} dimensions and stops the picture")
    return arithmetic.kronecker(W, tensors, alpha, paired=(4,))


def _general(W: Tensor, tensors: dict[str, Tensor], alpha: float | None) -> Delta:
    """`W a1 a2 + b1 b2`; or the older `W a2 a1 + b2 b1`, where the shapes allow it and not the newer, or where all
    four matrices are square.

    The shapes are compared as the file has them, before kernels are flattened: a convolution with as many inputs as
    outputs and `b2 [r, in, k, k]` counts as the older, whose product then fails.
    """
    a1, a2, b1, b2 = (tensor.to(W) for tensor in arithmetic.need(tensors, *keys.GENERAL))
    older = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    newer = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    both_square = older and a2.shape[0] == W.shape[0] and W.shape[0] == W.shape[1]
    rank = None
    if older:
        rank = a1.shape[0]
    if newer and not both_square:
        rank, older = a2.shape[0], False
    if alpha is not None and rank is None:
        raise Unread("a general update (GLoRA) with alpha, whose shapes have no common rank")
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    a1, a2, b1, b2 = (tensor.flatten(1) for tensor in (a1, a2, b1, b2))
    if not older:
        turned = arithmetic.through(arithmetic.through(W, a1), a2)
        return Delta(turned + arithmetic.shaped(arithmetic.product(b1, b2), W), scale)
    turned = arithmetic.product(arithmetic.product(W, a2), a1)
    added = arithmetic.product(b2, b1)
    if added.numel() == 1:  # broadcast
        return Delta(arithmetic.shaped(turned + added, W), scale)
    return Delta(arithmetic.shaped(turned, W) + arithmetic.shaped(added, W), scale)


def _rotation(W: Tensor, tensors: dict[str, Tensor], strength: float) -> Delta:
    """`strength (R^T W - W)`, so that the strength counts twice; `rescale` is ignored."""
    alpha = arithmetic.alpha_of(tensors) or 0.0
    R = arithmetic.cayley(tensors[keys.BLOCKS].to(W), alpha)
    return Delta(strength * (arithmetic.turned_rows(W, R.mT) - W), alpha)


def _butterfly(W: Tensor, tensors: dict[str, Tensor], strength: float) -> Delta:
    """`rescale prod(strength R + (1 - strength) I) W - W`; without factors only the rescale."""
    alpha = arithmetic.alpha_of(tensors)
    if alpha is None:
        raise Unread("ComfyUI fails on a butterfly rotation without alpha and keeps the layer as it was")
    turned, blocks, factors = W, tensors[keys.BLOCKS].to(W), tensors.get(keys.RESCALE)
    if len(blocks):
        R = arithmetic.cayley(blocks, alpha)
        eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
        turned = arithmetic.butterfly(W, strength * R + (1 - strength) * eye)
    if factors is not None:
        turned = arithmetic.multiplied(turned, factors, keys.RESCALE.strip("."))
    return Delta(turned - W, alpha)


def _decomposed(W: Tensor, delta: Delta, magnitude: Tensor, norm: str) -> Tensor:
    """`V magnitude / norm` of `V = W + delta`, at full strength. A magnitude per output with one dimension goes along
    the last one of the layer where that is as long (export.md 2.1)."""
    if magnitude.dim() == 0:
        raise Unread("ComfyUI cannot apply a dora_scale that is a single number")
    V = W + delta.scale * delta.matrix
    measured = W if norm == "original" else V
    along_output = magnitude.shape[0] == W.shape[0]  # a guess: with one output [1, in] is taken for it too
    length = arithmetic.row_norm(measured) if along_output else arithmetic.column_norm(V)
    try:
        ratio = magnitude.to(W) / (length + torch.finfo(W.dtype).eps)
    except RuntimeError:
        raise Unread(f"a dora_scale of the shape {tuple(magnitude.shape)} does not fit the layer") from None
    return arithmetic.multiplied(V, ratio, "dora_scale")
