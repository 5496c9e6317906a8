"""Presets as files: find, read, extend, override, check, write, compare.

A preset file is JSON and has only what it changes; `based_on` names another preset that it extends. A run folder's
preset.json is complete, and so is the copy in the metadata of every exported file. The presets that come with Gimbal
are put together from parts (`training_presets/composing.py`); the path of one is that which a file of it would have.
"""

import difflib
import json
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from modules import documents
from modules.disk import write_whole
from modules.preset import options, renames
from modules.preset.problems import LIST_PRESETS, PresetProblems, enumerated, sentences, shown, unknown
from modules.preset.renames import Values, place
from modules.preset.schema import Preset
from training_presets import composing, entries
from training_presets.composing import Composed

FOLDER = Path(__file__).parents[2] / "training_presets"
"""The parts of the presets that come with Gimbal; the user's own presets are in its folder `own`, which git ignores."""

METADATA_KEY = "gimbal.preset"
"""Where an exported .safetensors file keeps its preset."""

NOT_INHERITED = ("based_on", "name", "description")
"""What a preset does not inherit from the one it is based on: two runs of one name would share a folder."""

ABSENT = "(absent)"
"""In `differences`: the preset has no such option."""


@dataclass(frozen=True)
class Resolved:
    """A complete and valid preset."""

    preset: Preset
    notes: list[str]
    """What was changed while reading, as sentences for the user."""

    name: str
    """Name of the run; also `preset.name`."""

    given: frozenset[str] = frozenset()
    """Dotted names of the options that the user has given, on the command line or in a file of his own: also with a
    value that is the default."""


def resolve(source: str, overrides: Sequence[tuple[str, str]] = ()) -> Resolved:
    """The preset that `source` and the overrides (dotted name, text) describe.

    `source` is a name in training_presets/ or its folder own/, a .json file, a run folder or an exported .safetensors
    file. Raises PresetProblems with everything that is wrong.
    """
    path, notes = find(source), []
    own = renames.renamed(read(path), path, notes)
    given = _given(own, path) | {renames.RENAMES.get(option, option) for option, _ in overrides}
    values = _with_tags(renames.implied(_inherited(own, path, notes), path, notes))
    problems = _override(values, overrides, notes)
    values = _with_tags(renames.with_entries(values))
    try:
        preset = Preset.model_validate(values)
    except ValidationError as error:
        raise PresetProblems(problems + sentences(error, Preset, values)) from None
    name = preset.name or run_name(path)
    if Path(name).name != name:
        problems.append(f"name: {shown(name)} is not a valid folder name; remove the slashes")
    if problems:
        raise PresetProblems(problems)
    return Resolved(preset.model_copy(update={"name": name}), notes, name, frozenset(given))


def _given(values: Values, path: Path) -> set[str]:
    """What the user has given in a preset's file: nothing where it was put together from parts, or is complete, as in a
    run folder."""
    names = set(options.flatten(values))
    is_complete = names >= options.options(Preset, values).keys() - options.tag_choices(Preset).keys()
    return set() if composed(path) or is_complete else names


# -- finding and reading ----------------------------------------------------------------------------------------------


def find(source: str, folder: Path | None = None, besides: Path | None = None) -> Path:
    """The path of a preset, from its name or path (`folder`: where relative paths start). A file comes before a preset
    that is put together from parts; `besides`: not this one, which builds on another of its own name."""
    files = named()
    if source in files and files[source] != besides:
        return files[source]
    if _put_together(source):
        return FOLDER / f"{source}.json"
    path = (folder or Path()) / source
    if source and documents.is_folder(path):
        if not (path / "preset.json").is_file():
            raise PresetProblems([f"{path}: not a run folder, because it has no preset.json"])
        return path / "preset.json"
    if path.suffix in (".json", ".safetensors") or len(Path(source).parts) > 1:
        if composed(path):
            return path
        try:
            documents.check_file(path, "a preset")
        except ValueError as error:
            raise PresetProblems([str(error)]) from None
        if path.suffix not in (".json", ".safetensors"):
            raise PresetProblems([f"{path}: not a preset; presets are .json files, run folders or .safetensors files"])
        return path
    near = difflib.get_close_matches(source, [*files, *(one.name for one in every())], n=3)
    meant = f"; did you mean {enumerated(near, 'or')}?" if near else ""
    raise PresetProblems([f"{shown(source)}: no such preset{meant} ({LIST_PRESETS})"])


def named() -> dict[str, Path]:
    """Every preset file that can be given by name. Built-in ones come first and hide own ones of the same name."""
    paths = [*sorted(FOLDER.glob("*.json")), *sorted((FOLDER / "own").glob("*.json"))]
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(path.stem, path)
    return found


def every() -> list[Composed]:
    """The presets that are put together from parts; see `composing.every`. Raises PresetProblems for a wrong part."""
    try:
        return composing.every(FOLDER, _mapping)
    except ValueError as error:
        raise PresetProblems([str(error)]) from None


def composed(path: Path) -> Composed | None:
    """The preset that is put together for a path in training_presets/ where no file is; else None."""
    place = Path(os.path.normpath(path.absolute()))
    if place.parent != FOLDER or place.suffix != ".json" or documents.is_file(path):
        return None
    return _put_together(place.stem)


def _put_together(name: str) -> Composed | None:
    try:
        return composing.find(name, FOLDER, _mapping)
    except ValueError as error:
        raise PresetProblems([str(error)]) from None


def run_name(path: Path) -> str:
    """The name of a preset that does not give one: its file's, or its run folder's."""
    return path.resolve().parent.name if path.name == "preset.json" else path.stem


def read(path: Path) -> Values:
    """The values of the preset at a path: a .json file, a .safetensors file's metadata, or parts put together.

    Raises PresetProblems.
    """
    found, values = composed(path), {}
    if found is None:
        return _mapping(path)
    for layer in found.layers:
        values = _merged(_with_tags(values), layer)
    return values


def _mapping(path: Path) -> Values:
    """The mapping in a file."""
    try:
        if path.suffix == ".safetensors":
            text = _from_metadata(path)
        else:
            text = documents.read_text(path, documents.LARGEST_SETTINGS, "a preset")
        values = documents.parse_json(text, f"{path}", exact=True)
    except ValueError as error:
        raise PresetProblems([str(error)]) from None
    if not isinstance(values, dict):
        raise PresetProblems([f"{path}: a preset is an object in braces, as in {{...}}"])
    return values


def _from_metadata(path: Path) -> str:
    from modules.tensorfile import read_header

    metadata = read_header(path).metadata
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path}: no preset inside; only files written by Gimbal have one ({METADATA_KEY})")
    if len(metadata[METADATA_KEY]) > documents.LARGEST_SETTINGS:
        raise ValueError(f"{path}: the preset inside is too large")
    return metadata[METADATA_KEY]


# -- extending another preset -----------------------------------------------------------------------------------------


def _inherited(values: Values, path: Path, notes: list[str]) -> Values:
    """`values` on top of the preset that it is based on, if any."""
    if "based_on" not in values:
        return values
    source = values["based_on"]
    own = {name: value for name, value in values.items() if name != "based_on"}
    if not isinstance(source, str):
        raise PresetProblems([f"{path}: based_on: {shown(source)} is not a preset name"])
    base_path = find(source, path.parent, besides=path)
    base = renames.renamed(read(base_path), base_path, notes)
    if "based_on" in base:
        raise PresetProblems(
            [f"{path}: based_on: {source} is itself based on {shown(base['based_on'])}, but only one level is allowed"]
        )
    base = {name: value for name, value in base.items() if name not in NOT_INHERITED}
    return _merged(_with_tags(base), own)


def _merged(base: Values, own: Values, path: str = "") -> Values:
    """Mappings are merged, anything else is replaced; a tagged section with another tag is replaced as a whole."""
    tags = {group.path: group.tag for group in options.groups(Preset) if group.tag}
    merged = dict(base)
    for name, value in own.items():
        here, before = options.join(path, name), base.get(name)
        merged[name] = value
        if isinstance(before, dict) and isinstance(value, dict):
            tag = tags.get(here, "")
            if value.get(tag) in (None, before.get(tag)):
                merged[name] = _merged(before, value, here)
    return merged


def _with_tags(values: Values) -> Values:
    """`values` with the default tag in tagged sections that have none."""
    values = deepcopy(values)
    for _ in options.tag_choices(Preset):  # a filled-in tag may reveal a tagged section inside it
        for group in options.active(Preset, values):
            section = options.at(values, group.path) if group.path else None
            if group.tag and group.default_tag and isinstance(section, dict):
                section.setdefault(group.tag, group.default_tag)
    return values


# -- overrides --------------------------------------------------------------------------------------------------------


def _override(values: Values, overrides: Sequence[tuple[str, str]], notes: list[str]) -> list[str]:
    """Put overrides into `values`, tags first because they decide which other options there are. The problems."""
    problems, given = [], deepcopy(values)
    tags = list(options.tag_choices(Preset))
    current = [(renames.RENAMES.get(name, name), name, text) for name, text in overrides]
    for name, old, text in sorted(current, key=lambda one: tags.index(one[0]) if one[0] in tags else len(tags)):
        if name != old:
            notes.append(f"{old} was renamed to {name}")
        known = options.options(Preset, values)
        if name in renames.ENTRIES:
            new, kind = renames.ENTRIES[name]
            notes.append(entries.note(name, new, kind))
            problems += place(values, name, text)
        elif name in known:
            notes += _leave(values, name, text) if name in tags else []
            problems += place(values, name, parse(text, known[name].annotation))
        else:
            problems.append(unknown(name, Preset, values))
    for old, (new, kind) in renames.ENTRIES.items():
        now = options.at(values, new)
        if not options.holds(values, old) and (kept := entries.kept(options.at(given, new), now, kind)):
            place(values, new, [*now, *kept])
            notes.append(entries.note_of_kept(old, new, kind, kept))
    return problems


def _leave(values: Values, tag: str, wanted: str) -> list[str]:
    """Drop from the preset's values the options that another variant of a tagged section does not have. The notes.

    What only repeats the old variant's default, as in a run folder's complete preset, is dropped as well: the new
    variant's default may differ.
    """
    path, _, field = tag.rpartition(".")
    section = options.at(values, path)
    if not isinstance(section, dict) or section.get(field) == wanted:
        return []
    defaults = [group.defaults() for group in options.active(Preset, values) if group.path == path][0]
    for name in [name for name in section if name in defaults and section[name] == defaults[name]]:
        del section[name]
    section[field] = wanted
    before, after = options.names(Preset), options.names(Preset, values)
    dropped = [name for name in section if options.join(path, name) in before - after]
    return [
        f"{path}.{name} = {shown(section.pop(name))} dropped: {field} {wanted} has no such option"
        for name in dropped
    ]


def parse(text: str, annotation: Any) -> Any:
    """The value that `text` means for an option of this type. What cannot be parsed stays a text."""
    kinds = options.members(annotation)
    if text == "null" and NoneType in kinds:
        return None
    for kind in kinds:
        if kind is str or (get_origin(kind) is Literal and text in get_args(kind)):
            return text
    value = _json(text)
    if any(get_origin(kind) is tuple for kind in kinds):
        whole = isinstance(value, dict) and options.entry(kinds[0]) is not None
        texts = options.takes_texts(kinds[0])
        if "," in text and not texts and not isinstance(value, list):  # 512,768,1024
            value = _json(f"[{text}]")
        return value if isinstance(value, list) else [text if texts and not whole else value]
    return value


def _json(text: str) -> Any:
    try:
        return documents.parse_json(text, "")
    except ValueError:  # not JSON: a text, which validation accepts or not
        return text


# -- writing, comparing, listing --------------------------------------------------------------------------------------


def to_json(preset: Preset) -> str:
    """A preset with all its options, as in a run folder and in an exported file's metadata."""
    return json.dumps(preset.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def write(preset: Preset, path: Path) -> None:
    """Write all options of a preset, atomically."""
    write_whole(path, to_json(preset))


def differences(a: Preset, b: Preset) -> list[tuple[str, Any, Any]]:
    """The options in which two presets differ: dotted name and both values, `ABSENT` where one has no such option."""
    left, right = (options.flatten(preset.model_dump(mode="json")) for preset in (a, b))
    names = dict.fromkeys([*left, *right])
    both = [(name, left.get(name, ABSENT), right.get(name, ABSENT)) for name in names]
    return [(name, one, other) for name, one, other in both if one != other]
