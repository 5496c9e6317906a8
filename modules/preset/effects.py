"""Options of a preset that have no effect: the conditions that they declare (see `conditions`), evaluated."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from modules.preset import conditions, options, section
from modules.preset.schema import Preset


@dataclass(frozen=True)
class Idle:
    """An option without effect that was set, or given."""

    name: str
    """Dotted."""
    value: Any
    instead: Any
    """The value that it should have."""
    why: str
    """As in "has no effect without data.shuffle"."""
    is_refused: bool
    """Whether it is an error."""

    @property
    def note(self) -> str:
        """The sentence about it."""
        return f"{self.name} {conditions.value_text(self.value)} has no effect {self.why}"

    @property
    def problem(self) -> str:
        """The sentence about a refused one: it begins with its name and a colon."""
        last = self.name.rpartition(".")[2]
        value = self.value if isinstance(self.value, float) else conditions.value_text(self.value)
        return f"{self.name}: {value} {conditions.refusal(self.why, last, self.instead)}"


def idle(values: Mapping[str, Any], facts: Mapping[str, Any], given: Collection[str] = ()) -> list[Idle]:
    """The options in `values` without effect that differ from their default, or are among the dotted names `given`.

    `values` are a whole preset as in JSON, or some of its sections: conditions on the others count as met. `facts` are
    those of `conditions.FACTS` that are known, and values of options that replace an "auto", by dotted name.
    """
    found = []

    def look_from(path: str) -> conditions.Look:
        def look(name: str) -> list[Any] | None:
            full = conditions.absolute(name, path)
            if full in facts:
                return [facts[full]]
            return list(_values(values, full)) if full.partition(".")[0] in values else None

        return look

    for path, name, field, value in _fields(values):
        full, needed = options.join(path, name), section.needs(field)
        if not needed or conditions.asks_nothing(value):
            continue
        if full not in given and value == to_jsonable_python(options.default_of(field)):
            continue
        look = look_from(path)
        if unmet := conditions.unmet(needed, look, facts):
            why = conditions.reason(unmet, look, path)
            found.append(Idle(full, value, section.idle_value(field), why, conditions.is_strict(unmet)))
    return found


def notes(preset: Preset, facts: Mapping[str, Any], given: Collection[str] = ()) -> list[str]:
    """Sentences about the options of a whole preset without effect, but for those that are errors."""
    return [one.note for one in idle(preset.model_dump(mode="json"), facts, given) if not one.is_refused]


def _fields(values: Mapping[str, Any]) -> Iterator[tuple[str, str, FieldInfo, Any]]:
    """The options in `values`, those of entries of lists too: section (or entry), name, field, value."""
    for group in options.active(Preset, values):
        inner = options.at(values, group.path) if group.path else values
        if not isinstance(inner, Mapping):
            continue
        for full, field in group.options():
            name = full.rpartition(".")[2]
            if name not in inner:
                continue
            yield group.path, name, field, inner[name]
            entries = options.entry(field.annotation)
            for number, entry in enumerate(inner[name] if entries else ()):
                for key in entry if isinstance(entry, Mapping) else ():
                    yield f"{full}[{number}]", key, entries.model_fields[key], entry[key]  # pyright: ignore


def _values(values: Any, name: str) -> Iterator[Any]:
    """The values at a dotted name, in which `list[]` stands for each entry of a list and `list[0]` for one."""
    first, _, rest = name.partition(".")
    key, bracket, number = first.rstrip("]").partition("[")
    if not isinstance(values, Mapping) or key not in values:
        return
    entries = [values[key]] if not bracket else values[key] if not number else [values[key][int(number)]]
    for entry in entries:
        if rest:
            yield from _values(entry, rest)
        else:
            yield entry
