"""What an adapter file changes, as merging wants it: of anyone's file, one layer of the base at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modules.adapters.base import Terms
from modules.files import forms, kinds, layers_by_name, opening, reading
from modules.files.reading import Placed
from modules.tools.merge.checkpoint import Checkpoint, Target
from modules.tools.merge.into_base import Source


def of_file(path: Path, base: Checkpoint, skip_unknown: bool = False) -> tuple[Source, list[str]]:
    """What the file at `path` does to the layers of `base`; and sentences about what is not read.

    Raises ValueError with one sentence for files that are damaged or another family's, and, unless `skip_unknown`, for
    keys that mean nothing here.
    """
    file = opening.read(path)
    found = reading.place(file, base.model)
    left_out = replace(found, norms=[]).left_out()
    if left_out and not skip_unknown:
        raise ValueError(f"{path}: {'; '.join(left_out)}; --skip-unknown reads the rest")
    norms = _norms(found, base)
    layers = {layer.name: placed for placed in found.placed for layer, _ in placed.members}
    targets = {(name, "weight") for name, placed in layers.items() if kinds.kind_of(placed.parts) is not None}
    targets |= {(name, "bias") for name, placed in layers.items() if "bias" in placed.parts}
    if not targets and not norms:
        raise ValueError(f"{path}: there is nothing in it for this model")

    pairs = {name: placed for name, placed in layers.items() if placed.is_pair}
    last: dict[str, Terms] = {}

    def changed(layer: str, kind: str, W: Tensor, row: int = 0) -> Tensor:
        if layer not in layers:
            return norms[layer, kind](W)
        placed = layers[layer]
        if kind == "weight" and layer in pairs:
            if layer not in last:  # its blocks come one after the other
                last.clear()
                last[layer] = placed.terms_for(W)
            member, start = placed.member(layer)
            own = forms.of_rows(last[layer], start + row, start + row + len(W))
            return member.native(forms.applied(own, member, member.matrix(W)))
        with _weights(base, placed):
            change = placed.changes()[layer]
            if kind == "bias":
                return W if change.terms.bias is None else W + change.terms.bias.to(W)
            dense = change.layer.matrix(W)
            return change.layer.native(forms.applied(change.terms, change.layer, dense))

    by_rows = frozenset((name, "weight") for name in pairs) & targets
    return Source(frozenset(targets | norms.keys()), changed, by_rows), left_out


@contextmanager
def _weights(base: Checkpoint, placed: Placed) -> Iterator[None]:
    """The weights of a name's layers, read into the model for as long as they are needed."""
    before: list[tuple[Any, nn.Parameter]] = []
    try:
        for layer, _ in placed.members:
            before.append((layer.base, layer.base.weight))
            layer.base.weight = nn.Parameter(base.tensor((layer.name, "weight")), requires_grad=False)
            layer.forget()
        yield
    finally:
        for module, weight in before:
            module.weight = weight


def _norms(found: reading.Reading, base: Checkpoint) -> dict[Target, Any]:
    """What is done to norm layers: differences, or new weights. Raises ValueError for anything else."""
    index, (layers, _) = layers_by_name.norm_index(base.model), kinds.grouped(found.file.tensors)
    changes: dict[Target, Any] = {}
    for name in found.norms:
        for part, key in layers[name].items():
            if part not in ("diff", "bias", "set_weight"):
                raise ValueError(f"{found.file.path}: {key} is for a norm layer, which has no matrix; take such layers "
                                 "out of the file")
            layer = index[name][0].layer
            changes[layer, "bias" if part == "bias" else "weight"] = _norm_change(
                key, found.file.tensors[key].flatten(), whole=part == "set_weight"
            )
    return changes


def _norm_change(key: str, given: Tensor, whole: bool) -> Any:
    def change(W: Tensor) -> Tensor:
        if given.shape != W.shape:
            raise ValueError(f"{key} has {len(given)} numbers, and the base's norm {len(W)}; the file is for another "
                             "model")
        return given.to(W) if whole else W + given.to(W)

    return change
