"""Files for LyCORIS' own loader (version 4.1.3): `create_lycoris_from_weights`, then `merge_to`.

Its arithmetic was run (export.md 2.3). Of LoHa and LoKr `merge_to` applies alpha / rank twice, unlike its own training.
It makes a module for each layer, whose sizes follow from the layer and from some of the file's tensors, and copies the
tensors into it. Tensors that torch can broadcast to the module's shape are accepted, and anything else ends the loading
of the file.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from modules.files import keys, spellings
from modules.files.kinds import gains
from modules.hosts import How
from modules.hosts.parts import arithmetic, usual
from modules.hosts.parts.arithmetic import Unread

NAMES = keys.KOHYA
KINDS = ("linear", "conv")
WAYS = usual.WAYS
fitted = usual.fitted
others = usual.others
own = usual.own

MARKS = {
    "LoRA": (NAMES.up,), "LoHa": keys.HADAMARD[:1], "IA3": (gains.ON_INPUT,), "LoKr": (".lokr_w1", ".lokr_w1_a"),
    "difference": (NAMES.difference,), "norm": (keys.NORM,), "rotation": (keys.BLOCKS,), "butterfly": (keys.BLOCKS,),
    "GLoRA": keys.GENERAL[:1],
}
"""By kind of update: the tensors that identify it. Of several kinds the first is read."""

BLOCKS_DIM = {"rotation": 3, "butterfly": 4}
CORE = ".bm.weight"


def notes(forms: Collection[str]) -> list[str]:
    """At which strengths the file is exact."""
    if any("magnitude" in form for form in forms):
        return ["LyCORIS reads the magnitudes exactly at multiplier 1; at others it keeps the whole update and scales "
                "the rest, see docs/strength.md"]
    return []


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Only names with its prefix are found."""
    if spelling != spellings.LYCORIS:
        return "its own loader looks for names that begin with lycoris_, unless LORA_PREFIX is set"
    return ""


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Read with full differences only."""
    return arithmetic.bias_beside(_kind(tensors), tensors, strength)


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """The first kind in `MARKS`; all but differences need alpha, which is 0 for "the rank"."""
    kind = _kind(tensors)
    if not kind:
        raise Unread(f"LyCORIS reads no update from {', '.join(sorted(tensors)) or 'nothing'}")
    if kind == "IA3":
        raise Unread("LyCORIS fails on its own files of factors (IA3, on_input)")
    if kind == "norm" and W.dim() > 1:
        raise Unread(f"LyCORIS fails on {keys.NORM} of a layer that is not a norm")
    if kind != "norm" and W.dim() < 2:
        raise Unread(f"LyCORIS fails on this kind of update ({kind}) of a norm")
    if kind in ("norm", "difference"):
        return W + strength * taken(tensors, NAMES.difference if kind == "difference" else keys.NORM, *W.shape).to(W)
    alpha = arithmetic.alpha_of(tensors)
    if alpha is None:
        raise Unread(f"LyCORIS fails on this kind of update ({kind}) without alpha")
    if kind in ("rotation", "butterfly"):
        return (_rotated if kind == "rotation" else _butterfly)(W, tensors, alpha * W.shape[0], strength)
    if kind == "GLoRA":
        return W + strength * _general(W, tensors, alpha)
    change = DELTAS[kind](W, tensors, alpha)
    if NAMES.magnitude not in tensors:
        return W + strength * change
    magnitude = taken(tensors, NAMES.magnitude, W.shape[0], *[1] * (W.dim() - 1))  # of outputs, or one for all
    V = W + change
    gain = magnitude.to(W) / (arithmetic.row_norm(V) + torch.finfo(W.dtype).eps)
    return V * (strength * (gain - 1) + 1)


def _kind(tensors: dict[str, Tensor]) -> str:
    for kind, marks in MARKS.items():
        found = [tensors[suffix] for suffix in marks if suffix in tensors]
        if found and found[0].dim() == BLOCKS_DIM.get(kind, found[0].dim()):
            return kind
    return ""


def taken(tensors: dict[str, Tensor], suffix: str, *shape: int) -> Tensor:
    """A tensor of the file in the shape that LyCORIS expects. Raises `Unread` if it does not fit."""
    (found,) = arithmetic.need(tensors, suffix)
    try:
        return found.expand(shape)
    except RuntimeError:
        raise Unread(f"LyCORIS makes {suffix.strip('.')} {shape} for this layer and rejects a file where it is "
                     f"{tuple(found.shape)}") from None


def _has_core(W: Tensor, tensors: dict[str, Tensor], suffix: str) -> bool:
    """Whether an update has a core, which exists only for kernels of more than one position. Raises `Unread` for
    another layer that has one."""
    if suffix not in tensors:
        return False
    if W[0, 0].numel() == 1:
        raise Unread(f"LyCORIS fails on a core ({suffix.strip('.')}) where the layer has no kernel")
    return True


def _low_rank(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    (down,) = arithmetic.need(tensors, NAMES.down)
    rank, kernel = _first(down), W.shape[2:]
    ones = [1] * len(kernel)
    found = {NAMES.up: taken(tensors, NAMES.up, W.shape[0], rank, *ones)}
    if _has_core(W, tensors, keys.MIDDLE):
        found[NAMES.down] = taken(tensors, NAMES.down, rank, W.shape[1], *ones)
        found[keys.MIDDLE] = taken(tensors, keys.MIDDLE, rank, rank, *kernel)
    else:
        found[NAMES.down] = taken(tensors, NAMES.down, rank, *W.shape[1:])
    delta = arithmetic.low_rank(W, found, alpha or None)
    return delta.scale * delta.matrix


def _hadamard(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    rank, found = _first(arithmetic.need(tensors, keys.HADAMARD[1])[0]), {}
    if _has_core(W, tensors, keys.HADAMARD_CORES[0]):
        for suffix in keys.HADAMARD:
            found[suffix] = taken(tensors, suffix, rank, W.shape[0 if suffix.endswith("a") else 1])
        for suffix in keys.HADAMARD_CORES:
            found[suffix] = taken(tensors, suffix, rank, rank, *W.shape[2:])
    else:
        for suffix in keys.HADAMARD:
            shape = (W.shape[0], rank) if suffix.endswith("a") else (rank, W[0].numel())
            found[suffix] = taken(tensors, suffix, *shape)
    delta = arithmetic.hadamard(W, found, alpha or None)
    return delta.scale**2 * delta.matrix


def _kronecker(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    """A module is either whole or factored, depending on its sizes and the rank, not on the file."""
    if ".lokr_w1" in tensors and tensors[".lokr_w1"].dim() != 2:
        raise Unread(f"LyCORIS fails on lokr_w1 of {tensors['.lokr_w1'].dim()} dimensions")
    rank, factor = _rank_and_factor(tensors)
    (first, second), (first_in, second_in) = split(W.shape[0], factor), split(W.shape[1], factor)
    is_full = rank is None
    rank = rank or 1
    both = ".lokr_w1" not in tensors and ".lokr_w2" not in tensors
    shapes: dict[str, tuple[int, ...]] = {}
    if both and rank < max(first, first_in) / 2 and not is_full:
        shapes |= {".lokr_w1_a": (first, rank), ".lokr_w1_b": (rank, first_in)}
    else:
        shapes[".lokr_w1"] = (first, first_in)
    if is_full or rank >= max(second, second_in) / 2:
        shapes[".lokr_w2"] = (second, second_in, *W.shape[2:])
    elif keys.KRONECKER[-1] in tensors and W[0, 0].numel() > 1:
        shapes |= {".lokr_w2_a": (rank, second), ".lokr_w2_b": (rank, second_in),
                   keys.KRONECKER[-1]: (rank, rank, *W.shape[2:])}
    else:
        shapes |= {".lokr_w2_a": (second, rank), ".lokr_w2_b": (rank, second_in * W[0, 0].numel())}
    unused = [suffix for suffix in _copied(tensors) if suffix not in shapes]
    if unused:
        raise Unread(f"LyCORIS makes no {' and '.join(suffix.strip('.') for suffix in unused)} for this layer and "
                     "rejects a file with it")
    found = {suffix: taken(tensors, suffix, *shape) for suffix, shape in shapes.items()}
    scale = 1.0 if alpha == 0 or {".lokr_w1", ".lokr_w2"} <= shapes.keys() else alpha / rank
    return scale**2 * arithmetic.kronecker(W, found, None).matrix


def _copied(tensors: dict[str, Tensor]) -> list[str]:
    """The tensors of a LoKr that are copied into the module: for a whole matrix, no factors."""
    found = [keys.KRONECKER[-1]] if keys.KRONECKER[-1] in tensors else []
    for name in (".lokr_w1", ".lokr_w2"):
        found += [name] if name in tensors else [f"{name}_a", f"{name}_b"]
    return found


def _rank_and_factor(tensors: dict[str, Tensor]) -> tuple[int | None, int]:
    """The rank, None for one that is whole, and the factor by which the layer's sizes are split; both are inferred from
    the tensors' shapes, also for a core's matrices, whose sides are swapped."""
    sizes, longest = [], []
    for name in (".lokr_w1", ".lokr_w2"):
        both = 2 * [tensors[name]] if name in tensors else arithmetic.need(tensors, f"{name}_a", f"{name}_b")
        sizes.append(_sides(*both))
        longest.append(max(both[0].shape if name in tensors else sizes[-1]))  # a kernel's sides count
    factored = next((name for name in (".lokr_w1_a", ".lokr_w2_a") if name in tensors), "")
    rank = _sides(tensors[factored], tensors[factored])[1] if factored else None
    (a, c), (b, d) = sizes
    if a == split(a * b, -1)[0] and c == split(c * d, -1)[0]:
        return rank, -1
    for factor in longest:
        if a * b % factor == 0 and c * d % factor == 0 and factor in (a, b) and factor in (c, d):
            return rank, factor
    return rank, min(longest)


def split(size: int, factor: int) -> tuple[int, int]:
    """`size` as a product, the smaller factor first: with `factor` if that divides it; else the most even one whose
    smaller factor is at most `factor` (-1: any)."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    smaller = [n for n in range(1, int(size**0.5) + 1) if size % n == 0 and (factor < 0 or n <= max(factor, 1))]
    return smaller[-1], size // smaller[-1]


DELTAS: dict[str, Callable[[Tensor, dict[str, Tensor], float], Tensor]] = {
    "LoRA": _low_rank, "LoHa": _hadamard, "LoKr": _kronecker,
}


def _general(W: Tensor, tensors: dict[str, Tensor], alpha: float) -> Tensor:
    """`W a1 a2 + b1 b2`; the rank is that of a2. A magnitude is ignored."""
    if CORE in tensors:
        raise Unread(f"LyCORIS fails on a core ({CORE.strip('.')}) of a general update (GLoRA)")
    rank, inputs, ones = _first(arithmetic.need(tensors, keys.GENERAL[1])[0]), W.shape[1], [1] * (W.dim() - 2)
    shapes = ((inputs, rank, *ones), (rank, inputs, *ones), (W.shape[0], rank, *ones), (rank, *W.shape[1:]))
    a1, a2, b1, b2 = (taken(tensors, suffix, *shape).flatten(1).to(W)
                      for suffix, shape in zip(keys.GENERAL, shapes, strict=True))
    turned = arithmetic.through(arithmetic.through(W, a1), a2)
    return (alpha or rank) / rank * (turned + arithmetic.shaped(b1 @ b2, W))


def _rotated(W: Tensor, tensors: dict[str, Tensor], clip: float, strength: float) -> Tensor:
    """`rescale (strength (R^T - I) + I) W`, in blocks of the smaller of two sizes."""
    size, number = split(W.shape[0], tensors[keys.BLOCKS].shape[1])
    blocks = taken(tensors, keys.BLOCKS, number, size, size).to(W)
    turned = arithmetic.turned_rows(W, arithmetic.cayley(blocks, clip).mT)
    return _rescaled(W + strength * (turned - W), tensors)


def _butterfly(W: Tensor, tensors: dict[str, Tensor], clip: float, strength: float) -> Tensor:
    """`rescale prod(strength R + (1 - strength) I) W`, with as many factors as the layer can have."""
    largest = tensors[keys.BLOCKS].shape[2]
    sizes = [n for n in range(2, largest + 1, 2) if W.shape[0] % n == 0 and (W.shape[0] // n).bit_count() == 1]
    if not sizes:
        raise Unread(f"LyCORIS cannot rotate {W.shape[0]} outputs in butterfly blocks of up to {largest} rows")
    size, number = sizes[-1], W.shape[0] // sizes[-1]
    blocks = taken(tensors, keys.BLOCKS, number.bit_length(), number, size, size).to(W)
    R = arithmetic.cayley(blocks, clip)
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return _rescaled(arithmetic.butterfly(W, strength * R + (1 - strength) * eye), tensors)


def _rescaled(W: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    if keys.RESCALE not in tensors:
        return W
    return W * taken(tensors, keys.RESCALE, W.shape[0], *[1] * (W.dim() - 1)).to(W)


def _first(tensor: Tensor) -> int:
    """A tensor's first size. Raises `Unread` for a scalar."""
    return _sides(tensor.unsqueeze(-1), tensor.unsqueeze(-1))[0]


def _sides(left: Tensor, right: Tensor) -> tuple[int, int]:
    """The first size of one and the second of the other. Raises `Unread` if there is none."""
    if left.dim() < 2 or right.dim() < 2:
        raise Unread(f"LyCORIS fails on tensors of the shapes {tuple(left.shape)} and {tuple(right.shape)}")
    return left.shape[0], right.shape[1]
