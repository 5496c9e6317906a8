"""Presets as files: list, read, save, export, delete.

A preset file is JSON and names only what it changes; `based_on` names another preset that it changes. A run folder's
preset.json is complete, and so is the copy in the metadata of every exported file. The presets that come with Gimbal
are put together from parts (`training_presets/composing.py`); the path of one is that which a file of it would have.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_presets import composing, entries
from training_presets.composing import Composed
from training_presets.sentences import shown
from ui.core import places, reading
from ui.core.preset.schema import Schema, Values, at, holds, with_value, without

METADATA_KEY = "gimbal.preset"
"""Where an exported .safetensors file keeps its preset."""

RUN_COPY = "preset.json"
"""The name of a run folder's own preset."""

NOT_INHERITED = ("based_on", "name", "description")
"""What a preset does not take over from the one it is based on."""

LARGEST, LARGEST_HEADER = 2**20, 20_000_000
"""Bytes of a preset, and of the header of a .safetensors file."""

TOO_LARGE = "too large for a preset, which has at most"

RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""


@dataclass(frozen=True)
class Entry:
    """A preset in the list."""

    name: str
    path: Path

    kind: str
    """"builtin" or "own"."""

    family: str
    method: str
    description: str

    problem: str
    """Why it cannot be read; "" when it can."""

    recommended: bool = False
    """One of those to begin with in its family."""


@dataclass(frozen=True)
class Origin:
    """Where the edited preset comes from."""

    kind: str
    """"builtin", "own", "file", "run", "export" or "new"."""

    name: str
    path: Path | None


@dataclass(frozen=True)
class Opened:
    """A preset that was read."""

    origin: Origin

    values: Values
    """Complete."""

    problems: tuple[str, ...] = ()
    """What was not understood (and left out) or is not allowed (and kept)."""

    notes: tuple[str, ...] = ()
    """What was changed while reading."""


# -- listing ----------------------------------------------------------------------------------------------------------


def listing() -> list[Entry]:
    """The presets that come with Gimbal, in each family the recommended ones first; then the user's own by name."""
    folders = (("builtin", places.PRESETS), ("own", places.OWN_PRESETS))
    return [*_composed(), *(_entry(kind, path) for kind, folder in folders for path in sorted(folder.glob("*.json")))]


def _composed() -> list[Entry]:
    """The presets that are put together from parts, or what is wrong with the parts."""
    try:
        found = composing.every(places.PRESETS, _values)
    except ValueError as error:
        return [Entry(places.PRESETS.name, places.PRESETS, "builtin", "", "", "", f"{error}")]
    paths = [places.PRESETS / f"{one.name}.json" for one in found]
    return [
        Entry(one.name, path, "builtin", one.family, one.method, one.description, "", one.place is not None)
        for one, path in zip(found, paths, strict=True)
        if not reading.is_file(path)
    ]


def _entry(kind: str, path: Path) -> Entry:
    try:
        values = _values(path)
        base: Mapping[str, Any] = {}
        if "based_on" in values:
            base_path = _base_path(values["based_on"], path)
            found = composed(base_path)
            base = found.layers[0] if found else _values(base_path)
    except ValueError as error:
        return Entry(path.stem, path, kind, "", "", "", f"{error}")
    family, method = (at(values if holds(values, name) else base, name) or "" for name in ("family", "adapter.method"))
    return Entry(path.stem, path, kind, f"{family}", f"{method}", f"{values.get('description', '')}", "")


# -- finding ----------------------------------------------------------------------------------------------------------


def named(name: str, besides: Path | None = None) -> Path | None:
    """The path of the preset of this name, a file's before that of one put together; `besides`: not this file.

    None: no preset is called so.
    """
    if Path(name).name != name:
        return None
    paths = [folder / f"{name}.json" for folder in (places.PRESETS, places.OWN_PRESETS)]
    found = [path for path in paths if path != besides and reading.is_file(path)]
    return next(iter(found), None) or (paths[0] if composed(paths[0]) else None)


def composed(path: Path) -> Composed | None:
    """The preset that is put together for a path in training_presets/ where no file is; else None."""
    place = Path(os.path.normpath(path.absolute()))
    if place.parent != places.PRESETS or place.suffix != ".json" or reading.is_file(path):
        return None
    return composing.find(place.stem, places.PRESETS, _values)


def is_there(path: Path) -> bool:
    """Whether there is a preset, or a run folder, to open."""
    try:
        return reading.is_there(path) or composed(path) is not None
    except ValueError:  # its parts cannot be read: opening it says why
        return True


# -- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path, schema: Schema) -> Opened:
    """The preset in a .json file, a run folder or a .safetensors file that Gimbal wrote.

    Raises ValueError with a sentence when it cannot be read at all.
    """
    path = path / RUN_COPY if reading.is_folder(path) else path
    notes: list[str] = []
    values = _inherited(_renamed(_given(path, schema), path, schema, notes), path, schema, notes)
    values = _with_entries(_implied(values, path, schema, notes), schema)
    full, problems = schema.complete(schema.with_tags(values))
    origin = _origin(path)
    if origin.kind in ("run", "export"):  # the name of a run that was; another run of its preset is another one
        full = {**full, "name": ""}
    return Opened(origin, full, problems, tuple(notes))


def _origin(path: Path) -> Origin:
    if path.suffix == ".safetensors":
        return Origin("export", path.stem, path)
    if path.name == RUN_COPY:
        return Origin("run", path.resolve().parent.name, path)
    kinds = {places.PRESETS.resolve(): "builtin", places.OWN_PRESETS.resolve(): "own"}
    return Origin(kinds.get(path.resolve().parent, "file"), path.stem, path)


def _given(path: Path, schema: Schema) -> Values:
    """The values of a preset file, or of parts put together."""
    found, values = composed(path), {}
    if found is None:
        return _values(path)
    for layer in found.layers:
        values = _merged(schema.with_tags(values), layer, schema)
    return values


def _values(path: Path) -> Values:
    """The mapping in a preset file."""
    where = places.shown(path)
    if path.suffix not in (".json", ".safetensors"):
        raise ValueError(f"{where}: not a preset; presets are .json files, run folders or .safetensors files")
    try:
        exported = path.suffix == ".safetensors"
        text = _from_metadata(path) if exported else reading.read_text(path, LARGEST, TOO_LARGE)
        values = reading.parse(text, exact=True)
    except FileNotFoundError:
        run = path.name == RUN_COPY and path.parent.is_dir()
        missing = "not a run folder, because it has no preset.json" if run else "no such file or folder"
        raise ValueError(f"{places.shown(path.parent) if run else where}: {missing}") from None
    except OSError as error:
        raise ValueError(f"{where}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: a preset is an object in braces, as in {{...}}")
    return values


def _from_metadata(path: Path) -> str:
    """The preset in a safetensors header: 8 bytes with its length, then JSON."""
    with reading.opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= LARGEST_HEADER:
            raise ValueError("not a safetensors file")
        header = file.read(length)
    try:
        metadata = reading.parse(header).get("__metadata__")
    except (ValueError, AttributeError):
        raise ValueError("not a safetensors file") from None
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"no preset inside; only files written by Gimbal have one ({METADATA_KEY})")
    return text


def _renamed(values: Values, path: Path, schema: Schema, notes: list[str]) -> Values:
    """`values` with old names of options replaced by new ones."""
    for old, new in schema.renames.items():
        if not holds(values, old):
            continue
        if holds(values, new):
            raise ValueError(f"{places.shown(path)}: {old} was renamed to {new}, but both are given; remove {old}")
        value = at(values, old)
        values = with_value(without(values, old), new, value)
        notes.append(f"{places.shown(path)}: {old} was renamed to {new}")
    for old, (new, kind) in schema.entries.items():
        if holds(values, old) and entries.has(at(values, new), kind):
            raise ValueError(f"{places.shown(path)}: {old} was renamed to {new}, and both give one; remove {old}")
        if at(values, old):
            notes.append(f"{places.shown(path)}: {entries.note(old, new, kind)}")
    return values


def _with_entries(values: Values, schema: Schema) -> Values:
    """`values` with entries of lists in place of the options that said them before."""
    for old, (new, kind) in schema.entries.items():
        if holds(values, old):
            given = at(values, old)
            values = without(values, old)
            values = with_value(values, new, entries.replaced(at(values, new), kind, given))
    return values


def _implied(values: Values, path: Path, schema: Schema, notes: list[str]) -> Values:
    """`values` with what old options meant besides, where the new option is not given."""
    for old, (new, value) in schema.implied.items():
        if at(values, old) is not None and not holds(values, new):
            values = with_value(values, new, value)
            notes.append(f"{places.shown(path)}: {old} no longer implies {new} {value}, so it is set")
    return values


# -- building on another preset ---------------------------------------------------------------------------------------


def _inherited(values: Values, path: Path, schema: Schema, notes: list[str]) -> Values:
    """`values` on top of the preset that it is based on, if any."""
    if "based_on" not in values:
        return values
    base_path = _base_path(values["based_on"], path)
    base = _renamed(_given(base_path, schema), base_path, schema, notes)
    if "based_on" in base:
        raise ValueError(
            f"{places.shown(path)}: based_on: {values['based_on']} is itself based on {shown(base['based_on'])}, "
            "but only one level is allowed"
        )
    base = {name: value for name, value in base.items() if name not in NOT_INHERITED}
    own = {name: value for name, value in values.items() if name != "based_on"}
    return _merged(schema.with_tags(base), own, schema)


def _base_path(source: Any, path: Path) -> Path:
    """The file that `based_on` in the file `path` means: a preset's name, or a path that starts beside the file."""
    if not isinstance(source, str) or not source:
        raise ValueError(f"{places.shown(path)}: based_on: {shown(source)} is not a preset name")
    by_name = named(source, besides=path)
    if by_name:
        return by_name
    found = path.parent / source
    return found / RUN_COPY if reading.is_folder(found) else found


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], schema: Schema, path: str = "") -> Values:
    """Mappings are merged, anything else is replaced; a tagged section with another tag is replaced as a whole."""
    merged = dict(base)
    for name, value in own.items():
        here, before = f"{path}.{name}" if path else name, base.get(name)
        merged[name] = value
        if isinstance(before, dict) and isinstance(value, dict):
            tag = schema.tags[here].path.rpartition(".")[2] if here in schema.tags else ""
            if value.get(tag) in (None, before.get(tag)):
                merged[name] = _merged(before, value, schema, here)
    return merged


# -- writing ----------------------------------------------------------------------------------------------------------


def save(values: Values, name: str, schema: Schema, overwrite: bool = False) -> Path:
    """Write an own preset; its path. Raises ValueError with a sentence."""
    problem = name_problem(name)
    if problem:
        raise ValueError(problem)
    path = places.OWN_PRESETS / f"{name}.json"
    if path.exists() and not overwrite:
        raise ValueError(f"You already have a preset called {name}.")
    export(values, path, schema)
    return path


def export(values: Values, path: Path, schema: Schema) -> None:
    """Write a preset file anywhere. A reader sees the old file or the new one, never a part.

    Raises ValueError with a sentence.
    """
    try:
        reading.write_whole(path, json.dumps(schema.minimal(values), indent=2, ensure_ascii=False))
    except OSError as error:
        raise ValueError(f"{places.shown(path)}: cannot be written ({error.strerror})") from None


def delete(entry: Entry) -> None:
    """Delete an own preset. Raises ValueError with a sentence."""
    if entry.kind != "own":
        raise ValueError(f"{entry.name} comes with Gimbal; only your own presets can be deleted.")
    try:
        entry.path.unlink()
    except OSError as error:
        raise ValueError(f"{places.shown(entry.path)}: cannot be deleted ({error.strerror})") from None


def name_problem(name: str) -> str:
    """Why an own preset cannot have this name, as a sentence; "" when it can."""
    if not name.strip():
        return "Enter a preset name."
    wrong = sorted({letter for letter in name if letter in '/\\:*?"<>|' or not letter.isprintable()})
    if wrong:
        letters = " ".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in wrong)
        return f"A preset's name is a file name; it must not contain {letters}."
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        return "A preset's name must not begin or end with a space or a full stop."
    if name.lower().endswith((".json", ".safetensors")):
        return "A preset's name must not have a file extension."
    if RESERVED.fullmatch(name) or f"{name.lower()}.json" == RUN_COPY:
        return f"{name} is reserved; choose another name."
    if len(name.encode()) > 200:
        return "This name is too long for a file name."
    if _comes_with_gimbal(name.lower()):
        return f"{name} is the name of a preset that comes with Gimbal; choose another name."
    return ""


def _comes_with_gimbal(name: str) -> bool:
    """Whether a preset of this name, in lower case, does; False too when its parts cannot be read."""
    if name in {path.stem.lower() for path in places.PRESETS.glob("*.json")}:
        return True
    try:
        return composed(places.PRESETS / f"{name}.json") is not None
    except ValueError:
        return False


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or with the first number behind it that makes it free: wora_demo, wora_demo_2, wora_demo_3."""
    used = {other.lower() for other in taken}
    if name.lower() not in used:
        return name
    stem, number = name, 2
    numbered = re.fullmatch(r"(.+)_(\d{1,6})", name)
    if numbered:
        stem, number = numbered[1], int(numbered[2]) + 1
    while f"{stem}_{number}".lower() in used:
        number += 1
    return f"{stem}_{number}"
