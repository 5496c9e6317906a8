"""What is wrong with a preset, in sentences: `adapter.rnak: unknown; did you mean rank?`."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from modules.preset import options
from training_presets import sentences as shared
from training_presets.sentences import enumerated, shown

LIST_PRESETS = "python scripts/train.py --list all shows all presets"

MOST = 50
"""Problems of a preset that are listed, at most; finding similar names takes time."""

TYPES = {
    "int_": "{value} is not a whole number",
    "float_": "{value} is not a number",
    "finite_number": "{value} is not a finite number",
    "bool_": "{value} is not true or false",
    "string_": "{value} is not a text (in quotes)",
    "tuple_": "{value} is not a list",
    "model_": "{value} is not a section: give its options in braces, as in {{...}}",
    "greater_than_equal": "{value} is too small; at least {ge}",
    "greater_than": "{value} is too small; more than {gt}",
    "less_than_equal": "{value} is too large; at most {le}",
    "less_than": "{value} is too large; less than {lt}",
    "too_long": "{value} is too long; at most {max_length} values",
}
"""Sentences by the beginning of pydantic's error type; the first that fits is taken."""


class PresetProblems(ValueError):
    """All that is wrong with a preset or its overrides, one line each in `.problems`."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def sentences(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """One line per error, with dotted names, in the order of the preset."""
    errors = error.errors()
    found = list(dict.fromkeys(_sentence(one, model, values) for one in errors[:MOST]))
    return found + ([f"and {len(errors) - MOST} more problems; fix these first"] if len(errors) > MOST else [])


def _sentence(error: Any, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    name, kind, facts = dotted(error["loc"], model), error["type"], error.get("ctx", {})
    if entries := options.entry_at(model, name):
        if kind == "extra_forbidden":
            return unknown_in_entry(name, entries)
        if kind.startswith(("model_", "tuple_")) and not options.is_mixed(model, name):
            return f"{name}: {shown(error['input'])} {not_an_entry(entries, kind.startswith('tuple_'))}"
    if kind == "extra_forbidden":
        return unknown(name, model, values)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = options.join(name, facts["discriminator"].strip("'"))
        choices = options.tag_choices(model)[name]
        return f"{name}: {shared.not_one_of(facts.get('tag'), [*choices])}"
    if kind == "literal_error":
        choices = [f"{one}" for one in options.choices(model, name, values)]
        return f"{name}: {shared.not_one_of(error['input'], choices)}"
    if kind == "missing":
        return f"{name}: required"
    if kind == "value_error":
        message = f"{facts['error']}"
        given = "" if isinstance(error["input"], Mapping) else f"{shown(error['input'])}: "
        return f"{name}: {given}{message}".removeprefix(": ")
    for beginning, text in TYPES.items():
        if kind.startswith(beginning):
            bounds = {key: options.number(bound) for key, bound in facts.items() if isinstance(bound, int | float)}
            return f"{name}: " + text.format_map({"value": shown(error["input"]), **bounds})
    return f"{name}: {shown(error['input'])}: {error['msg']}"


def unknown(name: str, model: type[BaseModel], values: Mapping[str, Any], flag: str = "") -> str:
    """The line about a name that does not exist, or not with the method that `values` chose.

    `flag` is "--" on a command line, where names are always given in full.
    """
    section = name.rpartition(".")[0]
    for tag, owning in options.owners(model, name).items():
        chosen = options.at(values, tag)
        if chosen not in (None, *owning):
            word = tag.rpartition(".")[2]
            return f"{flag}{name}: {word} {chosen} has no such option; it is an option of {enumerated(owning, 'and')}"
    sections = [group.path for group in options.active(model, values) if group.path]
    if name in sections:
        inner = next(option for option in options.options(model, values) if option.startswith(f"{name}."))
        return f"{flag}{name}: is a section; give one of its options, such as {flag}{inner}"
    others = [other for other in sections if other != section]
    known = list(dict.fromkeys([*options.options(model, values), *others]))
    return shared.unknown(name, known, list(options.options(model)), flag)


def unknown_in_entry(name: str, entries: type[BaseModel]) -> str:
    """The line about an unknown name in an entry of a list, `list[0].name`."""
    place, _, last = name.rpartition(".")
    found = shared.nearest(last, list(entries.model_fields))
    meant = f"did you mean {found[0]}?" if found else f"{place} has {', '.join(entries.model_fields)}"
    return f"{name}: unknown; {meant}"


def not_an_entry(entries: type[BaseModel], is_list: bool) -> str:
    """The words for a value that should be an entry of a list, or the list."""
    form = options.entry_words(entries)
    word = entries.__name__.lower()
    return f"is not a list of {word}s, as in [{form}]" if is_list else f"is not a {word} in braces, as in {form}"


def dotted(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Pydantic's place of an error as a dotted name; pydantic puts the tag's value behind a tagged section."""
    tags = {group.path: [value for value, _ in group.chosen] for group in options.groups(model) if group.tag}
    name, leaves, passed = "", options.options(model), set()
    for part in loc:
        if name in tags and name not in passed:
            passed.add(name)
        elif name.endswith("]") and name not in passed and options.is_mixed(model, name):
            passed.add(name)  # behind an entry that may be a text, pydantic puts which of both it is
        elif isinstance(part, int):
            name += f"[{part}]" if options.entry_at(model, name) else f" number {part + 1}"
        elif name not in leaves:  # behind an option, pydantic names the member of a union
            name = options.join(name, part)
    return name
