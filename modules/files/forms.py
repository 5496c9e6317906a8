"""A layer's exact terms, as a program sees the layer, and the ways a file can hold them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.layers import Layer
from modules.adapters.terms import Product, Terms, matrix
from modules.files.keys import Names

ORTHOGONAL = 1e-5
"""Largest entry of `R R^T - I` of a rotation; of float32 it is about 1e-6."""


@dataclass(frozen=True)
class Seen:
    """A layer's weight and terms as programs see them: an embedding's table is not transposed.

    Its rows are then the tokens, and an axis or side of the terms is the other one.
    """

    layer: Layer
    W: Tensor
    """`(rows, columns)`"""
    terms: Terms
    orthogonal: bool = True
    """Whether the rotation, if any, is orthogonal; so this is known for a layer without values."""
    positive: bool = True
    """Whether no magnitude is negative."""

    @property
    def kernel(self) -> int:
        """Columns per channel."""
        return 1 if self.layer.kind == "embedding" else self.layer.kernel

    @property
    def dimensions(self) -> int:
        """Those of the layer's own weight."""
        return self.layer.base.weight.dim() if self.layer.kind == "conv" else 2

    def native(self, matrix: Tensor) -> Tensor:
        """`matrix (rows, columns)` in the shape of files."""
        return self.layer.native(matrix) if self.layer.kind in ("conv", "norm") else matrix

    def spread(self, matrix: Tensor) -> Tensor:
        """`matrix (m, n)` as a convolution with a kernel of one position, if the layer is one."""
        return matrix.view(*matrix.shape, *[1] * (self.dimensions - 2))

    def unscaled(self) -> Tensor:
        """`V`, before the magnitude."""
        return unscaled(self.terms, self.W, self.kernel)

    def adapted(self) -> Tensor:
        """`W'`."""
        return scaled(self.unscaled(), self.terms.magnitude, self.terms.axis, self.kernel)


@dataclass(frozen=True)
class Encoding:
    """One way of writing terms into a file."""

    words: Callable[[Terms], str]
    """For reports and metadata, of terms as seen by programs."""
    tensors: Callable[[Seen, Names], dict[str, Tensor] | None]
    """The layer's tensors by suffix, float32 or float64; None if such terms cannot be written in this way. Works on
    meta."""
    size: str = "compact"
    """"compact", or "full" where the size is that of the layer."""


def is_pair(terms: Terms) -> bool:
    """Whether they are a low-rank pair, perhaps with a bias, and nothing else: the change of a row of the weight
    depends on that row alone."""
    others = (terms.rotation, terms.difference, terms.product, terms.magnitude)
    return terms.up is not None and terms.down is not None and all(part is None for part in others)


def of_rows(terms: Terms, start: int, stop: int) -> Terms:
    """A pair's terms for some rows of the weight."""
    return Terms(up=None if terms.up is None else terms.up[start:stop], down=terms.down)


def pair_distance(first: Terms, second: Terms) -> float:
    """The distance of the second pair from the first, relative to the first; from the factors alone."""
    factors = (first.up, first.down, second.up, second.down)
    up, down, other_up, other_down = (t.double() for t in factors if t is not None)
    own = linalg.product_svd(up, down)[1].norm().item()
    apart = linalg.product_svd(torch.cat([up, -other_up], 1), torch.cat([down, other_down]))[1].norm().item()
    return apart / own if own else 0.0


def seen(layer: Layer, W: Tensor, terms: Terms) -> Seen:
    """From `W (out, fan_in)` and terms in the adapters' orientation to the programs'."""
    orthogonal = terms.rotation is None or is_orthogonal(terms.rotation)
    positive = terms.magnitude is None or terms.magnitude.is_meta or bool((terms.magnitude >= 0).all())
    terms = expanded(terms)
    if layer.kind == "embedding":
        return Seen(layer, W.mT, turned(terms), orthogonal, positive)
    return Seen(layer, W, terms, orthogonal, positive)


def is_orthogonal(R: Tensor) -> bool:
    """Whether the blocks `R (n, b, b)` are rotations, to float32's accuracy; assumed of tensors without values."""
    if R.is_meta:
        return True
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return bool((R @ R.mT - eye).abs().max() <= ORTHOGONAL)


def applied(terms: Terms, layer: Layer, W: Tensor) -> Tensor:
    """The adapted weight `(out, fan_in)` of `W (out, fan_in)`, in W's dtype."""
    return scaled(unscaled(terms, W, layer.kernel), terms.magnitude, terms.axis, layer.kernel)


def unscaled(terms: Terms, W: Tensor, kernel: int) -> Tensor:
    """`V = W R^T + up down + difference`, or with `R W`; `(out, fan_in)`, in W's dtype."""
    terms = expanded(terms)
    V = W if terms.rotation is None else rotated(W, terms.rotation.to(W), terms.side, kernel)
    if terms.up is not None and terms.down is not None:
        V = (terms.up.to(W) @ terms.down.to(W)).add_(V)
    return V if terms.difference is None else V + terms.difference.to(W)


def is_over_kernel(terms: Terms, columns: int, kernel: int) -> bool:
    """Whether the rotation is over channels and kernel positions of a weight with so many columns."""
    R = terms.rotation
    if kernel == 1 or R is None or R.dim() != 3 or terms.side != "input":
        return False
    return R.shape[0] * R.shape[1] == columns


def rotated(W: Tensor, R: Tensor, side: str, kernel: int) -> Tensor:
    """`blockdiag(R) W` (side "output") or `W blockdiag(R)^T` on the channels ("input"), `R (blocks, b, b)`, on channels
    and kernel positions where it has as many rows as W columns; or a butterfly, `R (stages, blocks, b, b)`, of rows, or
    of columns without a kernel."""
    if R.dim() == 4:
        rows = W if side == "output" else W.mT
        turned_rows = linalg.butterfly(rows.unsqueeze(0), R - torch.eye(R.shape[-1], dtype=R.dtype, device=R.device))
        return turned_rows[0] if side == "output" else turned_rows[0].mT
    if side == "output":
        return torch.einsum("kij,kjf->kif", R, W.unflatten(0, R.shape[:2])).flatten(0, 1)
    kernel = 1 if R.shape[0] * R.shape[1] == W.shape[1] else kernel
    return torch.einsum("okcs,kbc->okbs", W.unflatten(1, (*R.shape[:2], kernel)), R).flatten(1)


def scaled(V: Tensor, magnitude: Tensor | None, axis: str, kernel: int) -> Tensor:
    """`V magnitude / norm(V)` along `axis`; `V (out, fan_in)` itself without magnitude."""
    if magnitude is None:
        return V
    if axis == "output":
        return V * ratio(magnitude.to(V), V.norm(dim=1)).unsqueeze(1)
    channels = V.unflatten(1, (-1, kernel))
    return (channels * ratio(magnitude.to(V), channels.norm(dim=(0, 2))).unsqueeze(1)).flatten(1)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """`above / below`, 0 where `below` is 0: a zero weight stays zero."""
    return torch.where(below == 0, 0.0, above / below)


def expanded(terms: Terms) -> Terms:
    """With a pair instead of a product without pair or difference, or the whole difference where that is smaller; the
    product is kept."""
    product = terms.product
    if product is None or terms.up is not None or terms.difference is not None:
        return terms
    ups, downs = zip(_as_pair(product.first), _as_pair(product.second), strict=True)
    out, fan_in = (len(ups[0]), downs[0].shape[1])
    rank = ups[0].shape[1] * ups[1].shape[1]
    if product.kind == "kronecker":
        out, fan_in = out * len(ups[1]), fan_in * downs[1].shape[1]
    if rank * (out + fan_in) >= out * fan_in:
        return replace(terms, difference=multiplied(product))
    if product.kind == "kronecker":
        return replace(terms, up=kron(*ups), down=kron(*downs))
    up = torch.einsum("oi,oj->oij", *ups).flatten(1)
    return replace(terms, up=up, down=torch.einsum("ik,jk->ijk", *downs).flatten(0, 1))


def multiplied(product: Product) -> Tensor:
    """The whole matrix `(out, fan_in)`."""
    first, second = matrix(product.first), matrix(product.second)
    return kron(first, second) if product.kind == "kronecker" else first * second


def kron(first: Tensor, second: Tensor) -> Tensor:
    """The Kronecker product of two tensors of as many dimensions. torch's own fails on some views, and on some that
    are contiguous as well."""
    outer = first.reshape([n for size in first.shape for n in (size, 1)])
    inner = second.reshape([n for size in second.shape for n in (1, size)])
    return (outer * inner).reshape([a * b for a, b in zip(first.shape, second.shape, strict=True)])


def _as_pair(factor: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A whole matrix as itself and an identity, with the smaller inner size."""
    if len(factor) == 2:
        return factor
    rows, columns = factor[0].shape
    eye = torch.eye(min(rows, columns), dtype=factor[0].dtype, device=factor[0].device)
    return (factor[0], eye) if columns <= rows else (eye, factor[0])


def turned(terms: Terms) -> Terms:
    """The terms of the transposed weight: `(W R^T)^T = R W^T`."""
    other = {"input": "output", "output": "input", "": ""}
    product = terms.product
    if product is not None:
        first, second = (tuple(t.mT for t in factor[::-1]) for factor in (product.first, product.second))
        product = Product(product.kind, first, second)
    return replace(
        terms,
        up=None if terms.down is None else terms.down.mT,
        down=None if terms.up is None else terms.up.mT,
        difference=None if terms.difference is None else terms.difference.mT,
        product=product,
        axis=other[terms.axis],
        side=other[terms.side],
    )


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best `up (out, r)`, `down (r, fan_in)` for `matrix (out, fan_in)`, r = rank or less (Eckart-Young).

    Through the eigenvectors of the smaller Gram matrix in float64: far cheaper than an SVD of a 10240 x 1280 layer, and
    projecting on them is optimal regardless of the accuracy of the singular values.
    """
    wide = matrix.shape[1] > matrix.shape[0]
    tall = (matrix.mT if wide else matrix).double()
    if matrix.is_meta:
        vectors = tall.new_empty(tall.shape[1], min(rank, tall.shape[1]))
    else:
        vectors = torch.linalg.eigh(tall.mT @ tall).eigenvectors[:, -rank:]
    left, right = (tall @ vectors).to(matrix.dtype), vectors.mT.to(matrix.dtype)
    return (right.mT, left.mT) if wide else (left, right)


def shortened(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same for the product of `up (out, r)` and `down (r, fan_in)`, from the factors alone."""
    U, values, V = linalg.product_svd(up, down)
    return (U[:, :rank] * values[:rank]).to(up.dtype), V[:rank].to(down.dtype)


def approximated(view: Seen, rank: int, keep_magnitude: bool) -> Seen:
    """The layer with a pair of `rank` instead of its terms, or with its exact magnitude."""
    terms = view.terms
    if is_pair(terms) and terms.up is not None and terms.down is not None and not terms.up.is_meta:
        up, down = shortened(terms.up, terms.down, rank)
    else:
        goal = view.unscaled() if keep_magnitude else view.adapted()
        up, down = truncated(goal - view.W, rank)
    kept = Terms(up=up, down=down, bias=terms.bias)
    if keep_magnitude:
        kept = replace(kept, magnitude=terms.magnitude, axis=terms.axis)
    return replace(view, terms=kept)
