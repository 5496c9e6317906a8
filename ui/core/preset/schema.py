"""The options of a preset as the window knows them, read from configs/preset.schema.json.

A tagged section (`adapter`, `optimizer`, ...) has several variants, told apart by the value of its tag; so a preset's
values decide which fields it has. Values are plain JSON; nobody changes them in place, `with_value` makes new ones.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_presets import sentences
from ui.core import places
from ui.core.preset import field as fields_of
from ui.core.preset.field import Field

Values = dict[str, Any]

NO_SECTION = "is not a section: give its options in braces, as in {...}"


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()
"""In a `Difference`: one side has no such option."""


@dataclass(frozen=True)
class Section:
    """The fields of one page of the form."""

    path: str
    """"" for the preset's own fields, else the name of a section, e.g. "adapter"."""

    title: str

    description: str
    """May be empty for a tagged section: then the tag's `descriptions` tell more."""

    fields: tuple[Field, ...]
    """In the schema's order, but a tag before the fields that it chooses; inner sections' fields included."""


@dataclass(frozen=True)
class Difference:
    """An option that has two values; `ABSENT` where one side has no such option."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True)
class _Row:
    """A field, and the tags' values that a preset must have chosen to have it, outermost first."""

    section: str
    chosen: tuple[tuple[str, str], ...]
    field: Field


class Schema:
    """All fields of all variants, and what follows from them for a preset's values."""

    def __init__(self, root: Mapping[str, Any]):
        self._root, self._definitions = root, root["$defs"]
        self._heads: dict[str, tuple[str, str]] = {"": ("General", root.get("description", ""))}
        self._rows = tuple(self._read(root, "", ()))
        self._sections = {row.field.path.rpartition(".")[0] for row in self._rows}
        self._known: dict[tuple, tuple[dict[str, Field], tuple[Section, ...]]] = {}
        self._everything: dict[str, list[Field]] = {}
        for row in self._rows:
            same = self._everything.setdefault(row.field.path, [])
            same += [] if row.field in same else [row.field]
        self.tags = {row.field.path.rpartition(".")[0]: row.field for row in self._rows if row.field.kind == "tag"}
        """The tag of each tagged section, by the section's path."""
        self.renames: Mapping[str, str] = root.get("renames", {})
        """Options that have got another name: old path to new one."""
        self.entries: Mapping[str, tuple[str, Mapping[str, str]]] = root.get("entries", {})
        """Options that are now an entry of a list: its path, and what the entry has besides the old option's text."""
        self.implied: Mapping[str, list[str]] = root.get("implied", {})
        """Options that meant by themselves what another one says now: its path and value."""

    @classmethod
    def load(cls, path: Path | None = None) -> "Schema":
        """The schema in a file; places.SCHEMA when none is given."""
        return cls(json.loads((path or places.SCHEMA).read_text(encoding="utf-8")))

    # -- what there is ------------------------------------------------------------------------------------------------

    def sections(self, values: Mapping[str, Any]) -> tuple[Section, ...]:
        """The sections, with the fields of the variants that `values` choose."""
        return self._chosen(values)[1]

    def fields(self, values: Mapping[str, Any]) -> dict[str, Field]:
        """The fields of the variants that `values` choose, by path. Of a section whose tag is unknown: the tag."""
        return self._chosen(values)[0]

    def everything(self) -> dict[str, list[Field]]:
        """All fields of all variants, by path; several where variants have the same name for different fields."""
        return self._everything

    def owners(self, path: str) -> dict[str, tuple[str, ...]]:
        """Which tags' values a field or tagged section needs: {"optimizer.name": ("adamw", "prodigy")}.

        {} when every preset has it.
        """
        found: dict[str, tuple[str, ...]] = {}
        path = self.tags[path].path if path in self.tags else path
        for row in self._rows:
            for tag, choice in row.chosen if row.field.path == path else ():
                if choice not in found.setdefault(tag, ()):
                    found[tag] += (choice,)
        return found

    def of_entry(self, path: str, values: Mapping[str, Any], none: str) -> "Schema":
        """What an object in the list at `path` has, as a schema of its own.

        An option that can be null and has the name of one beside the list is as that one, which `none` says: it has
        that one's help, and its present value in `values` as `instead`.
        """
        section, _, name = path.rpartition(".")
        around = self._definition(self._root["properties"][section])["properties"]
        (entry,) = [self._definition(one) for one in around[name]["items"]["oneOf"] if "$ref" in one]
        properties = dict(entry["properties"])
        for own, node in properties.items():
            if own in around and "default" in node and node["default"] is None:
                said = {key: around[own][key] for key in ("description", "group", "advanced") if key in around[own]}
                properties[own] = {**node, **said, "none": none, "instead": at(values, f"{section}.{own}")}
        return Schema({**entry, "description": "", "properties": properties, "$defs": self._definitions})

    def _read(self, node: Mapping[str, Any], path: str, chosen: tuple[tuple[str, str], ...]) -> Iterator[_Row]:
        """The rows of a section: its own fields, then those of the sections in it."""
        top = path.partition(".")[0]
        for name, inner in sorted(
            node["properties"].items(), key=lambda one: "$ref" in one[1] or "discriminator" in one[1]
        ):
            here, required = _join(path, name), name in node.get("required", ())
            if "$ref" in inner:
                below = self._definition(inner)
                self._heads.setdefault(here, (inner.get("title", below["title"]), _one_line(inner) or _one_line(below)))
                yield from self._read(below, here, chosen)
            elif "discriminator" in inner:
                self._heads.setdefault(here, (inner["title"], _one_line(inner)))
                yield from self._read_tagged(inner, here, chosen, required)
            elif "const" not in inner:  # a tag, which stands before all of these
                entry = inner.get("items", {})
                kinds = [one for one in (entry, *entry.get("oneOf", ())) if "$ref" in one]
                below = self._definition(kinds[0]) if kinds else None
                yield _Row(top, chosen, fields_of.plain(here, inner, required, below))

    def _read_tagged(
        self, node: Mapping[str, Any], path: str, chosen: tuple[tuple[str, str], ...], required: bool
    ) -> Iterator[_Row]:
        variants = [self._definition(one) for one in node["oneOf"]]
        tag = fields_of.tag(path, node, variants, required)
        yield _Row(path.partition(".")[0], chosen, tag)
        for choice, variant in zip(tag.choices, variants, strict=True):
            yield from self._read(variant, path, (*chosen, (tag.path, choice)))

    def _definition(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._definitions[node["$ref"].rpartition("/")[2]]

    def _chosen(self, values: Mapping[str, Any]) -> tuple[dict[str, Field], tuple[Section, ...]]:
        """Fields and sections, once per choice of tags: the form asks often."""
        key = tuple(f"{at(values, tag.path)}" for tag in self.tags.values())
        if key not in self._known:
            rows = [row for row in self._rows if _fits(row, values)]
            tops = dict.fromkeys(row.section for row in self._rows)
            sections = tuple(
                Section(top, *self._heads[top], tuple(row.field for row in rows if row.section == top)) for top in tops
            )
            self._known[key] = ({row.field.path: row.field for row in rows}, sections)
        return self._known[key]

    # -- what follows for values --------------------------------------------------------------------------------------

    def complete(self, values: Mapping[str, Any]) -> tuple[Values, tuple[str, ...]]:
        """`values` with defaults filled in, and all that is wrong with them.

        Values that the schema refuses stay, unknown names do not. A section whose tag is unknown stays as it is.
        """
        given = {path: at(values, path) for path in self._sections if path and holds(values, path)}
        broken = {path for path, value in given.items() if not isinstance(value, dict)}
        problems = [f"{path}: {sentences.shown(at(values, path))} {NO_SECTION}" for path in sorted(broken)]
        full: Values = {}
        for row in self._rows:  # a tag stands before the fields that it chooses
            field = row.field
            if not _fits(row, full):
                continue
            if holds(values, field.path):
                value, problem = at(values, field.path), field.problem(at(values, field.path))
            elif field.required:
                problems += [] if row.section in broken else [f"{field.path}: {field.problem(None)}"]
                continue
            else:
                value, problem = field.default, ""
            _put(full, field.path, field.understood(value))
            problems += [f"{field.path}: {one}" for one in problem.splitlines()]
        problems += [self._unknown(path, full) for path in self._strangers(values, full)]
        return self._with_undecided(full, values, full), tuple(problems)

    def switched(self, values: Values, tag_path: str, choice: str) -> tuple[Values, tuple[str, ...]]:
        """Complete `values` with another variant chosen, and a note on each value that this dropped.

        The trainer's rule: what only repeats the old variant's default goes, because the new one's may differ; of the
        rest stays what the new variant knows.
        """
        path, _, name = tag_path.rpartition(".")
        section: Mapping[str, Any] = at(values, path) or {}
        if section.get(name) == choice:
            return values, ()
        tags: Values = {}
        for other, tag in self.tags.items():
            if not _is_in(other, path) and holds(values, tag.path):
                _put(tags, tag.path, at(values, tag.path))
        defaults = at(self.complete(tags)[0], path) or {}
        kept = {key: value for key, value in section.items() if key not in defaults or defaults[key] != value}
        kept[name] = choice
        chosen = with_value(values, path, kept)
        known = {other[len(path) + 1 :].partition(".")[0] for other in self.fields(chosen) if _is_in(other, path)}
        notes = tuple(
            f"{path}.{key} = {sentences.shown(kept.pop(key))} dropped: {name} {choice} has no such option"
            for key in list(kept)
            if key not in known
        )
        return with_value(values, path, at(self.complete(chosen)[0], path)), notes

    def minimal(self, values: Mapping[str, Any]) -> Values:
        """Only what differs from the defaults, what has to be given, and the tags needed to read it."""
        known = self.fields(values)
        wanted = {
            path
            for path, field in known.items()
            if holds(values, path) and (field.required or at(values, path) != field.default)
        }
        wanted |= {tag.path for section, tag in self.tags.items() if any(_is_in(path, section) for path in wanted)}
        found: Values = {}
        for path in known:
            if path in wanted:
                _put(found, path, known[path].brief(at(values, path)))
        return self._with_undecided(found, values, values)

    def allowed(self, values: Mapping[str, Any]) -> Values:
        """Complete `values` with the default for each that the schema refuses; of what has no default, texts stay."""
        for path, field in self.fields(values).items():
            value = at(values, path)
            if not field.problem(value):
                continue
            if not field.required:
                values = with_value(values, path, field.default)
            elif holds(values, path) and not isinstance(value, str):
                values = without(values, path)
        return self.complete(values)[0]

    def with_tags(self, values: Mapping[str, Any]) -> Values:
        """`values` where tagged sections that do not say which variant they are say that they are the default one."""
        for section, tag in self.tags.items():
            if isinstance(at(values, section), dict) and not holds(values, tag.path) and not tag.required:
                values = with_value(values, tag.path, tag.default)
        return dict(values)

    def _with_undecided(self, found: Values, given: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
        """`found` with all that is given in sections whose tag is unknown: nobody can say yet what of it is right."""
        for section in self._undecided(values):
            inner = at(given, section)
            if isinstance(inner, dict):
                found = with_value(found, section, {**inner, **(at(found, section) or {})})
        return found

    def _undecided(self, values: Mapping[str, Any]) -> list[str]:
        active = self.fields(values)
        return [
            section
            for section, tag in self.tags.items()
            if tag.path in active and at(values, tag.path) not in tag.choices
        ]

    def _strangers(self, values: Mapping[str, Any], full: Values, path: str = "") -> Iterator[str]:
        """Paths of what stands in `values` and is no option of the complete preset."""
        known = self.fields(full)
        undecided = self._undecided(full)
        for name, value in (values if not path else at(values, path)).items():
            here = _join(path, name)
            if here in undecided or here in known:
                continue
            if not any(_is_in(other, here) for other in known):
                yield here
            elif isinstance(value, dict):
                yield from self._strangers(values, full, here)

    def _unknown(self, path: str, values: Values) -> str:
        """The line about a name that does not exist, or not with the variants that `values` chose."""
        for tag, owning in self.owners(path).items():
            chosen = at(values, tag)
            if chosen not in (None, *owning):
                word = tag.rpartition(".")[2]
                belongs = sentences.enumerated(owning, "and")
                return f"{path}: {word} {chosen} has no such option; it is an option of {belongs}"
        active = self.fields(values)
        sections = {other.rpartition(".")[0]: None for other in active if "." in other}
        others = [section for section in sections if section != path.rpartition(".")[0]]
        return sentences.unknown(path, [*active, *others], list(self.everything()))


# -- values by path ---------------------------------------------------------------------------------------------------


def at(values: Any, path: str) -> Any:
    """The value at a path, None when there is none."""
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values:
            return None
        values = values[name]
    return values


def holds(values: Any, path: str) -> bool:
    """Whether there is a value, None included, at a path."""
    section, _, last = path.rpartition(".")
    inner = at(values, section) if section else values
    return isinstance(inner, dict) and last in inner


def with_value(values: Mapping[str, Any], path: str, value: Any) -> Values:
    """A copy of `values` with another value at a path; whatever did not change is shared with `values`."""
    name, _, rest = path.partition(".")
    if rest:
        inner = values.get(name)
        value = with_value(inner if isinstance(inner, dict) else {}, rest, value)
    return {**values, name: value}


def without(values: Mapping[str, Any], path: str) -> Values:
    """A copy of `values` without the one at a path, which has to be there; an emptied section goes with it."""
    name, _, rest = path.partition(".")
    others = {key: value for key, value in values.items() if key != name}
    inner = without(values[name], rest) if rest else {}
    return {**others, name: inner} if inner else others


def flatten(values: Mapping[str, Any], path: str = "") -> Values:
    """Nested mappings as one, by path."""
    found: Values = {}
    for name, value in values.items():
        here = _join(path, name)
        found |= flatten(value, here) if isinstance(value, dict) and value else {here: value}
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """The options in which two presets differ: those of `a` in their order, then those that only `b` has."""
    before, after = flatten(a), flatten(b)
    both = [Difference(path, before.get(path, ABSENT), after.get(path, ABSENT)) for path in {**before, **after}]
    return [one for one in both if one.before != one.after]


def _put(values: Values, path: str, value: Any) -> None:
    """Set a path in values that nobody else has, making sections on the way."""
    *sections, last = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value


def _fits(row: _Row, values: Mapping[str, Any]) -> bool:
    return all(at(values, tag) == choice for tag, choice in row.chosen)


def _is_in(path: str, section: str) -> bool:
    return path.startswith(f"{section}.")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _one_line(node: Mapping[str, Any]) -> str:
    return " ".join(node.get("description", "").split())
