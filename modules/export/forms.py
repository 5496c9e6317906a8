"""From a layer's exact terms to the smallest form a program's files can hold."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer


@dataclass(frozen=True)
class Host:
    """What a program's files can hold. Each program is one module here with `HOST` and `tensors`."""

    name: str
    kinds: tuple[str, ...]
    """Kinds of `Layer` that can be written."""
    holds: Callable[[str, int], bool]
    """`(axis, output features) -> bool`: whether a magnitude along that axis can be written."""
    differences: bool
    """Whether a full difference can be written."""
    notes: Callable[[set[str]], list[str]]
    """What the user should know about a file with these `Update.form`s, as sentences."""


@dataclass(frozen=True)
class Form:
    """How a file holds a layer's update."""

    rank: int
    """Of a low-rank pair; 0 for a full difference."""
    axis: str = ""
    """Of the magnitude beside the pair, in the orientation of the layer's own weight; empty if there is none."""
    approximate: bool = False

    @property
    def words(self) -> str:
        """For reports and metadata."""
        if not self.rank:
            return "full difference"
        words = f"LoRA with {self.axis} magnitude" if self.axis else "LoRA"
        return f"{words}, approximate" if self.approximate else words


@dataclass(frozen=True)
class Update:
    """One layer's update as a file holds it, oriented like the layer's own weight (an embedding's table is not turned).

    Either `up (out, r)` and `down (r, fan_in)`, perhaps with `magnitude`, or `difference (out, fan_in)`.
    """

    form: Form
    up: Tensor | None = None
    down: Tensor | None = None
    difference: Tensor | None = None
    magnitude: Tensor | None = None


def refusal(terms: Terms, layer: Layer, host: Host, rank: int | None) -> str:
    """Why this update cannot be written for `host`, with what to do about it; empty if it can."""
    if layer.kind not in host.kinds:
        return (
            f"files for {host.name} cannot hold {layer.kind} layers; use export.host comfyui, or leave such layers "
            "out of the training (targets.exclude)"
        )
    if rank is not None or host.differences:
        return ""
    if terms.rotation is not None:
        return (
            f"files for {host.name} cannot hold a rotation in blocks, which changes the weight in full; use "
            "export.host comfyui (a full difference), or export.rank N for a LoRA that approximates it, with its "
            "error printed"
        )
    if terms.magnitude is not None and not host.holds(terms.axis, layer.out_features):
        return (
            f"files for {host.name} cannot hold a magnitude along the {terms.axis}; use export.host comfyui, train "
            "with a magnitude along the output (adapter.axis output), or use export.rank N for a LoRA that "
            "approximates the whole change, with its error printed"
        )
    return ""


def choose(terms: Terms, layer: Layer, host: Host, rank: int | None) -> Form:
    """The smallest exact form of `terms` at `host`, or a truncated SVD of `rank` where there is none; from shapes
    alone. Call only without a `refusal`."""
    out, fan_in = stored_shape(layer)
    axis = terms.axis if layer.kind != "embedding" else {"input": "output", "output": "input", "": ""}[terms.axis]
    held = terms.magnitude is None or host.holds(axis, out)
    if held and terms.rotation is None:
        if terms.difference is None:
            return Form(1 if terms.down is None else terms.down.shape[0], axis)
        if not host.differences:  # one the method itself preferred: a LoRA of full rank, at most twice its size
            return Form(min(out, fan_in), axis)
    if rank is None:
        return Form(0)
    return Form(min(rank, out, fan_in), axis if held else "", approximate=True)


def stored_shape(layer: Layer) -> tuple[int, int]:
    """`(out, fan_in)` in the orientation of the layer's own weight."""
    if layer.kind == "embedding":
        return layer.fan_in, layer.out_features
    return layer.out_features, layer.fan_in


def reduce(terms: Terms, layer: Layer, W: Tensor, host: Host, rank: int | None) -> Update:
    """`terms` on `W (out, fan_in)` in the form that `choose` gives."""
    V = unscaled(terms, W, layer.kernel)
    adapted = scaled(V, terms.magnitude, terms.axis, layer.kernel)
    form = choose(terms, layer, host, rank)
    magnitude = terms.magnitude if form.axis else None
    if layer.kind == "embedding":
        W, V, adapted, terms = W.mT, V.mT, adapted.mT, _turned(terms)
    if torch.equal(adapted, W) and not form.axis:
        return Update(Form(1), W.new_zeros(W.shape[0], 1), W.new_zeros(1, W.shape[1]))
    if not form.rank:
        return Update(form, difference=adapted - W)
    if form.approximate:
        # A magnitude that the host holds stays exact beside the approximated rest.
        return Update(form, *truncated((V if form.axis else adapted) - W, form.rank), magnitude=magnitude)
    return Update(form, *_factors(terms, V - W), magnitude=magnitude)


def unscaled(terms: Terms, W: Tensor, kernel: int) -> Tensor:
    """`V = W R^T + up down + difference`, `(out, fan_in)`."""
    V = W
    if terms.rotation is not None:
        blocks = W.unflatten(1, (*terms.rotation.shape[:2], kernel))
        V = torch.einsum("okcs,kbc->okbs", blocks, terms.rotation.to(W.dtype)).flatten(1)
    if terms.up is not None and terms.down is not None:
        V = V + (terms.up @ terms.down).to(W.dtype)
    return V if terms.difference is None else V + terms.difference


def scaled(V: Tensor, magnitude: Tensor | None, axis: str, kernel: int) -> Tensor:
    """`V magnitude / norm(V)` along `axis`; `V (out, fan_in)` itself without magnitude."""
    if magnitude is None:
        return V
    if axis == "output":
        return V * ratio(magnitude, V.norm(dim=1)).unsqueeze(1)
    channels = V.unflatten(1, (-1, kernel))
    return (channels * ratio(magnitude, channels.norm(dim=(0, 2))).unsqueeze(1)).flatten(1)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """`above / below`, 0 where `below` is 0: a weight that is zero stays zero."""
    return torch.where(below == 0, 0.0, above / below)


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best `up (out, r)`, `down (r, fan_in)` for `matrix (out, fan_in)`, r = rank or less (Eckart-Young).

    Through the eigenvectors of the smaller Gram matrix in float64: far cheaper than an SVD of a 10240 x 1280 layer,
    and projecting on them is optimal whatever the accuracy of the singular values.
    """
    wide = matrix.shape[1] > matrix.shape[0]
    tall = (matrix.mT if wide else matrix).double()
    vectors = torch.linalg.eigh(tall.mT @ tall).eigenvectors[:, -rank:]
    left, right = (tall @ vectors).to(matrix.dtype), vectors.mT.to(matrix.dtype)
    return (right.mT, left.mT) if wide else (left, right)


def _factors(terms: Terms, change: Tensor) -> tuple[Tensor, Tensor]:
    """Exact factors of `change = V - W (out, fan_in)` without rotation: the given ones, zeros, or an identity."""
    out, fan_in = change.shape
    if terms.difference is not None:
        identity = torch.eye(min(out, fan_in), dtype=change.dtype, device=change.device)
        return (change, identity) if fan_in <= out else (identity, change)
    if terms.up is None or terms.down is None:
        return change.new_zeros(out, 1), change.new_zeros(1, fan_in)
    return terms.up, terms.down


def _turned(terms: Terms) -> Terms:
    """The terms of the transposed weight (rotation excepted; it only matters that there is one)."""
    difference = None if terms.difference is None else terms.difference.mT
    up = None if terms.down is None else terms.down.mT
    down = None if terms.up is None else terms.up.mT
    return replace(terms, up=up, down=down, difference=difference)
