"""The options of a preset on a command line: `--adapter.rank 32`, and their part of `--help`."""

import json
import textwrap
from collections.abc import Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from modules.preset import files, options, renames
from modules.preset.problems import PresetProblems, unknown
from modules.preset.schema import Preset
from training_presets.sentences import nearest

ALIASES = {"base": "base.path", "data": "data.folders"}
"""Short flags. They are names of sections, so no option can ever be called the same."""


def parse_overrides(argv: Sequence[str], own_flags: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Pairs (dotted name, text) for `files.resolve` from what argparse did not know.

    `--name value` and `--name=value`; a true-or-false option may stand alone, and the parts of a list may be given one
    by one. The parser should be made with `allow_abbrev=False` and have no positional arguments; `own_flags` are its
    flags, for "did you mean". Raises PresetProblems.
    """
    problems: list[str] = []
    given: dict[str, tuple[str, str]] = {}  # by current name: the name that was given, and the text
    words = list(argv)
    last = ""
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            problems.append(_stray(word, last))
            continue
        flag, equals, text = word[2:].partition("=")
        name = flag.replace("-", "_")
        name = last = ALIASES.get(name, name)
        value = text if equals else _value(name, words)
        current = renames.RENAMES.get(name, name)
        if current not in options.options(Preset) and current not in renames.ENTRIES:
            problems.append(_unknown_flag(flag, own_flags))
        elif value is None:
            problems.append(f"--{flag}: needs a value; write --{flag}=VALUE if it begins with --")
        elif current not in given:
            given[current] = name, value
        elif _is_list(current):
            given[current] = given[current][0], _added(current, given[current][1], value)
        else:
            problems.append(f"--{flag}: given twice")
    if problems:
        raise PresetProblems(dict.fromkeys(problems))
    return list(given.values())


def _is_list(name: str) -> bool:
    field = options.options(Preset).get(name)
    return field is not None and options.type_words(field.annotation).startswith("list")


def _added(name: str, first: str, second: str) -> str:
    """The list that two texts of a list option mean together."""
    annotation = options.options(Preset)[name].annotation
    return json.dumps([part for text in (first, second) for part in files.parse(text, annotation)])


def _value(name: str, words: list[str]) -> str | None:
    """Take the option's value from the front of `words`; "true" for a true-or-false option without one."""
    if words and not words[0].startswith("--"):
        return words.pop(0)
    field = options.options(Preset).get(renames.RENAMES.get(name, name))
    return "true" if field and field.annotation is bool else None


def _stray(word: str, last: str) -> str:
    if _is_list(last):
        entries = None if options.is_mixed(Preset, last) else options.entry_at(Preset, last)
        one, two = (options.entry_words(entries),) * 2 if entries else ('"one"', '"two"')
        return f"unexpected {word!r}; give several values as a list: --{last} '[{one}, {two}]'"
    return f"unexpected {word!r}; give options as --section.option value"


def _unknown_flag(flag: str, own_flags: Sequence[str]) -> str:
    own = nearest(flag, [known.lstrip("-") for known in own_flags])
    return f"--{flag}: unknown; did you mean --{own[0]}?" if own else unknown(flag, Preset, {}, flag="--")


# -- help -------------------------------------------------------------------------------------------------------------

WIDTH = 100


def options_help(schema: type[BaseModel] = Preset) -> str:
    """Every option with type, bounds, default and description, by section."""
    short = ", ".join(f"--{alias} for --{name}" for alias, name in ALIASES.items())
    places: dict[str, list[options.Group]] = {}
    for group in options.groups(schema):
        places.setdefault(group.path, []).append(group)
    return "\n".join([f"Options of a preset ({short})\n", *(_section_help(same) for same in places.values())])


def _section_help(same: list[options.Group]) -> str:
    """The options of one section; what only some of its variants have is marked with them."""
    first = same[0]
    tag = options.join(first.path, first.tag) if first.tag else ""
    only = [f"{name.rpartition('.')[2]} {' or '.join(values)}" for name, values in ways(same) if name != tag]
    title = f"{first.path or 'preset'}{f' ({only[0]})' if only else ''}: "
    lines = [title + ("one of several" if tag else about(first))]
    if tag:
        default = f"default {first.default_tag}" if first.default_tag else "required"
        lines.append(f"  --{tag}  (one of the following; {default})")
        lines += [_indented(f"{dict(group.chosen)[tag]}: {about(group)}") for group in one_each(same)]
    found: dict[str, dict[tuple[str, str], list[options.Group]]] = {}  # by name, so that equal names are adjacent
    for group in same:
        for name, field in group.options():
            if name != tag:
                entry = (f"  --{name}  ({facts(field)})", _meaning(field))
                found.setdefault(name, {}).setdefault(entry, []).append(group)
    for (flag, meaning), having in [one for entries in found.values() for one in entries.items()]:
        values = "" if len(having) == len(same) else ", ".join(dict(ways(having))[tag])
        lines += [f"{flag}  [{values}]" if values else flag, meaning]
    return "\n".join(lines) + "\n"


def _meaning(field: FieldInfo) -> str:
    """What an option is, and what is in the entries of a list of them."""
    entries = options.entry(field.annotation)
    inner = entries.model_fields.items() if entries else ()
    lines = [f"{name} ({facts(one)}): {description(one)}" for name, one in inner]
    return "\n".join([_indented(description(field)), *(textwrap.indent(_indented(line), "  ") for line in lines)])


def _indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def ways(same: list[options.Group]) -> list[tuple[str, list[str]]]:
    """The tags that lead to these groups, innermost first, each with its values."""
    found: dict[str, list[str]] = {}
    for group in same:
        for tag, value in reversed(group.chosen):
            values = found.setdefault(tag, [])
            values += [value] if value not in values else []
    return list(found.items())


def one_each(same: list[options.Group]) -> list[options.Group]:
    """The groups without those that repeat a model, which may be in several variants of an outer section."""
    return list({group.model: group for group in reversed(same)}.values())[::-1]


def about(group: options.Group) -> str:
    """A section's docstring as one line."""
    return " ".join((group.model.__doc__ or "").split())


def description(field: FieldInfo) -> str:
    """An option's docstring as one line, and what the option has an effect with."""
    return " ".join([*(field.description or "").split(), *options.hint(field, "only_with").split()])


def facts(field: FieldInfo) -> str:
    """Type, bounds, unit and default of an option in one line."""
    return "; ".join([type_facts(field), default_words(field)])


def type_facts(field: FieldInfo) -> str:
    """Type, bounds and unit of an option."""
    unit = options.hint(field, "unit")
    words = [options.type_words(field.annotation), f"in {unit}" if unit else "", options.bound_words(field)]
    return ", ".join(word for word in words if word)


def default_words(field: FieldInfo) -> str:
    """`default 16`, or `required`."""
    default = options.default_of(field)
    return "required" if default is PydanticUndefined else f"default {default_text(default)}"


def default_text(default: object) -> str:
    """A default as it would be typed."""
    if isinstance(default, float):
        return f"{default:g}"
    return {"None": "null", "True": "true", "False": "false", "": "empty", "()": "[]"}.get(str(default), str(default))
