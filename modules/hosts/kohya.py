"""Files in kohya's names with the textbook norm, that of the adapted weight: for A1111, Forge and sd-scripts.

No program reads all of it. `effect` is that of the program that reads a layer exactly: A1111, and for output magnitudes
LyCORIS (export.md 2.3); `notes` says which program reads which form.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from modules.files import keys, spellings
from modules.files.forms import Encoding
from modules.hosts import TRANSFORMERS, How, Way
from modules.hosts.parts import arithmetic
from modules.hosts.parts.arithmetic import Delta, Unread
from modules.preset.schema import Export

NAMES = keys.KOHYA
KINDS = ("linear", "conv")
WAYS: dict[str, Way] = {}


def notes(forms: Collection[str]) -> list[str]:
    """Which of the programs read the file."""
    found = []
    if any("input magnitude" in form for form in forms):
        found.append("A1111, Forge and ComfyUI read the input magnitudes exactly; LyCORIS refuses such a file, and "
                     "sd-scripts ignores the magnitudes")
    if any("output magnitude" in form for form in forms):
        found.append("LyCORIS reads the output magnitudes exactly; A1111 and ComfyUI compute them with another norm "
                     "(for ComfyUI use export.host comfyui), and sd-scripts ignores them")
    if any("difference" in form for form in forms):
        found.append("A1111 and LyCORIS read the full differences; sd-scripts does not")
    if any("rotation" in form or "butterfly" in form for form in forms):
        found.append("A1111 reads the stored rotations; Forge and sd-scripts do not")
    return found


def others(how: How) -> dict[str, How]:
    """None: what differs is the program, not its version."""
    return {}


def fitted(W: Tensor, tensors: dict[str, Tensor], how: How) -> dict[str, Tensor]:
    """As they are."""
    return tensors


def own(options: Export) -> tuple[Encoding, ...]:
    """None."""
    return ()


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Which of the programs does not know such names."""
    if spelling == spellings.KOHYA_OFT:
        return "only sd-scripts itself reads them"
    if spelling in (spellings.GENERIC, spellings.BARE, spellings.PEFT_TEXT):
        return "A1111 and sd-scripts do not know such names"
    if spelling == spellings.PEFT:
        return "only Forge knows such names, and only for Flux" if family != "sd3" else "they do not know such names"
    if spelling in (spellings.LEGACY, spellings.LYCORIS):
        return "A1111 and sd-scripts do not know such names; Forge does"
    if spelling == spellings.KOHYA_PATH and family in TRANSFORMERS:
        return "they do not know these names for this kind of model"
    return ""


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Read beside full differences only."""
    if NAMES.difference in tensors and NAMES.bias in tensors:
        return strength * tensors[NAMES.bias]
    if keys.NORM in tensors and keys.NORM_BIAS in tensors:
        return strength * tensors[keys.NORM_BIAS]
    return None


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """A1111's linear strength, also where the exact program has another one."""
    found = arithmetic.kinds(tensors)
    if not found:
        raise Unread(f"A1111 reads no update from {', '.join(sorted(tensors)) or 'nothing'}")
    kind = found[-1]
    if kind == "whole weight":
        raise Unread("A1111 reads no whole weights")
    if kind in ("norm", "difference"):
        difference = tensors[NAMES.difference if kind == "difference" else keys.NORM]
        return W + strength * arithmetic.same_shape(difference, W).to(W)
    if kind in ("rotation", "butterfly"):
        return W + strength * (_turned(W, tensors) - W)
    delta = _delta(kind, W, tensors)
    magnitude = tensors.get(NAMES.magnitude)
    V = W + delta.scale * delta.matrix
    return W + strength * ((V if magnitude is None else _decomposed(V, magnitude)) - W)


def _delta(kind: str, W: Tensor, tensors: dict[str, Tensor]) -> Delta:
    alpha = arithmetic.alpha_of(tensors)
    if kind == "LoRA":
        return arithmetic.low_rank(W, tensors, alpha)
    if kind == "LoHa":
        return arithmetic.hadamard(W, tensors, alpha)
    if kind == "LoKr":
        return arithmetic.kronecker(W, tensors, alpha)
    if alpha is None or W.dim() > 2:
        raise Unread("A1111 reads a general update (GLoRA) of linear layers only, and only with alpha")
    a1, a2, b1, b2 = (tensor.to(W) for tensor in arithmetic.need(tensors, *keys.GENERAL))
    turned = arithmetic.product(arithmetic.product(W, a2), a1)
    added = arithmetic.product(b2, b1)
    return Delta(arithmetic.shaped(turned, W) + arithmetic.shaped(added, W), alpha / a1.shape[0])


def _turned(W: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """`rescale R^T W`, or `rescale R W` for a butterfly of one factor."""
    if (arithmetic.alpha_of(tensors) or 0.0) > 0:
        raise Unread("how A1111 bounds a rotation by its alpha is not known here")
    R = arithmetic.cayley(tensors[keys.BLOCKS].to(W), 0.0)
    if R.dim() == 3:
        return arithmetic.rescaled(arithmetic.turned_rows(W, R.mT), tensors)
    if len(R) > 1:
        raise Unread("only butterfly rotations with one factor are known to be read by A1111")
    return arithmetic.rescaled(arithmetic.butterfly(W, R), tensors)


def _decomposed(V: Tensor, magnitude: Tensor) -> Tensor:
    if magnitude.dim() != V.dim():
        raise Unread(f"a dora_scale of the shape {tuple(magnitude.shape)} does not fit the layer")
    if magnitude.shape[0] == V.shape[0]:
        return V * (magnitude.to(V) / (arithmetic.row_norm(V) + torch.finfo(V.dtype).eps))
    return V * (magnitude.to(V) / arithmetic.column_norm(V))
