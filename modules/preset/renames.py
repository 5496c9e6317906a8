"""Options that had another name, or another form, in earlier presets: they stay readable, with a note."""

from pathlib import Path
from typing import Any

from modules.preset import options
from modules.preset.problems import PresetProblems, shown
from training_presets import entries

RENAMES: dict[str, str] = {"data.folder": "data.folders"}
"""Renamed options: old dotted name to new one. Old presets stay readable, with a note."""
ENTRIES: dict[str, tuple[str, dict[str, str]]] = {"data.validation_folder": ("data.folders", {"role": "validation"})}
"""Options that are now an entry of a list: the list, and what the entry has besides the path. The old option stands for
the only such entry. Likewise."""
IMPLIED: dict[str, tuple[str, str]] = {"export.rank": ("export.form", "compact")}
"""Options that used to imply another one: that one and its value. Likewise."""

Values = dict[str, Any]
"""A preset as read from JSON, not checked yet."""


def renamed(values: Values, path: Path, notes: list[str]) -> Values:
    """`values` with old names replaced by new ones."""
    for old, new in RENAMES.items():
        if not options.holds(values, old):
            continue
        if options.holds(values, new):
            raise PresetProblems([f"{path}: {old} was renamed to {new}, but both are given; remove {old}"])
        problems = place(values, new, take(values, old))
        if problems:
            raise PresetProblems(f"{path}: {problem}" for problem in problems)
        notes.append(f"{path}: {old} was renamed to {new}")
    for old, (new, kind) in ENTRIES.items():
        if not options.holds(values, old):
            continue
        if entries.has(options.at(values, new), kind):
            raise PresetProblems([f"{path}: {old} was renamed to {new}, and both give one; remove {old}"])
        notes += [f"{path}: {entries.note(old, new, kind)}"] if options.at(values, old) else []
    return values


def with_entries(values: Values) -> Values:
    """`values` with entries of lists in place of the options that said them before. Not before other presets and the
    command line are laid over them: these may give the list or the old option alone."""
    for old, (new, kind) in ENTRIES.items():
        if options.holds(values, old):
            place(values, new, entries.replaced(options.at(values, new), kind, take(values, old)))
    return values


def implied(values: Values, path: Path, notes: list[str]) -> Values:
    """`values` with what old options implied, where the new option is not given."""
    for old, (new, value) in IMPLIED.items():
        if options.at(values, old) is not None and not options.holds(values, new):
            place(values, new, value)
            notes.append(f"{path}: {old} no longer implies {new} {value}, so it is set")
    return values


# -- dotted names in presets ------------------------------------------------------------------------------------------


def place(values: Values, name: str, value: Any) -> list[str]:
    """Set a dotted name, creating sections as needed. The problem, if a section is something else."""
    *path, last = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            return [f"{name}: {part} is {shown(values)} in the preset, which is not a section"]
    values[last] = value
    return []


def take(values: Values, name: str) -> Any:
    """Remove and return the value at a dotted name; an emptied section is removed, too."""
    path, _, last = name.rpartition(".")
    section = options.at(values, path) if path else values
    value = section.pop(last)
    if path and not section:
        take(values, path)
    return value
