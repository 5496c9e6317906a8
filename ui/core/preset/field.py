"""One option of a preset, as the schema describes it: what a row of the form needs to know."""

import math
import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from training_presets import sentences

TYPES = {"boolean": "boolean", "integer": "integer", "number": "number", "string": "text", "array": "texts"}
"""Field kind by JSON type, where the schema gives no other."""

COLUMNS = ("boolean", "integer", "number", "text", "choice")
"""Kinds of fields that entries may have."""

MIXED = {"folders": "path", "prompts": "prompt"}
"""Kinds of lists whose entries are texts, or objects with settings of their own; and what in these is the text."""

WRONG = {
    "boolean": "is not true or false",
    "integer": "is not a whole number",
    "number": "is not a number",
    "texts": "is not a list",
    "numbers": "is not a list",
    "files": "is not a list",
    "folders": "is not a list",
    "prompts": "is not a list",
}
"""What is wrong with a value of another type; for all other kinds: NO_TEXT."""

NO_TEXT = "is not a text (in quotes)"

YES, NO = (1, "1", "on", "t", "true", "y", "yes"), (0, "0", "off", "f", "false", "n", "no")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One option. A section's tag (the choice between its variants) is a field as well."""

    path: str
    """Dotted, e.g. "training.learning_rate", "adapter.rotation.kind"."""

    label: str
    description: str

    why: str
    """Reason for the default; may be "none"."""

    only_with: str = ""
    """A sentence: what the option has an effect with; "" for one that always has."""

    group: str = "Basic"
    unit: str = ""
    advanced: bool = False

    kind: str
    """boolean, integer, number, text, choice, tag, texts, numbers, entries, prompts, file, files, folder,
    folders or model."""

    choices: tuple[str, ...]
    """Of a choice and a tag, else empty."""

    nullable: bool = False
    none: str = "None"
    """What stands for null beside the input."""

    instead: Any = None
    """Of what null leaves to another option: that option's value."""

    required: bool

    default: Any
    """None when required."""

    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    multiple_of: int | None = None

    descriptions: Mapping[str, str] = dataclass_field(default_factory=dict)
    """Of a tag: first line about each variant, by choice."""

    columns: tuple["Field", ...] = ()
    """Of entries: what each of them has. Their paths are plain names. Of numbers: what each of them is. Of folders
    and prompts: what one in braces has."""

    entry: str = ""
    """Of entries: what one of them is called, in lower case."""

    def problem(self, value: Any) -> str:
        """What is wrong with a value, in the trainer's words ("0 is too small; at least 1"); "" when nothing is.

        Of entries a line for each thing that is wrong.
        """
        if value is None and self.nullable:
            return ""
        if self.choices:
            return "" if value in self.choices else sentences.not_one_of(value, self.choices)
        if value is None and self.required:
            return "required"
        if self.kind in ("entries", *MIXED):
            one_folder = self.kind == "folders" and isinstance(value, str)
            return "\n".join(self._entries_problems([value] if one_folder else value))
        given, value = value, self.understood(value)
        if self.kind in ("integer", "number"):
            return self._number_problem(given, value)
        if self.kind == "boolean":
            return "" if isinstance(value, bool) else self._is_wrong(value)
        if self.kind in ("texts", "numbers", "files"):
            if not isinstance(value, list):
                return self._is_wrong(value)
            wrong = ((place, self._part_problem(one)) for place, one in enumerate(value, start=1))
            return "\n".join(f"number {place}: {problem}" for place, problem in wrong if problem)
        return "" if isinstance(value, str) else self._is_wrong(value)

    def understood(self, value: Any) -> Any:
        """The value the trainer makes of it: 5 of "5" for a whole number. What is not understood stays as it is."""
        if self.kind == "boolean":
            said = value.lower() if isinstance(value, str) else value
            return said in YES if said in YES + NO else value
        if self.kind == "integer":
            if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,99}(\.0*)?\s*", value):
                return int(value.partition(".")[0])
            whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
            return int(value) if whole else value
        if self.kind == "number":
            with suppress(ValueError, OverflowError, TypeError):
                return float(value)
        if self.kind == "folders" and isinstance(value, str):
            return [value] if value else []
        if self.kind in MIXED and isinstance(value, list | tuple):
            return [self._understood_mixed(one) if isinstance(one, dict) else one for one in value]
        if self.kind == "numbers" and isinstance(value, list | tuple):
            return [self.columns[0].understood(one) for one in value]
        if self.kind == "entries" and isinstance(value, list | tuple):
            return [self._understood_entry(one) if isinstance(one, dict) else one for one in value]
        return list(value) if isinstance(value, list | tuple) else value

    def brief(self, value: Any) -> Any:
        """The value as a preset file says it: without what is a default in an entry."""
        if self.kind not in ("entries", *MIXED) or not isinstance(value, list):
            return value
        plain = {column.path: column.default for column in self.columns if not column.required}

        def needed(entry: Mapping[str, Any]) -> dict[str, Any]:
            return {name: inner for name, inner in entry.items() if name not in plain or inner != plain[name]}

        return [needed(one) if isinstance(one, dict) else one for one in value]

    def _understood_entry(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """An entry with its defaults, and without what it cannot have."""
        known = [column for column in self.columns if column.path in given or not column.required]
        return {one.path: one.understood(given[one.path]) if one.path in given else one.default for one in known}

    def _understood_mixed(self, given: Mapping[str, Any]) -> Any:
        """An object without settings that only repeat the default; one without any is its text."""
        (own,), text = self.brief([self._understood_entry(given)]), MIXED[self.kind]
        return own[text] if [*own] == [text] else own

    def _part_problem(self, part: Any) -> str:
        """What is wrong with one of several texts or numbers."""
        if self.kind == "numbers":
            return self.columns[0].problem(part)
        return "" if isinstance(part, str) else f"{sentences.shown(part)} {NO_TEXT}"

    def _entries_problems(self, value: Any) -> Iterator[str]:
        names, plain = [column.path for column in self.columns], self.kind in MIXED
        needed = [column.path for column in self.columns if column.required] or names
        form = "{" + ", ".join(f'"{name}": ...' for name in needed) + "}"
        if not isinstance(value, list | tuple):
            yield self._is_wrong(value) if plain else (
                f"{sentences.shown(value)} is not a list of {self.entry}s, as in [{form}]"
            )
            return
        for place, one in enumerate(value):
            if plain and isinstance(one, str):
                continue
            if not isinstance(one, dict):
                what = NO_TEXT if plain else f"is not a {self.entry} in braces, as in {form}"
                yield f"number {place + 1}: {sentences.shown(one)} {what}"
                continue
            wrong = {column.path: column.problem_in(one) for column in self.columns}
            for name in [name for name in one if name not in names]:
                near = sentences.nearest(name, names)
                meant = f"did you mean {near[0]}?" if near else f"{self.path}[{place}] has {', '.join(names)}"
                wrong[name] = f"unknown; {meant}"
            yield from (f"number {place + 1}, {name}: {problem}" for name, problem in wrong.items() if problem)

    def problem_in(self, entry: Mapping[str, Any]) -> str:
        """What is wrong with this column of an entry."""
        if self.path not in entry:
            return "required" if self.required else ""
        value = entry[self.path]
        return self._is_wrong(value) if value is None and self.required else self.problem(value)

    def _is_wrong(self, value: Any) -> str:
        return f"{sentences.shown(value)} {WRONG.get(self.kind, NO_TEXT)}"

    def _number_problem(self, given: Any, value: Any) -> str:
        shown = sentences.shown(given)
        if not isinstance(value, int | float):
            return self._is_wrong(given)
        if isinstance(value, float) and not math.isfinite(value):
            return f"{shown} is not a finite number"
        if self.kind == "integer" and isinstance(value, float):
            return self._is_wrong(given)
        if self.multiple_of is not None and value % self.multiple_of:
            return f"{shown} is not a multiple of {self.multiple_of}"
        for bound, is_crossed, words in (
            (self.minimum, operator.lt, "small; at least"),
            (self.exclusive_minimum, operator.le, "small; more than"),
            (self.maximum, operator.gt, "large; at most"),
            (self.exclusive_maximum, operator.ge, "large; less than"),
        ):
            if bound is not None and is_crossed(value, bound):
                return f"{shown} is too {words} {int(bound) if bound == int(bound) else repr(bound)}"
        return ""


def plain(path: str, node: Mapping[str, Any], required: bool, entry: Mapping[str, Any] | None = None) -> Field:
    """The field that a property of the schema describes. `entry`: what the objects in a list are."""
    properties = entry["properties"].items() if entry else ()
    given = [(name, one if node.get("kind") else {**one, "kind": ""}) for name, one in properties]  # a path: as text
    columns = tuple(plain(name, one, name in entry.get("required", ())) for name, one in given if entry)
    members = node.get("anyOf", [node])
    inner = [member for member in members if member.get("type") != "null"]
    known = len(inner) == 1 and (inner[0].get("type") in TYPES or "enum" in inner[0])
    editable = node.get("kind") or all(column.kind in COLUMNS for column in columns)
    if not known or not editable:
        raise ValueError(f"{path}: the schema describes it in a way that the window does not know: {node}")
    kind = "entries" if entry else "choice" if "enum" in inner[0] else TYPES[inner[0]["type"]]
    parts = inner[0].get("items", {})
    if parts.get("type") in ("integer", "number"):
        kind, columns = "numbers", (plain(path, {**parts, "title": node["title"]}, True),)
    return Field(
        path=path,
        label=node["title"],
        description=" ".join(node.get("description", "").split()),
        why=node.get("why", ""),
        only_with=node.get("only_with", ""),
        group=node.get("group", "Basic"),
        unit=node.get("unit", ""),
        advanced=node.get("advanced", False),
        kind=node.get("kind") or kind,
        choices=tuple(inner[0].get("enum", ())),
        nullable=len(inner) < len(members),
        none=node.get("none", "None"),
        instead=node.get("instead"),
        required=required,
        default=node.get("default"),
        minimum=inner[0].get("minimum"),
        maximum=inner[0].get("maximum"),
        exclusive_minimum=inner[0].get("exclusiveMinimum"),
        exclusive_maximum=inner[0].get("exclusiveMaximum"),
        multiple_of=inner[0].get("multipleOf"),
        columns=columns,
        entry=entry["title"].lower() if entry else "",
    )


def tag(path: str, node: Mapping[str, Any], variants: list[Mapping[str, Any]], required: bool) -> Field:
    """The field that chooses between the variants of a tagged section. `path`: of the section."""
    name = node["discriminator"]["propertyName"]
    own = [variant["properties"][name] for variant in variants]
    words = {one.get("description", "") for one in own}
    return Field(
        path=f"{path}.{name}",
        label=own[0]["title"],
        description=" ".join((node.get("description") or (words.pop() if len(words) == 1 else "")).split()),
        why=node.get("why", ""),
        kind="tag",
        choices=tuple(one["const"] for one in own),
        required=required,
        default=node.get("default", {}).get(name),
        descriptions={
            one["const"]: variant.get("description", "").partition("\n")[0]
            for one, variant in zip(own, variants, strict=True)
        },
    )
