"""The three lists of an import as text and as JSON, and the preset as a file."""

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modules import printable
from modules.importing.ledger import Entry, Imported, nested
from modules.preset import files, options
from modules.preset.problems import dotted, sentences, shown
from modules.preset.schema import Preset


def text(imported: Imported) -> str:
    """The lists for the screen."""
    lines = [f"{printable.shown(str(imported.path))}: settings of {imported.trainer}"]
    parts = {
        "mapped (theirs -> ours)": imported.mapped,
        "changed meaning": imported.changed,
        "dropped": imported.dropped,
    }
    for title, entries in parts.items():
        lines += ["", f"{title}: {len(entries) or 'none'}"]
        lines += [printable.shown(line) for entry in entries for line in _lines(entry)]
    if imported.defaults:
        lines += ["", f"{imported.defaults} more keys have the value {imported.trainer} would have used without them."]
    return "\n".join(lines)


def _lines(entry: Entry) -> list[str]:
    default = "" if entry.written else " (default)"
    ours = ", ".join(f"{name} = {shown(value)}" for name, value in entry.ours.items())
    first = f"  {entry.key} = {shown(entry.value)}{default}" + (f" -> {ours}" if ours else "")
    if entry.part == "dropped":
        return [f"{first}: {entry.sentence}"]
    return [first, f"      {entry.sentence}"] if entry.sentence else [first]


def facts(imported: Imported) -> dict[str, Any]:
    """The lists and the preset as plain values."""
    return {
        "trainer": imported.trainer,
        "file": str(imported.path),
        "name": imported.name,
        "mapped": [entry.facts() for entry in imported.mapped],
        "changed": [entry.facts() for entry in imported.changed],
        "dropped": [entry.facts() for entry in imported.dropped],
        "defaults": imported.defaults,
        "preset": preset_values(imported),
    }


def preset_values(imported: Imported) -> dict[str, Any]:
    """The preset as its file has it: what differs from our defaults, and what says which variant of a section it is.

    Raises ValueError for a value that no preset can have, with the key that it comes from.
    """
    preset = checked(imported)
    complete = options.flatten(json.loads(files.to_json(preset)))
    groups = options.active(Preset, imported.values)
    usual = {options.join(group.path, name): value for group in groups for name, value in group.defaults().items()}
    tags = options.tag_choices(Preset)
    complete = dict(sorted(complete.items(), key=lambda one: one[0] not in tags))
    kept = ("family", "adapter.rank", "adapter.alpha", "data.resolution", "training.learning_rate")
    return nested(
        {
            name: value
            for name, value in complete.items()
            if name in kept or (name in tags and options.holds(imported.values, name)) or usual.get(name) != value
        }
    )


def checked(imported: Imported) -> Preset:
    """The preset, complete. Raises ValueError in sentences."""
    try:
        return Preset.model_validate(imported.values)
    except ValidationError as error:
        lines = sentences(error, Preset, imported.values)
        sources = [imported.origin.get(dotted(one["loc"], Preset).split(" ")[0], "") for one in error.errors()]
        named = [f"{line} (from {key})" if key else line for line, key in zip(lines, sources, strict=False)]
        raise ValueError(f"{imported.path}: {'; '.join(named)}; correct it in the file") from None


def write(imported: Imported, path: Path) -> None:
    """Write the preset; never over another file. Raises ValueError."""
    if path.exists():
        raise ValueError(f"{path}: exists already; give another file with --out or another name with --name")
    written = json.dumps(preset_values(imported), indent=2, ensure_ascii=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(written, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); give another file with --out") from None
    files.resolve(str(path))
