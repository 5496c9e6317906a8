"""Arithmetic that several programs share, on a layer's tensors by suffix (`keys`).

Facts of export.md section 2, each compared there with the programs' code. `W` is a weight in the layer's own shape;
everything is computed in its dtype.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.files import forms, keys


class Unread(ValueError):
    """The program would leave the layer unchanged; the message says why."""


@dataclass(frozen=True)
class Delta:
    """The update of a weight, before the user's strength."""

    matrix: Tensor
    """Without `scale`, in the weight's shape."""
    scale: float


KINDS = ("LoRA", "LoHa", "LoKr", "GLoRA", "rotation", "butterfly", "norm", "difference", "whole weight")
"""Kinds of updates in the order in which ComfyUI checks them; the last one that a layer has is used."""


def kinds(tensors: dict[str, Tensor]) -> list[str]:
    """The kinds of updates in one layer's tensors, in the order of `KINDS`."""
    blocks = tensors.get(keys.BLOCKS)
    has = {
        "LoRA": keys.KOHYA.up in tensors or keys.PEFT.up in tensors,
        "LoHa": keys.HADAMARD[0] in tensors,
        "LoKr": any(suffix in tensors for suffix in (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w2_a")),
        "GLoRA": keys.GENERAL[0] in tensors,
        "rotation": blocks is not None and blocks.dim() == 3,
        "butterfly": blocks is not None and blocks.dim() == 4,
        "norm": keys.NORM in tensors,
        "difference": keys.KOHYA.difference in tensors,
        "whole weight": keys.SET in tensors,
    }
    return [kind for kind in KINDS if has[kind]]


def need(tensors: dict[str, Tensor], *suffixes: str) -> list[Tensor]:
    """These tensors. Raises `Unread` if one is missing."""
    missing = [suffix for suffix in suffixes if suffix not in tensors]
    if missing:
        raise Unread(f"{' and '.join(missing)} missing; the file has only {', '.join(sorted(tensors))}")
    return [tensors[suffix] for suffix in suffixes]


def alpha_of(tensors: dict[str, Tensor]) -> float | None:
    """The layer's alpha, if it has one. Raises `Unread` for several values."""
    alpha = tensors.get(keys.KOHYA.alpha)
    if alpha is not None and alpha.numel() != 1:
        raise Unread(f"alpha should be a single value, but it has the shape {tuple(alpha.shape)}")
    return None if alpha is None else alpha.item()


def bias_beside(kind: str, tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """The change of a bias that is read with full differences and norms only."""
    found = tensors.get({"difference": keys.KOHYA.bias, "norm": keys.NORM_BIAS}.get(kind, ""))
    return None if found is None else strength * found


def shaped(matrix: Tensor, W: Tensor) -> Tensor:
    """`matrix` in the shape of `W`. Raises `Unread` if it has another size."""
    if matrix.numel() != W.numel():
        raise Unread(f"the update has the shape {tuple(matrix.shape)}, but the layer {tuple(W.shape)}")
    return matrix.reshape(W.shape)


def same_shape(tensor: Tensor, W: Tensor) -> Tensor:
    """`tensor`, which must have exactly the shape of `W`. Raises `Unread` otherwise."""
    if tensor.shape != W.shape:
        raise Unread(f"the update has the shape {tuple(tensor.shape)}, but the layer {tuple(W.shape)}")
    return tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left right`, both with their further dimensions flattened. Raises `Unread` for shapes that do not fit."""
    left, right = left.flatten(1), right.flatten(1)
    if left.shape[1] != right.shape[0]:
        raise Unread(f"factors of the shapes {tuple(left.shape)} and {tuple(right.shape)} do not match")
    return left @ right


def low_rank(W: Tensor, tensors: dict[str, Tensor], alpha: float | None) -> Delta:
    """`up down`, or up, core and down of a convolution contracted; without alpha the scale is 1."""
    names = keys.KOHYA if keys.KOHYA.up in tensors else keys.PEFT
    up, down = need(tensors, names.up, names.down)
    rank = down.shape[0]
    if keys.MIDDLE in tensors:
        core = tensors[keys.MIDDLE].to(W)
        matrix = torch.einsum("mn...,om,ni->oi...", core, up.to(W).flatten(1), down.to(W).flatten(1))
    else:
        matrix = product(up.to(W), down.to(W))
    return Delta(shaped(matrix, W), 1.0 if alpha is None else alpha / rank)


def hadamard(W: Tensor, tensors: dict[str, Tensor], alpha: float | None) -> Delta:
    """`(a1 b1) o (a2 b2)`, each pair with its core if there are cores."""
    a1, b1, a2, b2 = (tensor.to(W) for tensor in need(tensors, *keys.HADAMARD))
    scale = 1.0 if alpha is None else alpha / b1.shape[0]
    if keys.HADAMARD_CORES[0] in tensors:
        t1, t2 = (tensor.to(W) for tensor in need(tensors, *keys.HADAMARD_CORES))
        first = torch.einsum("ij...,jr,ip->pr...", t1, b1, a1)
        return Delta(shaped(first * torch.einsum("ij...,jr,ip->pr...", t2, b2, a2), W), scale)
    return Delta(shaped(product(a1, b1) * product(a2, b2), W), scale)


def kronecker(
    W: Tensor, tensors: dict[str, Tensor], alpha: float | None, paired: Collection[int] = (3, 4, 5)
) -> Delta:
    """`kron(w1, w2)`; alpha is used only with a factored matrix, divided by the rank of w2 if both are.

    `paired`: of how many dimensions w2 may be for its kernel to be left out of the product. Otherwise the last
    dimensions of both are multiplied, kernel or not.
    """
    rank = None
    found = []
    for name in (".lokr_w1", ".lokr_w2"):
        whole = tensors.get(name)
        if whole is None:
            left, right = (tensor.to(W) for tensor in need(tensors, f"{name}_a", f"{name}_b"))
            rank = right.shape[0]
            if name == ".lokr_w2" and keys.KRONECKER[-1] in tensors:
                whole = torch.einsum("ij...,jr,ip->pr...", tensors[keys.KRONECKER[-1]].to(W), right, left)
            else:
                whole = product(left, right)
        found.append(whole.to(W))
    first, second = found
    if second.dim() in paired:
        first = first.reshape(*first.shape, *[1] * (second.dim() - 2))
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    first = first.reshape(*[1] * (second.dim() - first.dim()), *first.shape)
    return Delta(shaped(forms.kron(first, second), W), scale)


def through(W: Tensor, matrix: Tensor) -> Tensor:
    """`W matrix` on the channels, `matrix (in, n)`. Raises `Unread` for shapes that do not fit."""
    if W.shape[1] != matrix.shape[0]:
        raise Unread(f"a matrix of the shape {tuple(matrix.shape)} does not fit {W.shape[1]} channels")
    return torch.einsum("oi...,ij->oj...", W, matrix)


def cayley(blocks: Tensor, clip: float) -> Tensor:
    """`R = (I + Q)(I - Q)^-1 (..., b, b)` of `Q = blocks - blocks^T`; `clip > 0` bounds the Frobenius norm of all
    blocks together."""
    Q = blocks - blocks.mT
    if clip > 0:
        length = Q.norm() + 1e-8
        Q = torch.where(length > clip, Q * clip / length, Q)
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(eye - Q, eye + Q)  # both are polynomials in Q, so their order does not matter


def turned_rows(W: Tensor, R: Tensor) -> Tensor:
    """`blockdiag(R) W` on the rows, `R (n, b, b)`. Raises `Unread` if the blocks do not fill the rows."""
    if R.shape[0] * R.shape[1] != W.shape[0]:
        raise Unread(f"{R.shape[0]} blocks of {R.shape[1]} rows do not fill the layer's {W.shape[0]} outputs")
    return torch.einsum("kij,kj...->ki...", R, W.unflatten(0, R.shape[:2])).flatten(0, 1)


def butterfly(W: Tensor, R: Tensor) -> Tensor:
    """The factors `R (m, n, b, b)` one after the other on the rows; factor i mixes rows `2^i b/2` apart.

    Raises `Unread` for odd blocks, and for blocks that do not fill the rows; without factors nothing is checked.
    """
    size = R.shape[-1]
    if len(R) == 0:
        return W
    if size % 2:
        raise Unread(f"butterfly blocks of {size} rows: only even sizes work")
    if R.shape[1] * size != W.shape[0] or W.shape[0] % (2 ** R.shape[0] * (size // 2)):
        raise Unread(f"butterfly blocks {tuple(R.shape)} do not fit the layer's {W.shape[0]} outputs")
    for number, factor in enumerate(R):
        far = 2**number * (size // 2)
        W = W.unflatten(0, (-1, 2, far)).transpose(1, 2).flatten(0, 2)
        W = turned_rows(W, factor)
        W = W.unflatten(0, (-1, far, 2)).transpose(1, 2).flatten(0, 2)
    return W


def rescaled(W: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """`rescale W`, with its `rescale` if there is one. Raises `Unread` for a shape that is not one factor per row."""
    factors = tensors.get(keys.RESCALE)
    if factors is None:
        return W
    if factors.shape != (W.shape[0], *[1] * (W.dim() - 1)):
        raise Unread(f"{keys.RESCALE} has the shape {tuple(factors.shape)}, not one factor per output")
    return W * factors.to(W)


def multiplied(W: Tensor, factors: Tensor, what: str) -> Tensor:
    """`W factors`, with the factors' dimensions counted from the last, as torch does: one dimension is the inputs',
    or a kernel's, even if another was meant. Raises `Unread`, naming `what`, if the result does not have the shape
    of `W`."""
    try:
        return W * factors.to(W).expand(W.shape)
    except RuntimeError:
        raise Unread(f"a {what} of the shape {tuple(factors.shape)} does not fit the layer {tuple(W.shape)}") from None


def row_norm(W: Tensor) -> Tensor:
    """`[out, 1(, 1, 1)]`"""
    return W.flatten(1).norm(dim=1).view(-1, *[1] * (W.dim() - 1))


def column_norm(W: Tensor) -> Tensor:
    """`[1, in(, 1, 1)]`"""
    return W.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (W.dim() - 2))
