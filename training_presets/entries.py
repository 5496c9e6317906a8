"""Options that became entries of a list, for presets that still have them. This file is shared by the trainer and the
window; it imports neither."""

from collections.abc import Mapping
from typing import Any


def has(entries: Any, kind: Mapping[str, str]) -> bool:
    """Whether one of the entries is of a kind, such as `{"role": "validation"}`."""
    return isinstance(entries, list | tuple) and any(_is(one, kind) for one in entries)


def replaced(entries: Any, kind: Mapping[str, str], path: Any) -> Any:
    """A list with the entry that the old option says in place of those of its kind; the empty text says none. What is
    no list stays as it is, to be refused as such."""
    given = [entries] if isinstance(entries, str) and entries else entries or []
    if not isinstance(given, list | tuple):
        return given
    others = [one for one in given if not _is(one, kind)]
    return others if path in ("", None) else [*others, {"path": path, **kind}]


def note(old: str, new: str, kind: Mapping[str, str]) -> str:
    """The sentence about it."""
    return f"{old} was renamed to {new} (an entry with {_words(kind)})"


def dropped(old: str, new: str, kind: Mapping[str, str]) -> str:
    """The sentence about a list that replaces one with such an entry, and has none."""
    return f"{new}: the preset's entry with {_words(kind)} is left out; give it with --{old}"


def _words(kind: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in kind.items())


def _is(entry: Any, kind: Mapping[str, str]) -> bool:
    return isinstance(entry, Mapping) and all(entry.get(name) == value for name, value in kind.items())
