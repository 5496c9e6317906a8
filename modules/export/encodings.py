"""The ways to store a layer's terms in a file. `choosing` determines which of them a program reads exactly."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.terms import Product, Terms, matrix
from modules.files import forms, keys
from modules.files.forms import Encoding, Seen
from modules.files.keys import Names

Part = Callable[[Seen], tuple[Tensor, ...] | None]


# -- pairs of factors -------------------------------------------------------------------------------------------------


def _pair(view: Seen) -> tuple[Tensor, ...] | None:
    """The terms' own factors; zeros where there are none."""
    terms, W = view.terms, view.W
    if terms.rotation is not None or terms.difference is not None:
        return None
    if terms.up is None or terms.down is None:
        return W.new_zeros(W.shape[0], 1), W.new_zeros(1, W.shape[1])
    return terms.up, terms.down


def _full_pair(view: Seen) -> tuple[Tensor, ...] | None:
    """A difference, as in the terms, with an identity as the other factor."""
    if view.terms.difference is None or view.terms.rotation is not None:
        return None
    return _beside_identity(view.unscaled() - view.W)


def _whole_pair(view: Seen) -> tuple[Tensor, ...] | None:
    """The whole change with its magnitude, with an identity as the other factor."""
    return _beside_identity(view.adapted() - view.W)


def _beside_identity(change: Tensor) -> tuple[Tensor, ...]:
    identity = torch.eye(min(change.shape), dtype=change.dtype, device=change.device)
    return (change, identity) if change.shape[1] <= change.shape[0] else (identity, change)


def _nothing(view: Seen) -> tuple[Tensor, ...] | None:
    return ()


# -- magnitudes beside a pair: the vector, or none --------------------------------------------------------------------


def _none(view: Seen) -> tuple[Tensor, ...] | None:
    return () if view.terms.magnitude is None else None


def _given(view: Seen) -> tuple[Tensor, ...] | None:
    return None if view.terms.magnitude is None else (view.terms.magnitude,)


def _compensated(view: Seen) -> tuple[Tensor, ...] | None:
    """`magnitude ||W|| / ||V||`: for a program that divides by the norm of the original weight (export.md 2.1)."""
    if view.terms.magnitude is None or view.terms.axis != "output":
        return None
    return (view.terms.magnitude.to(view.W) * forms.ratio(view.W.norm(dim=1), view.unscaled().norm(dim=1)),)


def _own(view: Seen) -> tuple[Tensor, ...] | None:
    """`||V||`: for a layer without a magnitude in a file where every layer has one."""
    return (view.unscaled().norm(dim=1),) if view.terms.magnitude is None else None


def _pair_encoding(pair: Part, magnitude: Part, size: str) -> Encoding:
    name = "LoRA" if size == "compact" else "LoRA of full rank"

    def tensors(view: Seen, names: Names) -> dict[str, Tensor] | None:
        factors, scale = pair(view), magnitude(view)
        if factors is None or scale is None:
            return None
        # A1111 until 1.9 multiplies by alpha / rank after the magnitude, so that both must be equal there.
        alpha = float(factors[1].shape[0]) if scale else keys.ALPHA
        found = keys.factor_tensors(names, view.layer, *factors, alpha=alpha)
        return found | _magnitude(view, names, scale)

    beside = _beside if magnitude is not _nothing else lambda terms: ""
    return Encoding(lambda terms: name + beside(terms), tensors, size)


def _magnitude(view: Seen, names: Names, scale: tuple[Tensor, ...]) -> dict[str, Tensor]:
    if not scale:
        return {}
    return {names.magnitude: names.magnitude_shape(scale[0], view.terms.axis or "output", view.dimensions)}


def _beside(terms: Terms) -> str:
    return f" with {terms.axis} magnitude" if terms.axis else ""


# -- rotations --------------------------------------------------------------------------------------------------------


def _general_encoding(with_alpha: bool, flat: bool = False) -> Encoding:
    """GLoRA, `W + W a1 a2 + b1 b2`, with `a1 = R^T - I` and `a2 = I` (export.md 3.4).

    `flat`: with the kernel of `b2` in one dimension. ComfyUI distinguishes two layouts of GLoRA by the second dimension
    of `b2`, and as `[1, in, k, k]` treats a convolution with as many inputs as outputs as the other one.
    """

    def tensors(view: Seen, names: Names) -> dict[str, Tensor] | None:
        terms, W = view.terms, view.W
        if terms.rotation is None or terms.side != "input" or terms.difference is not None:
            return None
        if terms.rotation.dim() != 3 or not names.difference or terms.magnitude is not None:
            return None
        if (flat and view.kernel == 1) or forms.is_over_kernel(terms, W.shape[1], view.kernel):
            return None
        R = terms.rotation.to(W)
        eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
        channels = R.shape[0] * R.shape[1]
        turn = _diagonal((R - eye).mT)
        identity = torch.eye(channels, dtype=W.dtype, device=W.device)
        up, down = W.new_zeros(W.shape[0], 1), W.new_zeros(1, W.shape[1])
        if terms.up is not None and terms.down is not None:
            up, down = keys.balanced(terms.up, terms.down)
        down = down if flat else view.native(down)
        if not with_alpha:
            factors = (view.spread(turn), view.spread(identity), view.spread(up), down)
            return dict(zip(keys.GENERAL, factors, strict=True))
        root = (channels / keys.ALPHA) ** 0.5
        factors = (view.spread(root * turn), view.spread(root * identity), view.spread(root * up), root * down)
        alpha = {names.alpha: torch.tensor(keys.ALPHA)}
        return dict(zip(keys.GENERAL, factors, strict=True)) | alpha

    return Encoding(lambda terms: "GLoRA", tensors, "full")


def _diagonal(blocks: Tensor) -> Tensor:
    """`(n b, n b)` with `blocks (n, b, b)` on the diagonal."""
    count, size, _ = blocks.shape
    eye = torch.eye(count, dtype=blocks.dtype, device=blocks.device)
    return torch.einsum("kl,kij->kilj", eye, blocks).reshape(count * size, count * size)


def _rotation_encoding(factors: int, rescaled: bool, with_alpha: bool) -> Encoding:
    """LyCORIS' rotation of the output in blocks, or a butterfly of one factor; `Q` with zeros below the diagonal.

    A program computes `blocks - blocks^T` from it and, of the plain kind, applies `R^T`; before a butterfly it
    interleaves the two halves of each block (export.md 3.3).
    """

    def tensors(view: Seen, names: Names) -> dict[str, Tensor] | None:
        terms, W = view.terms, view.W
        if terms.rotation is None or terms.side != "output" or terms.up is not None or terms.difference is not None:
            return None
        if (terms.magnitude is None) == rescaled or terms.axis == "input" or not names.difference:
            return None
        Q = _generator(terms.rotation.to(W)) if terms.rotation.dim() == 3 else None
        if Q is None:
            return None
        if factors:
            if Q.shape[-1] % 2:
                return None
            Q = linalg.butterfly_order(Q)
        blocks = torch.triu(Q if factors else -Q, 1)
        found = {keys.BLOCKS: blocks.unsqueeze(0) if factors else blocks}
        if rescaled and terms.magnitude is not None:
            gain = forms.ratio(terms.magnitude.to(W), view.unscaled().norm(dim=1))
            found[keys.RESCALE] = keys.along(gain, "output", view.dimensions)
        return found | ({names.alpha: torch.tensor(0.0)} if with_alpha else {})

    name = "butterfly" if factors else "rotation"
    return Encoding(lambda terms: f"stored {name}" + _beside(terms), tensors)


def _butterfly(view: Seen, names: Names) -> dict[str, Tensor] | None:
    """LyCORIS' butterfly of a rotation in stages: `Q` with zeros below the diagonal. Programs apply `R` of it."""
    terms, W = view.terms, view.W
    if terms.rotation is None or terms.rotation.dim() != 4 or terms.side != "output" or not names.difference:
        return None
    if terms.up is not None or terms.difference is not None or terms.magnitude is not None:
        return None
    Q = _generator(terms.rotation.to(W))
    return None if Q is None else {keys.BLOCKS: torch.triu(Q, 1), names.alpha: torch.tensor(0.0)}


def _generator(R: Tensor) -> Tensor | None:
    """`Q (..., b, b)` with `R = (I + Q)(I - Q)^-1`; None if R is not orthogonal, or has an angle of 180 degrees."""
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    Q = torch.linalg.solve_ex(R + eye, R - eye)[0]
    if not R.is_meta and not (forms.is_orthogonal(R) and (Q + Q.mT).abs().max() <= 100 * forms.ORTHOGONAL):
        return None
    return (Q - Q.mT) / 2


# -- products ---------------------------------------------------------------------------------------------------------


def _hadamard(view: Seen, names: Names) -> dict[str, Tensor] | None:
    """Two pairs, multiplied elementwise. alpha is the rank: LyCORIS would apply any other scale twice."""
    product = view.terms.product
    if product is None or product.kind != "hadamard" or not _stands_alone(view, names, keys.HADAMARD):
        return None
    if len(product.first[1]) != len(product.second[1]):
        return None
    pairs = _alike(keys.balanced(*product.first), keys.balanced(*product.second))
    alpha = {names.alpha: torch.tensor(float(len(product.first[1])))}
    return dict(zip(keys.HADAMARD, (*pairs[0], *pairs[1]), strict=True)) | alpha


def _kronecker(view: Seen, names: Names) -> dict[str, Tensor] | None:
    """A small matrix, and a large one in the shape of a kernel, or as a pair with alpha the rank."""
    product = view.terms.product
    if product is None or product.kind != "kronecker" or not _stands_alone(view, names, keys.KRONECKER):
        return None
    large = keys.balanced(*product.second) if len(product.second) == 2 else product.second
    (small,), large = _alike((matrix(product.first),), large)
    alpha = {names.alpha: torch.tensor(float(len(large[-1]) if len(large) == 2 else keys.ALPHA))}
    suffixes = keys.KRONECKER_PAIR if len(large) == 2 else keys.KRONECKER_WHOLE
    large = large if len(large) == 2 else (view.native(large[0]),)
    return {keys.KRONECKER[0]: small} | dict(zip(suffixes, large, strict=True)) | alpha


def _stands_alone(view: Seen, names: Names, suffixes: Collection[str]) -> bool:
    """Whether the terms are only a product, and the format supports it."""
    return view.terms.rotation is None and view.terms.magnitude is None and set(suffixes) <= names.all()


def _alike(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The same product with equal largest entries of both factors, to avoid fp16 overflow and underflow."""
    above, below = (torch.stack([tensor.abs().amax() for tensor in factor]).prod() for factor in (first, second))
    unit = torch.where((above > 0) & (below > 0), (below / above).sqrt(), 1.0)
    return tuple(t * unit ** (1 / len(first)) for t in first), tuple(t / unit ** (1 / len(second)) for t in second)


# -- the rest ---------------------------------------------------------------------------------------------------------


def _difference(view: Seen, names: Names) -> dict[str, Tensor] | None:
    if not names.difference:
        return None
    return {names.difference: view.native(view.adapted() - view.W)}


def _norm(view: Seen, names: Names) -> dict[str, Tensor] | None:
    """Differences of a norm's weight and bias under the names that LyCORIS has for them."""
    if view.layer.kind != "norm" or keys.NORM not in names.all():
        return None
    bias = {} if view.terms.bias is None else {keys.NORM_BIAS: view.terms.bias}
    return {keys.NORM: view.native(view.adapted() - view.W), **bias}


FULL = "full difference"
FULL_HERE = "full difference, for 16 bits"
"""For a layer whose smaller form is too inexact in the program's dtype."""
DIFFERENCE = Encoding(lambda terms: FULL, _difference, "full")

NORM = Encoding(lambda terms: "norm", _norm, "full")
"""The one form of norms."""

WHOLE = (DIFFERENCE, _pair_encoding(_whole_pair, _nothing, "full"))
"""The forms of export.form full: a full difference, or a LoRA of full rank if the program has none."""

PLAIN = tuple(_pair_encoding(_pair, magnitude, "compact") for magnitude in (_none, _own))
"""Pairs without a magnitude."""

PAIRS = (*PLAIN, *(_pair_encoding(_pair, magnitude, "compact") for magnitude in (_given, _compensated)))
"""Used wherever they are exact, even if the difference of a small layer is smaller: every program reads them."""

PRODUCTS = (
    Encoding(lambda terms: "Hadamard product", _hadamard), Encoding(lambda terms: "Kronecker product", _kronecker),
)

ENCODINGS = (
    *PAIRS,
    *PRODUCTS,
    DIFFERENCE,
    # Not with a magnitude: in 16 bits ComfyUI's norm makes it several times less exact than the full difference.
    *(_general_encoding(alpha, flat) for flat in (False, True) for alpha in (False, True)),
    *(_rotation_encoding(0, scale, alpha) for scale in (False, True) for alpha in (False, True)),
    *(_rotation_encoding(1, scale, True) for scale in (False, True)),
    Encoding(lambda terms: "stored butterfly", _butterfly),
    *(_pair_encoding(_full_pair, magnitude, "full") for magnitude in (_none, _own, _given, _compensated)),
)
"""All ways of writing terms; of two of the same size the first is used."""


def encode(encoding: Encoding, view: Seen, names: Names) -> dict[str, Tensor] | None:
    """The layer's tensors by suffix, with the change of its bias; None if it cannot be written in this way."""
    found = encoding.tensors(view, names)
    if found is None or view.terms.bias is None or keys.NORM_BIAS in found:
        return found
    return found | {names.bias: view.terms.bias} if names.bias else None


def size(encoding: Encoding, view: Seen, names: Names, dtype: str) -> int:
    """Bytes of the layer's tensors in a file of `dtype`; from shapes alone."""
    number, kept = 4 if dtype == "float32" else 2, keys.stored_in_full(names)
    return sum(n * (4 if suffix in kept else number) for suffix, n in numbers(encoding, view, names).items())


def numbers(encoding: Encoding, view: Seen, names: Names) -> dict[str, int]:
    """The number of elements of each of the layer's tensors, by suffix; from shapes alone."""
    terms = vars(view.terms).values()
    shapes = tuple(_of_tensors(value, lambda tensor: tensor.shape) for value in terms)
    key = (encoding, names, view.layer.kind, view.dimensions, view.kernel, view.W.shape, shapes)
    if key not in _NUMBERS:  # a model has hundreds of layers and a few dozen shapes
        found = encode(encoding, on_meta(view), names) or {}
        _NUMBERS[key] = {suffix: tensor.numel() for suffix, tensor in found.items()}
    return _NUMBERS[key]


_NUMBERS: dict[tuple, dict[str, int]] = {}


def on_meta(view: Seen) -> Seen:
    """The same shapes without values."""
    terms = view.terms
    without: dict[str, Any] = {n: _of_tensors(v, lambda tensor: tensor.to("meta")) for n, v in vars(terms).items()}
    return replace(view, W=view.W.to("meta"), terms=Terms(**without))


def _of_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A part of terms with its tensors mapped."""
    if isinstance(value, Product):
        return value.map(change)
    return change(value) if isinstance(value, Tensor) else value
