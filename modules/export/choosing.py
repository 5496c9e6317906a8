"""How a layer is written: chosen by evaluating the program's arithmetic.

There is no table of what a program supports. An encoding is used if `effect` computes the adapted weight from it, on a
small random stand-in with the same structure of terms in float64; so the choice works on the meta device too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from modules import hosts
from modules.adapters import linalg
from modules.adapters.layers import as_layer
from modules.adapters.terms import Product, Terms
from modules.export import encodings
from modules.files import forms
from modules.files.forms import Encoding, Seen
from modules.files.keys import Names
from modules.files.norms import NormLayer
from modules.hosts import How
from modules.preset.export_options import Export

RANK = 64
"""Rank of approximations unless export.rank is set."""

SAME_RANK = 1e-6
"""A truncated change with a smaller error, relative to the change, is exact: it had that rank."""

EXACT = 1e-9
"""Largest error of an exact encoding on the stand-in, in float64."""



@dataclass(frozen=True)
class Structure:
    """What the choice may depend on, besides values."""

    kind: str
    kernel: tuple[bool, ...]
    """For each dimension of a convolution: whether it has more than one position."""
    single: bool
    """One row only."""
    square: bool
    rotation: tuple[bool, bool, bool] | None
    """Whether blocks have an even size, are at least as many as a block has rows, and are orthogonal."""
    alone: bool
    """The rotation has one block only."""
    over_kernel: bool
    """The rotation is over channels and kernel positions."""
    series: bool
    """The rotation is the truncated series of five terms."""
    stages: tuple[bool, bool] | None
    """For a butterfly: whether there are several, and whether they are enough to mix all rows."""
    side: str
    pair: bool
    matched: bool
    """The pair's rank is the number of channels."""
    difference: bool
    product: str
    """Its kind."""
    parted: bool
    """Whether its second factor is a pair."""
    axis: str
    positive: bool
    """No magnitude is negative."""
    bias: bool


def structure(view: Seen) -> Structure:
    """That of a layer as seen by programs."""
    terms, (rows, columns) = view.terms, view.W.shape
    kernel = tuple(n > 1 for n in view.layer.base.kernel_size) if view.layer.kind == "conv" else ()
    R, product = terms.rotation, terms.product
    return Structure(
        kind=view.layer.kind,
        kernel=kernel,
        single=rows == 1,
        square=rows == columns // view.kernel,
        rotation=None if R is None else (R.shape[-1] % 2 == 0, R.shape[-3] >= R.shape[-1], view.orthogonal),
        alone=R is not None and R.dim() == 3 and len(R) == 1,
        over_kernel=forms.is_over_kernel(terms, columns, view.kernel),
        series=terms.series is not None,
        stages=None if R is None or R.dim() == 3 else (len(R) > 1, len(R) == R.shape[1].bit_length()),
        side=terms.side if R is not None else "",
        pair=terms.up is not None,
        matched=terms.down is not None and terms.down.shape[0] == columns // view.kernel,
        difference=terms.difference is not None,
        product="" if product is None else product.kind,
        parted=product is not None and len(product.second) == 2,
        axis=terms.axis,
        positive=view.positive,
        bias=terms.bias is not None,
    )


@cache
def stand_in(like: Structure) -> Seen:
    """A small random layer of this structure, in float64."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    channels, rows = 18, 1 if like.single else 18 if like.square else 54
    if like.stages is not None and like.rotation is not None:
        rows = 8 if like.rotation[1] else 24
        channels = rows if like.square else 18
    kernel = tuple(2 if wide else 1 for wide in like.kernel)
    if like.kind == "norm":
        channels, layer = 1, NormLayer(nn.LayerNorm(rows), "stand-in")
    elif like.kind == "conv":
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
        layer = as_layer(conv(channels, rows, kernel), "stand-in")  # pyright: ignore
    else:
        # The terms are as programs see them, so an embedding's are those of its table, like a linear layer's.
        layer = as_layer(nn.Linear(channels, rows), "stand-in")
    terms = Terms(axis=like.axis, side=like.side or "input")
    columns = channels * 2 ** sum(like.kernel)
    if like.rotation is not None:
        turned, orthogonal = columns if like.over_kernel else channels, like.rotation[2]
        turned = rows if like.side == "output" else turned
        size, stages = _blocks(like, turned)
        R = torch.linalg.qr(normal(stages * turned // size, size, size))[0]
        R = R * torch.linalg.det(R).sign()[:, None, None] if size % 2 else _proper(R)
        R = R if orthogonal else R + 0.1 * normal(*R.shape)
        terms.rotation = R if like.stages is None else R.unflatten(0, (stages, -1))
        if like.series:
            terms.series = 0.2 * (R - R.mT)
            excess = linalg.neumann_excess(terms.series, 5)
            terms.rotation = excess + torch.eye(size, dtype=R.dtype)
    if like.pair:
        rank = channels if like.matched else 2
        terms.up, terms.down = normal(rows, rank), normal(rank, columns)
    terms.difference = normal(rows, columns) if like.difference else None
    if like.product:
        terms = _with_product(terms, like, rows, columns, normal)
    if like.axis:
        terms.magnitude = normal(rows if like.axis == "output" else channels)
        terms.magnitude = terms.magnitude.abs() if like.positive else terms.magnitude
    terms.bias = normal(rows) if like.bias else None
    return Seen(layer, normal(rows, columns), terms, like.rotation is None or like.rotation[2], like.positive)


def _blocks(like: Structure, turned: int) -> tuple[int, int]:
    """The size of a stand-in's blocks, and how many stages there are."""
    even, many, _ = like.rotation or (False, False, False)
    if like.stages is not None:
        several, enough = like.stages
        count = 4 if several or not enough else 1
        return turned // count, count.bit_length() if enough else 2 if several else 1
    several = {(True, True): 2, (True, False): 18 if turned > 18 else 6, (False, True): 3, (False, False): 9}
    return turned if like.alone else several[even, many], 1


def _with_product(terms: Terms, like: Structure, rows: int, columns: int, normal: Callable[..., Tensor]) -> Terms:
    """With a product, and the pair or difference that it is."""
    if like.product == "kronecker":
        outer = 1 if like.single else 3
        first, (rows, columns) = (normal(outer, 3),), (rows // outer, columns // 3)
    else:
        first = normal(rows, 2), normal(2, columns)
    second = (normal(rows, 2), normal(2, columns)) if like.parted else (normal(rows, columns),)
    terms.product = Product(like.product, first, second)  # pyright: ignore
    whole = forms.multiplied(terms.product)
    if like.pair:
        return replace(terms, up=torch.eye(len(whole), dtype=whole.dtype), down=whole)
    return replace(terms, difference=whole)


def _proper(R: Tensor) -> Tensor:
    """Orthogonal matrices with the first row negated where the determinant is -1."""
    first = torch.linalg.det(R).sign()[:, None, None] * R[:, :1]
    return torch.cat([first, R[:, 1:]], 1)


@cache
def is_exact(encoding: Encoding, like: Structure, host: str, how: How, everywhere: bool) -> bool:
    """Whether the program computes the adapted weight and bias from this encoding; with `everywhere` also whether it
    reads it at all where it computes in 16 bits."""
    program, view = hosts.load(host), stand_in(like)
    found = encodings.encode(encoding, view, program.NAMES)
    if found is None:
        return False
    W, wanted = view.native(view.W), view.native(view.adapted())
    try:
        error = program.effect(W, found, 1.0, how) - wanted
        if everywhere:
            program.effect(W, found, 1.0, replace(how, dtype=torch.bfloat16))
    except hosts.Unread:
        return False
    bias = program.bias_change(found, 1.0)
    if (bias is None) != (view.terms.bias is None):
        return False
    if bias is not None and view.terms.bias is not None and not torch.allclose(bias, view.terms.bias):
        return False
    return bool(error.abs().max() <= EXACT * wanted.abs().max())


# -- choosing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How a layer is written."""

    encodings: tuple[Encoding, ...]
    """Those that are exact for the written terms, the smallest first."""
    rank: int = 0
    """Of the pair that replaces the layer's terms; 0 if the terms themselves are written."""
    keep_magnitude: bool = False
    """Whether the magnitude is kept with that pair."""

    @property
    def needs_values(self) -> bool:
        """Whether the written tensors depend on the base's weight."""
        return self.encodings[0] is not encodings.PLAIN[0]

    def view(self, view: Seen) -> Seen:
        """What is written of a layer."""
        return forms.approximated(view, self.rank, self.keep_magnitude) if self.rank else view

    def words(self, view: Seen, encoding: Encoding, approximate: bool) -> str:
        """For reports and metadata, in the orientation of the layer's own weight."""
        words = encoding.words(self.view(encodings.on_meta(view)).terms)
        is_less = 0 < self.rank < min(view.W.shape)
        return f"{words}, approximate" if is_less and approximate else words

    def carry_out(self, view: Seen, names: Names, layer: str) -> tuple[dict[str, Tensor], str]:
        """The layer's tensors by suffix, and their form in words."""
        chosen = self.view(view)
        for encoding in self.encodings:
            found = encodings.encode(encoding, chosen, names)
            if found is not None:
                return found, self.words(view, encoding, _distance(view, chosen) > SAME_RANK)
        raise ValueError(f"{layer}: its rotation has an angle of 180 degrees, which none of the forms that export.form "
                         "allows can store; choose export.form full")


def _distance(view: Seen, other: Seen) -> float:
    """Of two adapted weights, relative to the change."""
    if view is other:
        return 0.0
    if forms.is_pair(view.terms) and forms.is_pair(other.terms):
        return forms.pair_distance(view.terms, other.terms)
    goal = view.adapted()
    moved = (goal - view.W).norm().item()
    return (other.adapted() - goal).norm().item() / moved if moved else 0.0


def plans(sketches: dict[str, Seen], options: Export, magnitudes: bool, family: str = "") -> dict[str, Plan]:
    """How each layer is written, by name; `magnitudes`: whether other layers of the file have any; `family`: the model
    family, if known.

    Raises ValueError with one line per reason why the host does not support these changes, naming layers.
    """
    names = hosts.load(options.host).NAMES
    how = How(options.comfyui_norm, magnitudes, family=family)
    found = {name: plan(view, options, how) for name, view in sketches.items()}
    refused = {name: sketches[name] for name, chosen in found.items() if chosen is None}
    if refused:
        raise ValueError(refusals(refused, options))
    chosen = {name: way for name, way in found.items() if way is not None}
    if not magnitudes and any(_has_magnitude(way, sketches[name], names) for name, way in chosen.items()):
        return plans(sketches, options, True, family)
    return chosen


def _has_magnitude(way: Plan, sketch: Seen, names: Names) -> bool:
    return names.magnitude in encodings.numbers(way.encodings[0], way.view(sketch), names)


def plan(view: Seen, options: Export, how: How) -> Plan | None:
    """How export.form writes a layer; None if the program does not support it."""
    if not may_hold(options.host, view.layer.kind):
        return None
    found = exact_encodings(view, options, how)
    if found:
        return Plan(found)
    if options.form not in ("compact", "svd"):
        return None
    rank = min(options.rank or RANK, *view.W.shape)
    keeps = (True, False) if view.terms.magnitude is not None and options.form == "compact" else (False,)
    for keep in keeps:
        found = exact_encodings(forms.approximated(encodings.on_meta(view), rank, keep), options, how)
        if found:
            return Plan(found, rank, keep)
    return None


def may_hold(host: str, kind: str) -> bool:
    """Whether files for `host` may have layers of this kind; for norms its arithmetic alone decides."""
    return kind == "norm" or kind in hosts.load(host).KINDS


def exact_encodings(view: Seen, options: Export, how: How) -> tuple[Encoding, ...]:
    """The encodings of `options.form` that are exact for a layer: pairs and products first, of each the smallest."""
    like, names = structure(view), hosts.load(options.host).NAMES
    found = [e for e in _allowed(view, options) if is_exact(e, like, options.host, how, options.form == "auto")]
    if len(found) < 2:
        return tuple(found)
    sizes = {encoding: encodings.size(encoding, view, names, options.dtype) for encoding in found}
    first = (*encodings.PAIRS, *encodings.PRODUCTS)
    return tuple(sorted(found, key=lambda encoding: (encoding not in first, sizes[encoding])))


def _allowed(view: Seen, options: Export) -> tuple[Encoding, ...]:
    if view.layer.kind == "norm":
        return (encodings.NORM,)
    every = (*encodings.ENCODINGS, *hosts.load(options.host).own(options))
    if options.form == "auto":
        return every
    if options.form == "full":
        return encodings.WHOLE
    if options.form == "compact":
        return tuple(encoding for encoding in every if encoding.size == "compact")
    down = view.terms.down
    return encodings.PLAIN if down is None or down.shape[0] <= (options.rank or RANK) else ()


# -- refusing ---------------------------------------------------------------------------------------------------------


def refusals(views: dict[str, Seen], options: Export) -> str:
    """One line per reason why these layers cannot be written, with what to do about it, naming layers."""
    reasons: dict[str, list[str]] = {}
    for name, view in views.items():
        reasons.setdefault(_reason(view, options), []).append(name)
    return "\n".join(
        f"export.host {options.host}: {reason}. Layers: {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for reason, names in reasons.items()
    )


def _reason(view: Seen, options: Export) -> str:
    host, terms = options.host, view.terms
    if view.layer.kind == "norm":
        return (f"files for {host} cannot hold changes of norms; use export.host comfyui, or leave them out with "
                "--skip-unknown")
    if view.layer.kind not in hosts.load(host).KINDS:
        return (f"files for {host} cannot hold {view.layer.kind} layers; use export.host comfyui, or leave such layers "
                "out of the training (targets.exclude)")
    instead = "export.form compact for a LoRA that approximates it (export.rank N), with its error printed"
    instead += ", or export.form full for a LoRA of full rank (exact, up to twice as large as the layers)"
    if terms.bias is not None:
        return f"files for {host} cannot hold a bias change together with such an update; use export.host comfyui"
    if terms.rotation is not None:
        return (f"files for {host} cannot hold a rotation in blocks, which changes the weight in full; use export.host "
                f"comfyui (a full difference), {instead}")
    if terms.magnitude is not None:
        return (f"files for {host} cannot hold a magnitude along the {terms.axis}; use export.host comfyui, train with "
                f"a magnitude along the output (adapter.axis output), {instead}")
    return f"files for {host} cannot hold such an update; use export.host comfyui, {instead}"
