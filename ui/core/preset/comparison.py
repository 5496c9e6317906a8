"""What differs between the edited preset and another one, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ui.core import words
from ui.core.preset.document import Document
from ui.core.preset.schema import ABSENT, Difference, Field, Values, at, with_value

NO_SUCH = "no such setting"


@dataclass(frozen=True)
class Row:
    """One setting that differs."""

    section: str
    """The section's title."""
    path: str
    label: str
    before: str
    now: str
    other: Any
    """The value that it is compared with, or ABSENT."""
    locked: str
    """Why it cannot be set to `other`; "" when it can."""
    here: bool
    """Whether the edited preset has the setting."""


def rows(document: Document, other: Mapping[str, Any]) -> list[Row]:
    """Each setting that differs from other complete values, by section."""
    titles = {section.path: section.title for section in document.schema.sections(document.values)}
    order = [*titles]
    found = sorted(document.differences(other), key=lambda one: order.index(_section(one.path, titles)))
    return [_row(document, other, one, titles[_section(one.path, titles)]) for one in found]


def defaults(document: Document) -> Values:
    """The default values; of what has no default, the present ones."""
    given: Values = {}
    for path, field in document.schema.fields(document.values).items():
        if field.required:
            given = with_value(given, path, at(document.values, path))
    return document.schema.complete(given)[0]


def as_text(title: str, changed: Sequence[Row]) -> str:
    """The differences for a message or a note."""
    lines = [title]
    for section, inside in groupby(changed, key=lambda row: row.section):
        lines += ["", section]
        lines += [
            f"  {row.label} ({row.path}): {_on_one_line(row.before)} -> {_on_one_line(row.now)}" for row in inside
        ]
    return "\n".join(lines) + "\n"


def value_text(value: Any, field: Field | None) -> str:
    """A value with its unit, each of several on its line; or that there is none."""
    if value is ABSENT:
        return NO_SUCH
    if isinstance(value, list) and len(value) > 1:
        return "\n".join(words.value(one) for one in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not field or not field.unit:
        return words.value(value)
    unit = field.unit.removesuffix("s") if value == 1 else field.unit
    return f"{words.value(value)} {unit}"


def _on_one_line(text: str) -> str:
    return " | ".join(text.split("\n"))


def _section(path: str, titles: Mapping[str, str]) -> str:
    top = path.partition(".")[0]
    return top if top in titles else ""


def _row(document: Document, other: Mapping[str, Any], difference: Difference, section: str) -> Row:
    path, here, there = difference.path, document.schema.fields(document.values), document.schema.fields(other)
    field = here.get(path) or there.get(path)
    return Row(
        section=section,
        path=path,
        label=field.label if field else path,
        before=value_text(difference.before, there.get(path)),
        now=value_text(difference.after, here.get(path)),
        other=difference.before,
        locked=_locked(document, other, difference),
        here=path in here,
    )


def _locked(document: Document, other: Mapping[str, Any], difference: Difference) -> str:
    here = document.schema.fields(document.values)
    if difference.path in here and difference.before is not ABSENT:
        return ""
    tags = [tag for tag in document.schema.owners(difference.path) if at(document.values, tag) != at(other, tag)]
    names = " and ".join(here[tag].label if tag in here else tag for tag in tags)
    if names:
        return f"Depends on {names}: reset that first."
    return "The other preset has no such setting." if difference.path in here else "Not a setting."
