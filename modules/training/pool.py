"""Initial values from a pool: a folder of finished adapters of the same base, of any trainer and method."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.adapters.base import Adapted
from modules.files import forms, kinds, opening, reading
from modules.files.change import Change
from modules.files.reading import Placed, Reading, listed
from modules.preset.schema import Preset
from modules.training import first_values, setup

OPTION = "adapter.folder"

KEPT = 64
"""Rank to which a change is truncated that is not a low-rank pair."""


@dataclass
class Pool:
    """The files' changes of the layers."""

    pairs: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """By full layer name: `up (out, r)`, `down (r, fan_in)` of each file that changes the layer."""
    notes: list[str] = field(default_factory=list)


def look(preset: Preset, model: Any) -> tuple[list[str], list[str]]:
    """What is wrong with the folder, and which of its files are skipped, in sentences. `model` may be on the meta
    device; call it before adapters are attached. Nothing where the run does not need the folder any more."""
    folder, run = preset.adapter.pool, Path(preset.saving.folder) / preset.name
    if folder is None or first_values.is_begun(run) or (preset.name and (run / "adapter.safetensors").is_file()):
        return [], []
    if preset.adapter.start_from:
        return [f"{OPTION}: cannot be combined with {first_values.OPTION}; remove one of them"] * bool(folder), []
    trained, notes, useful = set(setup.match_layers(model, preset.targets)[0]), [], 0
    try:
        for path in _paths(preset):
            try:
                useful += bool(trained & _tried(reading.place(opening.read(path), model)))
            except (ValueError, OSError) as error:
                notes.append(_left_out(path, error))
    except ValueError as error:
        return [str(error)], []
    return [] if useful else [f"{OPTION}: no file in {folder} changes layers that are trained"], notes


def read(preset: Preset, model: Any) -> Pool | None:
    """The files' changes of the layers, None if the method takes no pool. Call it before adapters are attached. Raises
    ValueError, naming the option, where there are none."""
    if preset.adapter.pool is None or preset.adapter.start_from:
        return None
    found = Pool()
    for path in _paths(preset):
        try:
            changes = reading.changes(opening.read(path), model, skip=True)
        except (ValueError, OSError) as error:
            found.notes.append(_left_out(path, error))
            continue
        with torch.no_grad():
            for name, change in changes.items():
                found.pairs.setdefault(name, []).append(_pair(change))
    if not found.pairs:
        raise ValueError(f"{OPTION}: no file in {preset.adapter.pool} is an adapter of this base")
    return found


def apply(found: Pool | None, adapted: dict[str, Adapted]) -> list[str]:
    """Set the fresh adapters; sentences about skipped files and layers without values."""
    if found is None:
        return []
    for name, layer in adapted.items():
        if name in found.pairs:
            layer.adapter.start_from_pool(found.pairs[name])
    bare = [name for name in adapted if name not in found.pairs]
    if bare:
        return [*found.notes, f"{len(bare)} layers are in no file of {OPTION}: random initial values ({listed(bare)})"]
    return found.notes


def _paths(preset: Preset) -> Iterator[Path]:
    """The files in the folder. Raises ValueError, naming the option, where it has none."""
    if not preset.adapter.pool:
        raise ValueError(f"{OPTION}: {preset.adapter.method} needs a folder with adapter files (.safetensors)")
    folder = Path(preset.adapter.pool)
    if not folder.is_dir():
        raise ValueError(f"{OPTION}: {folder} is not a folder")
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ValueError(f"{OPTION}: {folder} has no adapter files (.safetensors)")
    yield from found


def _left_out(path: Path, reason: object) -> str:
    return f"{OPTION}: {path.name} is skipped: {reason}"


def _tried(found: Reading) -> set[str]:
    """The layers that a file changes. Raises ValueError if tensors do not fit them, looking at one of each sort."""
    if not found.placed:
        raise ValueError("it changes no layer of this model")
    sorts: dict[Any, Placed] = {}
    for placed in found.placed:
        shapes = frozenset((part, tensor.shape) for part, tensor in placed.parts.items())
        layers = tuple((layer.kind, layer.base.weight.shape) for layer, _ in placed.members)
        sorts.setdefault((kinds.words(placed.parts), shapes, layers), placed)
    with torch.no_grad():
        for placed in sorts.values():
            first_values.on_random_layers(placed).changes()
    return {layer.name for placed in found.placed for layer, _ in placed.members}


def _pair(change: Change) -> tuple[Tensor, Tensor]:
    """A layer's change as a low-rank pair, float32 on the CPU; truncated where it is not one."""
    terms = change.terms
    up, down = terms.up, terms.down
    other = (terms.rotation, terms.difference, terms.magnitude)
    if up is None or down is None or any(part is not None for part in other):
        W = change.layer.dense()
        up, down = forms.truncated(forms.applied(terms, change.layer, W) - W, KEPT)
    return up.float().cpu(), down.float().cpu()
