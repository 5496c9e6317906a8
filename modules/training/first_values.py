"""Training that goes on from a finished file (adapter.start_from): what it says, before and at the start."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from modules.adapters.base import Adapted
from modules.export import files, reading, starting
from modules.export.export import Change
from modules.preset.schema import Preset

OPTION = "adapter.start_from"


def named(preset: Preset, model: Any) -> tuple[set[str], list[str]]:
    """Full names of the layers that the file changes, and what is wrong with it, in sentences. `model` may be on the
    meta device; call it before adapters are attached."""
    if not preset.adapter.start_from:
        return set(), []
    try:
        found = reading.place(files.read(Path(preset.adapter.start_from)), model)
    except (ValueError, OSError) as error:
        return set(), [f"{OPTION}: {error}"]
    problems = [f"{OPTION}: {found.file.path}: {sentence}" for sentence in found.left_out()]
    return {layer.name for placed in found.placed for layer, _ in placed.members}, problems


def strangers(names: Collection[str], adapted: Collection[str]) -> list[str]:
    """A sentence if the file changes layers that are not trained."""
    found = [name for name in sorted(names) if name not in adapted]
    return found and [f"{OPTION}: the file also changes layers that are not trained ({reading.listed(found)}); choose "
                      "them with targets.layers or targets.include"]


def read(preset: Preset, model: Any) -> dict[str, Change]:
    """What the file does to the layers, empty without a file. Call it before adapters are attached. Raises ValueError
    naming the option."""
    if not preset.adapter.start_from:
        return {}
    try:
        return reading.changes(files.read(Path(preset.adapter.start_from)), model)
    except ValueError as error:
        raise ValueError(f"{OPTION}: {error}") from error


def apply(changes: dict[str, Change], adapted: dict[str, Adapted]) -> list[str]:
    """Set the fresh adapters; sentences about what is not the same. Raises ValueError naming the option."""
    if not changes:
        return []
    try:
        return starting.start(changes, adapted)
    except ValueError as error:
        raise ValueError(f"{OPTION}: {error}") from error
