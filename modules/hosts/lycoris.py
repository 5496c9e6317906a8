"""Files for LyCORIS' own loader (version 4.1.3): `create_lycoris_from_weights`, then `merge_to`.

Its arithmetic was run (export.md 2.3). Of LoHa and LoKr `merge_to` applies alpha / rank twice, unlike its own training.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from modules.files import keys, spellings
from modules.hosts import How
from modules.hosts.parts import arithmetic, usual
from modules.hosts.parts.arithmetic import Unread

NAMES = keys.KOHYA
KINDS = ("linear", "conv")
WAYS = usual.WAYS
fitted = usual.fitted
others = usual.others
own = usual.own

ORDER = ("LoRA", "LoHa", "LoKr", "difference", "norm", "rotation", "butterfly", "GLoRA")
"""Of several kinds the first is read."""


def notes(forms: Collection[str]) -> list[str]:
    """At which strengths the file is exact."""
    if any("magnitude" in form for form in forms):
        return ["LyCORIS reads the magnitudes exactly at multiplier 1; at others it keeps the whole update and scales "
                "the rest, see docs/strength.md"]
    return []


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Only names with its own prefix are found."""
    if spelling != spellings.LYCORIS:
        return "its own loader looks for names that begin with lycoris_, unless LORA_PREFIX is set"
    return ""


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Read beside full differences only."""
    return arithmetic.bias_beside(_kind(tensors), tensors, strength)


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """The first kind in `ORDER`; all but differences need alpha, which is 0 for "the rank"."""
    kind = _kind(tensors)
    if not kind:
        raise Unread(f"LyCORIS reads no update from {', '.join(sorted(tensors)) or 'nothing'}")
    if kind in ("norm", "difference"):
        difference = tensors[NAMES.difference if kind == "difference" else keys.NORM]
        return W + strength * arithmetic.same_shape(difference, W).to(W)
    alpha = arithmetic.alpha_of(tensors)
    if alpha is None:
        raise Unread(f"LyCORIS fails on this kind of update ({kind}) without alpha")
    if kind in ("rotation", "butterfly"):
        return (_rotated if kind == "rotation" else _butterfly)(W, tensors, alpha * W.shape[0], strength)
    if kind == "GLoRA":
        return W + strength * _general(W, tensors, alpha)
    change = DELTAS[kind](W, tensors, alpha)
    magnitude = tensors.get(NAMES.magnitude)
    if magnitude is None:
        return W + strength * change
    if magnitude.shape != (W.shape[0], *[1] * (W.dim() - 1)):
        raise Unread("LyCORIS reads magnitudes of outputs only and refuses a file with another dora_scale, here of the "
                     f"shape {tuple(magnitude.shape)}")
    V = W + change
    gain = magnitude.to(W) / (arithmetic.row_norm(V) + torch.finfo(W.dtype).eps)
    return V * (strength * (gain - 1) + 1)


def _kind(tensors: dict[str, Tensor]) -> str:
    found = arithmetic.kinds(tensors)
    if keys.KOHYA.up not in tensors and "LoRA" in found:
        found.remove("LoRA")  # peft's names it does not know
    return next((kind for kind in ORDER if kind in found), "")


def _low_rank(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    delta = arithmetic.low_rank(W, tensors, alpha or None)
    return delta.scale * delta.matrix


def _hadamard(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    delta = arithmetic.hadamard(W, tensors, alpha or None)
    return delta.scale**2 * delta.matrix


def _kronecker(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    delta = arithmetic.kronecker(W, tensors, alpha or None)
    return delta.scale**2 * delta.matrix


DELTAS: dict[str, Callable[[Tensor, dict[str, Tensor], float], Tensor]] = {
    "LoRA": _low_rank, "LoHa": _hadamard, "LoKr": _kronecker,
}


def _general(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    """`W a1 a2 + b1 b2`; the rank is that of a2, to which the others are broadcast. A magnitude is ignored."""
    a1, a2, b1, b2 = (tensor.to(W) for tensor in arithmetic.need(tensors, *keys.GENERAL))
    rank, scale = a2.shape[0], (alpha or a2.shape[0]) / a2.shape[0]
    try:
        b1, b2 = b1.flatten(1).expand(W.shape[0], rank), b2.flatten(1).expand(rank, W[0].numel())
        a1, a2 = a1.flatten(1).expand(W.shape[1], rank), a2.flatten(1).expand(rank, W.shape[1])
    except RuntimeError:
        raise Unread("the shapes of a general update (GLoRA) do not fit the layer") from None
    turned = arithmetic.through(arithmetic.through(W, a1), a2)
    return scale * (turned + arithmetic.shaped(b1 @ b2, W))


def _rotated(W: Tensor, tensors: dict[str, Tensor], clip: float, strength: float) -> Tensor:
    """`rescale (strength (R^T - I) + I) W`."""
    blocks = tensors[keys.BLOCKS].to(W)
    if blocks.shape[0] < blocks.shape[1]:
        raise Unread(f"LyCORIS refuses rotations in fewer blocks ({blocks.shape[0]}) than a block has rows "
                     f"({blocks.shape[1]})")
    turned = arithmetic.turned_rows(W, arithmetic.cayley(blocks, clip).mT)
    return arithmetic.rescaled(W + strength * (turned - W), tensors)


def _butterfly(W: Tensor, tensors: dict[str, Tensor], clip: float, strength: float) -> Tensor:
    """`rescale prod(strength R + (1 - strength) I) W`."""
    blocks = tensors[keys.BLOCKS].to(W)
    factors = f"{blocks.shape[1] - 1:b}".count("1") + 1
    if len(blocks) != factors:
        raise Unread(f"LyCORIS takes {factors} factors for a butterfly rotation in {blocks.shape[1]} blocks, whatever "
                     f"the file has; here are {len(blocks)}")
    R = arithmetic.cayley(blocks, clip)
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return arithmetic.rescaled(arithmetic.butterfly(W, strength * R + (1 - strength) * eye), tensors)
