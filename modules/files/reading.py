"""From a foreign file to its changes of the layers of a model: one `Change` per layer.

A name in a file may mean one layer, several that its writer had fused (query, key and value as one matrix), or a layer
with the halves of its outputs exchanged. Its tensors are applied to the matrix they were trained on, and the result is
then split into the layers.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from modules import families, quant
from modules.adapters.base import Terms
from modules.adapters.layers import Layer, as_layer
from modules.files import forms, kinds, layers_by_name, rows, strangers, writer
from modules.files.change import Change
from modules.files.layers_by_name import Part
from modules.files.norms import NormLayer
from modules.files.opening import AdapterFile
from modules.files.strangers import listed

SKIP = "--skip-unknown"
"""The scripts' option to ignore what cannot be read."""

INPUTS = ("x_embedder", "conv_in", "pos_embed.proj")
"""Ends of the names of layers whose input is the latents."""


@dataclass(frozen=True)
class Placed:
    """One name of a file, and the layers it means."""

    name: str
    parts: dict[str, Tensor]
    """Its tensors by what they are (`kinds`)."""
    tensors: dict[str, Tensor]
    """The same by suffix, as they are in the file."""
    layer: Layer
    """As the file's writer saw it: perhaps fused, an embedding's table not turned."""
    members: tuple[tuple[Layer, Part], ...]
    """The model's layers, in the order of the rows."""
    about: writer.About

    @property
    def is_whole(self) -> bool:
        """Whether the name means one layer, as it is."""
        part = self.members[0][1]
        return not part.rows and not part.exchanged and self.members[0][0].kind != "embedding"

    @property
    def is_pair(self) -> bool:
        """Whether the tensors act on each row of the weight by itself, and no row is elsewhere than it seems."""
        return kinds.is_pair(self.parts) and all(
            layer.kind != "embedding" and not part.exchanged for layer, part in self.members
        )

    def dense(self) -> Tensor:
        """`W (out, fan_in)` as the writer saw it, in float32 or float64."""
        if self.is_whole:
            return self.members[0][0].dense()
        return self.stacked([_native(layer) for layer, _ in self.members])

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """First row, last row and `W (rows, fan_in)` of parts of `dense()`, one after the other; for pairs."""
        start = 0
        for layer, _ in self.members:
            for first, last in rows.blocks(layer):
                yield start + first, start + last, rows.dense(layer, first, last)
            start += layer.out_features

    def stacked(self, weights: list[Tensor]) -> Tensor:
        """The members' weights `(rows, columns)`, none turned, as the one that the writer saw."""
        return torch.cat([_exchanged(W, part) for W, (_, part) in zip(weights, self.members, strict=True)])

    def bias(self) -> Tensor | None:
        """The members' biases `(out)` as the writer saw them; None where one has none."""
        found = [_bias(layer) for layer, _ in self.members]
        return None if any(bias is None for bias in found) else self.stacked([b for b in found if b is not None])

    def terms(self) -> Terms:
        """What the tensors do to `dense()`. Raises ValueError for tensors that do not fit."""
        return kinds.terms(self.parts, self.layer, self._values(), self.about, self.bias())

    def member(self, name: str) -> tuple[Layer, int]:
        """A layer by its full name, and the first of its rows in the matrix that the writer saw."""
        start = 0
        for layer, _ in self.members:
            if layer.name == name:
                return layer, start
            start += _outputs(layer)
        raise ValueError(f"{self.name} is not {name}")

    def terms_for(self, W: Tensor) -> Terms:
        """A pair's terms in the dtype and on the device of `W`, not those of the layers."""
        shape = (self.layer.out_features, self.layer.fan_in)
        return kinds.terms(self.parts, self.layer, W.new_zeros(1).expand(shape), self.about)

    def later(self) -> dict[str, Change]:
        """The same as `changes`, with terms that are computed at each access and not kept."""
        def of(name: str) -> Terms:
            return self.changes()[name].terms

        given = self.tensors if self.is_whole else None
        return {layer.name: Change(layer, functools.partial(of, layer.name), given) for layer, _ in self.members}

    def _values(self) -> Tensor:
        """`dense()`; for a pair, whose terms do not depend on the values, a single value expanded to the shape."""
        if not kinds.is_pair(self.parts):
            return self.dense()
        base: Any = self.members[0][0].base
        dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
        values = torch.zeros(1, dtype=dtype, device=quant.device_of(base))
        return values.expand(self.layer.out_features, self.layer.fan_in)

    def changes(self) -> dict[str, Change]:
        """What they do to each of the layers."""
        W, bias = self._values(), self.bias()
        terms = kinds.terms(self.parts, self.layer, W, self.about, bias)
        if self.layer.kind == "norm" and bias is not None and terms.bias is None:
            terms = replace(terms, bias=torch.zeros_like(bias))  # A1111 reads both or none
        if self.is_whole:
            layer = self.members[0][0]
            return {layer.name: Change(layer, terms, given=self.tensors)}
        found = {}
        for (layer, _), ranges in zip(self.members, self._rows(), strict=True):
            own = taken(terms, W, self.layer, ranges)
            found[layer.name] = Change(layer, forms.turned(own) if layer.kind == "embedding" else own)
        return found

    def _rows(self) -> list[list[tuple[int, int]]]:
        """The ranges of rows of each member, in the member's own order."""
        found, start = [], 0
        for layer, part in self.members:
            stop = start + _outputs(layer)
            middle = (start + stop + 1) // 2
            found.append([(middle, stop), (start, middle)] if part.exchanged else [(start, stop)])
            start = stop
        return found


@dataclass
class Reading:
    """A file on a model."""

    file: AdapterFile
    writer: str
    placed: list[Placed] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Keys that no kind knows."""
    homeless: list[str] = field(default_factory=list)
    """Names without a layer in the model."""
    wider: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Names of input layers that the file widens, and the inputs in the file and in the model."""

    @property
    def norms(self) -> list[str]:
        """Names of norms, which no method trains."""
        return [placed.name for placed in self.placed if placed.layer.kind == "norm"]

    def left_out(self) -> list[str]:
        """One sentence for each kind of entry that is not read."""
        found = []
        found += strangers.sentences(self.unknown)
        if self.homeless:
            found.append(f"{listed(self.homeless)}: the model has no layers with these names")
        for name, (inputs, own) in self.wider.items():
            found.append(f"{name}: it has {inputs} inputs, but the layer of the model has {own}; this is a control "
                         "LoRA (canny, depth or similar) with additional inputs for a control image, so this layer "
                         "can be neither merged nor converted")
        return found


def place(file: AdapterFile, model: Any) -> Reading:
    """Which layers of `model` the file's names mean. Raises ValueError if two names mean the same layer, or if the file
    is another family's."""
    writer.refuse_own(file.path, file.metadata)
    strangers.refuse(file.path, file.tensors)
    program = writer.writer(file.tensors, file.metadata, file.config)
    about = writer.About(program, "", file.metadata, file.config)
    layers, unknown = kinds.grouped(file.tensors)
    found = Reading(file, program, unknown=unknown)
    index, norms = layers_by_name.index(model), layers_by_name.norm_index(model)
    modules = {f"{prefix}.{path}": module for prefix, network in model.networks.items()
               for path, module in network.named_modules()}
    for name, keys in layers.items():
        members = tuple((as_layer(modules[part.layer], part.layer), part) for part in _meant(index.get(name, [])))
        members = members or tuple(
            (NormLayer(modules[part.layer], part.layer), part) for part in _meant(norms.get(name, [])))
        if not members:
            found.homeless.append(name)
            continue
        tensors = {kinds.split(key)[1]: file.tensors[key] for key in keys.values()}  # pyright: ignore
        parts = {part: file.tensors[key] for part, key in keys.items()}
        if inputs := _wider(parts, members[0][0]):
            found.wider[name] = inputs, members[0][0].channels
            continue
        found.placed.append(Placed(name, parts, tensors, _seen(name, members), members, about.of(name)))
    _refuse_strangers(found, model)
    _refuse_twins(found)
    return found


def changes(
    file: AdapterFile, model: Any, skip: bool = False, option: str = SKIP, kept: bool = True
) -> dict[str, Change]:
    """What the file does to the layers of `model`, by full name. `option` is what sets `skip`. Unless `kept` their
    terms are computed at each access, so that they are never all in memory; the model must not change.

    Raises ValueError with one sentence for files of another family, for tensors that do not fit their layers, and,
    unless `skip`, for everything that cannot be read.
    """
    found = place(file, model)
    left_out = found.left_out()
    if left_out and not skip:
        raise ValueError(f"{file.path}: {'; '.join(left_out)}; {option} reads the rest")
    if not found.placed:
        raise ValueError(f"{file.path}: none of its layers can be applied to this model")
    try:
        with torch.no_grad():
            made: dict[str, Change] = {}
            for placed in found.placed:  # those that are not kept are computed once all the same: they may not fit
                own = placed.changes()
                made |= own if kept else placed.later()
            return made
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def families_of(keys: Iterable[str]) -> list[str]:
    """The families whose keys these look like."""
    return list(_recognised(tuple(keys)))


def family_of(keys: Iterable[str]) -> str:
    """The family whose keys these look like, the older one of two that share them; "" if there are several or none."""
    like = families_of(keys)
    alone = [name for name in like if not families.load_class(name).SHARES_NAMES] or like
    return alone[0] if len(alone) == 1 else ""


@functools.lru_cache(8)  # every tool calls it several times for the same file
def _recognised(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in families.names() if families.load_class(name).recognises(keys))


def taken(terms: Terms, W: Tensor, layer: Layer, rows: list[tuple[int, int]]) -> Terms:
    """The terms of some rows of `W (out, fan_in)`, in the order of the ranges `rows`."""

    def take(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor[start:stop] for start, stop in rows])

    terms = replace(forms.expanded(terms), product=None)
    found = replace(terms, bias=take(terms.bias))
    if terms.rotation is not None and terms.side == "output":
        size = terms.rotation.shape[1]
        fits = terms.rotation.dim() == 3 and all(edge % size == 0 for row in rows for edge in row)
        if fits:
            blocks = [terms.rotation[start // size : stop // size] for start, stop in rows]
            found = replace(found, rotation=torch.cat(blocks))
        else:  # a block, or a butterfly, crosses the boundary
            change = forms.applied(Terms(rotation=terms.rotation, side="output"), layer, W) - W
            before = 0 if terms.difference is None else terms.difference
            found = replace(found, rotation=None, side="input", difference=change + before)
    found = replace(found, up=take(found.up), difference=take(found.difference))
    if terms.magnitude is None:
        return found
    if terms.axis == "output":
        return replace(found, magnitude=take(terms.magnitude))
    V = forms.applied(replace(terms, magnitude=None, axis=""), layer, W)
    own = torch.cat([V[start:stop] for start, stop in rows])
    share = forms.ratio(_column_norm(own, layer), _column_norm(V, layer))
    return replace(found, magnitude=terms.magnitude * share)


def _column_norm(V: Tensor, layer: Layer) -> Tensor:
    return V.unflatten(1, (layer.channels, layer.kernel)).norm(dim=(0, 2))


def _meant(parts: list[Part]) -> list[Part]:
    """The layers of one name: those of a fused matrix, or the only one with the name."""
    whole = [part for part in parts if not part.rows]
    return whole[:1] or parts


def _seen(name: str, members: tuple[tuple[Layer, Part], ...]) -> Layer:
    """The layer that the writer saw, with the file's name if it is not one of the model's."""
    first = members[0][0]
    if len(members) == 1 and first.kind != "embedding":
        return first
    outputs = sum(_outputs(layer) for layer, _ in members)
    inputs = first.out_features if first.kind == "embedding" else first.fan_in
    return as_layer(nn.Linear(inputs, outputs, bias=False, device="meta"), name)


def _outputs(layer: Layer) -> int:
    return layer.fan_in if layer.kind == "embedding" else layer.out_features


def _native(layer: Layer) -> Tensor:
    W = layer.dense()
    return W.mT if layer.kind == "embedding" else W


def _exchanged(W: Tensor, part: Part) -> Tensor:
    return torch.cat(W.chunk(2)[::-1]) if part.exchanged else W


def _refuse_strangers(found: Reading, model: Any) -> None:
    """ValueError if none of the names is the model's, or some are not and the file is another family's: families have
    names in common."""
    if not found.homeless:
        return
    like = [name for name in families_of(found.file.tensors) if not isinstance(model, families.load_class(name))]
    like = [] if type(model).recognises(list(found.file.tensors)) else like
    if like:
        what = " or ".join(families.load_class(name).TITLE for name in like)
        raise ValueError(f"{found.file.path} is for {what}, but the base is {type(model).TITLE}; give the base that "
                         "the file was trained on")
    if found.placed:
        return
    raise ValueError(f"{found.file.path}: none of its layers is in the base, which is {type(model).TITLE} "
                     f"({listed(found.homeless)}); give the base that the file was trained on")


def _bias(layer: Layer) -> Tensor | None:
    bias = layer.base.bias if layer.kind in ("linear", "conv") else dict(layer.base.named_parameters()).get("bias")
    return None if bias is None else quant.whole(bias.detach())


def _wider(parts: dict[str, Tensor], layer: Layer) -> int:
    """How many input channels a file gives to an input layer that has fewer; else 0."""
    if "down" not in parts or not layer.name.endswith(INPUTS) or parts["down"].dim() < 2:
        return 0
    channels = parts["down"].shape[1]
    return channels if channels > layer.channels else 0


def _refuse_twins(found: Reading) -> None:
    """ValueError if two names mean the same layer."""
    seen: dict[str, str] = {}
    for placed in found.placed:
        for layer, _ in placed.members:
            if layer.name in seen:
                raise ValueError(f"{found.file.path}: {seen[layer.name]} and {placed.name} are both the layer "
                                 f"{layer.name}; the file contains two adapters, so split it")
            seen[layer.name] = placed.name
