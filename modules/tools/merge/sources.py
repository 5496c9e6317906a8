"""The changes of an adapter file of any program, one layer of the base at a time, for merging."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modules.adapters.base import Terms
from modules.files import forms, kinds, opening, reading
from modules.files.reading import Placed
from modules.tools.merge.checkpoint import Checkpoint
from modules.tools.merge.into_base import Source


def of_file(path: Path, base: Checkpoint, skip_unknown: bool = False) -> tuple[Source, list[str]]:
    """The changes of the layers of `base` by the file at `path`; and sentences about what is not read.

    Raises ValueError with one sentence for files that are damaged or another family's, and, unless `skip_unknown`, for
    unknown keys.
    """
    file = opening.read(path)
    found = reading.place(file, base.model)
    left_out = found.left_out()
    if left_out and not skip_unknown:
        raise ValueError(f"{path}: {'; '.join(left_out)}; --skip-unknown reads the rest")
    layers = {layer.name: placed for placed in found.placed for layer, _ in placed.members}
    targets = {(name, "weight") for name, placed in layers.items() if kinds.kind_of(placed.parts) is not None}
    targets |= {(name, "bias") for name, placed in layers.items() if kinds.may_change_bias(placed.parts)
                and ("bias" in placed.parts or base.find((name, "bias")) is not None)}
    if not targets:
        raise ValueError(f"{path}: none of its layers can be applied to this model")

    pairs = {name: placed for name, placed in layers.items() if placed.is_pair}
    last: dict[str, Terms] = {}

    def changed(layer: str, kind: str, W: Tensor, row: int = 0) -> Tensor:
        placed = layers[layer]
        if kind == "weight" and layer in pairs:
            if layer not in last:  # its blocks follow each other
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
    return Source(frozenset(targets), changed, by_rows), left_out


@contextmanager
def _weights(base: Checkpoint, placed: Placed) -> Iterator[None]:
    """The weights of a name's layers, and the biases if the file changes them, read into the model temporarily."""
    before: list[tuple[Any, str, nn.Parameter]] = []
    wanted = ("weight", "bias") if kinds.may_change_bias(placed.parts) else ("weight",)
    try:
        for layer, _ in placed.members:
            own = dict(layer.base.named_parameters(recurse=False))
            for kind in wanted:
                if kind == "weight" or (kind in own and base.find((layer.name, kind)) is not None):
                    before.append((layer.base, kind, own[kind]))
                    stored = nn.Parameter(base.tensor((layer.name, kind)), requires_grad=False)
                    layer.base.register_parameter(kind, stored)
            layer.forget()
        yield
    finally:
        for module, kind, parameter in before:
            module.register_parameter(kind, parameter)

