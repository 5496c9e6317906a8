"""Layers that a program's files store as one matrix (fused): query, key and value as in the original checkpoint.

Low-rank pairs are stacked: the downs vertically, the ups in blocks on the diagonal, so that the rank is the sum. That
is exact, and stays so with a magnitude for each output. A magnitude along the input cannot be fused: its norm would be
taken over all the rows (export.md 1.6).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor

from modules.adapters.base import Adapted, Terms
from modules.adapters.layers import Layer, as_layer
from modules.families.parts.names import exchange_halves
from modules.files import forms, layers_by_name, rows
from modules.files.change import Block, Change
from modules.files.layers_by_name import Part

SHOWN = 3


class Fused(Layer):
    """The vertically stacked weights of some linear layers, perhaps with halves exchanged."""

    def __init__(self, layers: list[Layer], exchanged: list[bool], name: str):
        self.layers, self.exchanged, self.name = layers, exchanged, name
        self.base = layers[0].base
        self.out_features = sum(layer.out_features for layer in layers)
        self.channels, self.kernel, self.fan_in = layers[0].channels, 1, layers[0].channels
        self._norms: dict[str, Tensor] = {}

    def dense(self) -> Tensor:
        """The weights `(out, fan_in)`, stacked at each access."""
        return self.join([layer.dense() for layer in self.layers])

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Where the rows from `start` to `stop` come from, in order: number of the layer, its first and last row."""
        place = 0
        for number, (layer, turned) in enumerate(zip(self.layers, self.exchanged, strict=True)):
            middle = (layer.out_features + 1) // 2
            halves = [(middle, layer.out_features), (0, middle)] if turned else [(0, layer.out_features)]
            for first, last in halves:
                lower, upper = max(start, place), min(stop, place + last - first)
                if lower < upper:
                    yield number, first + lower - place, first + upper - place
                place += last - first

    def join(self, tensors: list[Tensor]) -> Tensor:
        """The layers' tensors `(out)` or `(out, n)`, stacked vertically."""
        pairs = zip(tensors, self.exchanged, strict=True)
        return torch.cat([exchange_halves(tensor) if turned else tensor for tensor, turned in pairs])

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The reverse of `join`."""
        parts = tensor.split([layer.out_features for layer in self.layers])
        return [exchange_halves(p) if turned else p for p, turned in zip(parts, self.exchanged, strict=True)]


@dataclass(frozen=True)
class Group:
    """The layers of one name in a file."""

    key: str
    parts: tuple[Part, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is a single layer."""
        return len(self.parts) == 1 and not self.parts[0].exchanged

    @property
    def name(self) -> str:
        """The full name of the layer; for several, all of them abbreviated."""
        layers = [part.layer for part in self.parts]
        start = commonprefix(layers).rpartition(".")[0] + "."
        return " + ".join([layers[0], *(other.removeprefix(start) for other in layers[1:])])


def groups(model: Any, layers: Iterable[str], host: str) -> list[Group]:
    """The names of `layers` in `host`'s files: one group for each name, with all of the model's layers that it
    contains.

    Raises ValueError for layers that have no name there.
    """
    keys = {layer: model.export_key(layer, host) for layer in layers}
    spelled = {layer: next(s for s in model.spellings(layer) if s.name == key) for layer, key in keys.items()}
    index = layers_by_name.index(model) if any(spelling.rows for spelling in spelled.values()) else {}
    found: dict[str, Group] = {}
    for layer, spelling in spelled.items():
        own = Part(layer, spelling.row, spelling.rows, spelling.exchanged)
        parts = index[spelling.name] if spelling.rows else [own]
        if spelling.name in found and not spelling.rows:
            raise ValueError(f"export.host {host}: {layer} and {found[spelling.name].name} share the name "
                             f"{spelling.name} in the file; leave one of them out (targets.exclude)")
        found.setdefault(spelling.name, Group(spelling.name, tuple(parts)))
    return list(found.values())


def layer_of(model: Any, group: Group, known: Mapping[str, Layer]) -> Layer:
    """The group's layer, of those that are `known` by full name and the model's."""
    if group.is_plain and group.name in known:
        return known[group.name]
    layers = [known.get(part.layer) or _layer(model, part.layer) for part in group.parts]
    return layers[0] if group.is_plain else Fused(layers, [part.exchanged for part in group.parts], group.name)


def refusal(terms: Mapping[str, Terms], groups: Iterable[Group], host: str) -> str:
    """Why these terms, by full layer name, cannot be fused exactly, with what to do about it; empty if they can."""
    mixed = [part.layer for group in groups if len(group.parts) > 1 for part in group.parts
             if part.layer in terms and terms[part.layer].axis == "input"]
    if not mixed:
        return ""
    more = f" and {len(mixed) - SHOWN} more" if len(mixed) > SHOWN else ""
    fused, other = ("two matrices of the feed-forward", "") if host.startswith("comfyui") else (
        "query, key and value", "use export.host comfyui (Forge reads that file too), ")
    return (f"export.host {host}: its files have {fused} as one layer, which cannot hold a magnitude "
            f"along the input of each; {other}train with a magnitude along the output (adapter.axis output), or use "
            "export.form compact for an approximation with its error printed. Layers: "
            f"{', '.join(mixed[:SHOWN])}{more}")


def joined(layer: Fused, terms: list[Terms | None]) -> Terms:
    """The terms of the fused matrix from those of its layers, None for an unchanged one."""
    given = [forms.expanded(found or Terms()) for found in terms]
    bias = None
    if any(found.bias is not None for found in given):
        bias = layer.join(_filled(layer, [found.bias for found in given], ()))
    if len(given) > 1 and any(found.rotation is not None or found.axis == "input" for found in given) or any(
        found.side == "output" and found.rotation is not None for found in given
    ):
        changes = [_change(part, found) for part, found in zip(layer.layers, given, strict=True)]
        return Terms(difference=layer.join(changes), bias=bias)
    fused = Terms(rotation=given[0].rotation, series=given[0].series, bias=bias)
    downs = [found.down for found in given if found.down is not None]
    if downs and len(downs) == len(given) and _are_one(downs):  # from a file with fused layers
        fused.up, fused.down = layer.join([found.up for found in given if found.up is not None]), downs[0]
    elif downs:
        fused.up, fused.down = layer.join(_blocks([found.up for found in given], layer.layers)), torch.cat(downs)
    if any(found.difference is not None for found in given):
        fused.difference = layer.join(_filled(layer, [found.difference for found in given], (layer.fan_in,)))
    axis = next((found.axis for found in given if found.magnitude is not None), "")
    if axis == "input":
        fused.magnitude, fused.axis = given[0].magnitude, axis
    elif axis:
        lengths = [_lengths(part, found) for part, found in zip(layer.layers, given, strict=True)]
        fused.magnitude, fused.axis = layer.join(lengths), axis
    return fused


def _are_one(downs: list[Tensor]) -> bool:
    """Whether all are the same matrix."""
    first = downs[0]
    return all(down is first or (not down.is_meta and torch.equal(down, first)) for down in downs)


def _layer(model: Any, name: str) -> Layer:
    network, _, path = name.partition(".")
    module = model.networks[network].get_submodule(path)
    return module.layer if isinstance(module, Adapted) else as_layer(module, name)


def _change(layer: Layer, terms: Terms) -> Tensor:
    W = layer.dense()
    return forms.applied(terms, layer, W) - W


def _lengths(layer: Layer, terms: Terms) -> Tensor:
    """The magnitude of each output; if the terms have none, the norm of the row."""
    if terms.magnitude is not None:
        return terms.magnitude
    return forms.applied(terms, layer, layer.dense()).norm(dim=1)


def _filled(layer: Fused, tensors: list[Tensor | None], columns: tuple[int, ...]) -> list[Tensor]:
    """The tensors, zeros for None."""
    like = next(tensor for tensor in tensors if tensor is not None)
    return [like.new_zeros(part.out_features, *columns) if tensor is None else tensor
            for tensor, part in zip(tensors, layer.layers, strict=True)]


def _blocks(ups: list[Tensor | None], layers: list[Layer]) -> list[Tensor]:
    """Each layer's `(out, r)` between zeros in the columns of the others', `(out, sum of r)`."""
    ranks = [0 if up is None else up.shape[1] for up in ups]
    like = next(up for up in ups if up is not None)
    found = []
    for number, (up, layer) in enumerate(zip(ups, layers, strict=True)):
        wide = like.new_zeros(layer.out_features, sum(ranks))
        if up is not None:
            start = sum(ranks[:number])
            wide[:, start : start + ranks[number]] = up
        found.append(wide)
    return found


class Asked(Mapping[str, Terms]):
    """The terms of changes by full layer name, each computed at access."""

    def __init__(self, changes: Mapping[str, Change]):
        self.changes = changes

    def __getitem__(self, name: str) -> Terms:
        return self.changes[name].terms

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


class FusedChange(Change):
    """The change of a fused layer from the changes of its layers, by full name; those without one are unchanged."""

    def __init__(self, layer: Fused, changes: Mapping[str, Change]):
        self.fused, self.own = layer, [changes.get(one.name) for one in layer.layers]
        super().__init__(layer, self._joined, weight=self._weight)

    def _joined(self) -> Terms:
        return joined(self.fused, [None if change is None else change.terms for change in self.own])

    def _weight(self) -> Tensor:
        return self.fused.join([layer.dense() if change is None else change.adapted()
                                for layer, change in zip(self.fused.layers, self.own, strict=True)])

    def blocks(self) -> Iterator[Block]:
        """The rows of one layer after the other if all are plain pairs, so that the fused layer is compared with
        them."""
        terms = [Terms() if change is None else change.terms for change in self.own]
        pairs = [change is None or change.is_pair(found) for change, found in zip(self.own, terms, strict=True)]
        if not all(pairs):
            yield from super().blocks()
            return
        for start, stop in rows.blocks(self.fused):
            place = start
            for number, first, last in self.fused.segments(start, stop):
                layer = self.fused.layers[number]
                W = rows.dense(layer, first, last)
                adapted = forms.applied(forms.of_rows(terms[number], first, last), layer, W)
                yield Block(place, place + len(W), W, adapted)
                place += len(W)
