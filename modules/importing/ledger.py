"""What becomes of another trainer's settings, key by key: mapped, changed in meaning, or dropped. Nothing is lost."""

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.preset import options
from modules.preset.problems import shown
from modules.preset.schema import Preset

MAPPED, CHANGED, DROPPED = "mapped", "changed", "dropped"

MOST_KEYS, MOST_ENTRIES = 20_000, 1_000
"""Settings in a file, and entries of one of its lists."""

SECRET = re.compile(r"token$|(^|_)api_key|secret|password|^cloud", re.IGNORECASE)
"""Keys whose values are not printed."""

OPEN = ("launcher", "config.", "meta.", "optimizer_args.", "lr_scheduler_args.", "train.optimizer_params.",
        "train.lr_scheduler_params.")  # fmt: skip
"""Beginnings of keys that hold whatever another program understands, so none of them is unknown."""


@dataclass
class Entry:
    """One of their keys."""

    part: str
    """`MAPPED`, `CHANGED` or `DROPPED`."""
    key: str
    value: Any
    ours: dict[str, Any] = field(default_factory=dict)
    """Our options and the values they got, by dotted name."""
    sentence: str = ""
    written: bool = True
    """Whether the key stands in their file; else its value is their default."""

    def facts(self) -> dict[str, Any]:
        """The entry as plain values, for JSON."""
        given = {"key": self.key, "value": self.value, "in_file": self.written, "ours": self.ours}
        return {**given, "sentence": self.sentence} if self.sentence else given


@dataclass
class Imported:
    """A preset made from another trainer's settings."""

    trainer: str
    path: Path
    name: str
    """What the trainer called the result; the file's name where it did not."""
    values: dict[str, Any]
    """The preset, as in a file."""
    mapped: list[Entry]
    changed: list[Entry]
    dropped: list[Entry]
    defaults: int
    """Keys in the file that say what the trainer would have done anyway, and that have no counterpart."""
    origin: dict[str, str]
    """Their key for each of our options, by dotted name."""


class Ledger:
    """Their settings, flat (`unet.learning_rate`, `concepts[0].path`), and what was done about each.

    `known` are the trainer's keys with their defaults, entries of lists as `concepts[].path`.
    """

    def __init__(
        self,
        trainer: str,
        path: Path,
        given: Mapping[str, Any],
        known: Mapping[str, Any],
        names: Mapping[str, str] | None = None,
    ):
        self.trainer, self.path = trainer, path
        self.given, self.known = dict(given), dict(known)
        self.check_size()
        self.names = dict(names or {})
        """What the file calls keys that have another name today."""
        self.originals: dict[str, Any] = {}
        """What the file says where `given` has it in another form."""
        self.idle: set[str] = set()
        """Keys that their program does not pass on, because they are switched off."""
        self.entries: dict[str, Entry] = {}
        self._by_name: dict[str, Entry] = {}
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    def check_size(self) -> None:
        """Raise ValueError for more than any training has: each entry of a list is told with all others."""
        most = max((int(number) for key in self.given for number in re.findall(r"\[(\d+)\]", key[:200])), default=0)
        if len(self.given) > MOST_KEYS or most >= MOST_ENTRIES:
            raise ValueError(f"{self.path}: has {len(self.given)} settings, with {most + 1} entries in one list; at "
                             f"most {MOST_KEYS} and {MOST_ENTRIES} are read")

    # -- reading ------------------------------------------------------------------------------------------------------

    def written(self, key: str) -> bool:
        """Whether their file has the key."""
        return key in self.given

    def default(self, key: str) -> Any:
        """Their default."""
        return self.known.get(re.sub(r"\[\d+\]", "[]", key))

    def value(self, key: str) -> Any:
        """Their value, or their default."""
        return self.given.get(key, self.default(key))

    def differs(self, key: str) -> bool:
        """Whether their file has something else than their default."""
        return self.written(key) and not same(self.given[key], self.default(key))

    def number(self, key: str) -> float:
        """A number. Raises ValueError."""
        value = as_number(self.value(key))
        if value is None:
            raise self.wrong(key, "a number")
        return value

    def maybe(self, key: str) -> float | None:
        """A number, or None where there is none, or an empty text."""
        return None if self.value(key) in (None, "") else self.number(key)

    def whole(self, key: str) -> int:
        """A whole number. Raises ValueError."""
        value = self.number(key)
        if math.isinf(value) or value != int(value):
            raise self.wrong(key, "a whole number")
        return int(value)

    def flag(self, key: str) -> bool:
        """True or false. Raises ValueError."""
        value = self.value(key)
        known = {"true": True, "false": False, "1": True, "0": False, "": False, "none": False}
        if value is None or isinstance(value, bool):
            return bool(value)
        if str(value).lower() not in known:
            raise self.wrong(key, "true or false")
        return known[str(value).lower()]

    def text(self, key: str) -> str:
        """A text; empty for None. Raises ValueError."""
        value = self.value(key)
        if value is not None and not isinstance(value, str | int | float):
            raise self.wrong(key, "a text")
        return "" if value is None else str(value)

    def wrong(self, key: str, wanted: str) -> ValueError:
        """The error about a value of another type."""
        return ValueError(
            f"{self.path}: {self.names.get(key, key)}: {shown(self.value(key))} is not {wanted}; correct it in the file"
        )

    # -- deciding -----------------------------------------------------------------------------------------------------

    def set(self, ours: Mapping[str, Any], key: str = "") -> None:
        """Give our options values, by dotted name; `key` is where they come from."""
        self.values.update(ours)
        self.origin.update(dict.fromkeys(ours, key) if key else {})

    def to(self, key: str, field: str, value: Any) -> None:
        """Their key is our option."""
        self.set({field: value}, key)
        self._note(key, MAPPED, {field: value}, "")

    def agree(self, key: str, sentence: str) -> None:
        """Their key asks for what is always so here."""
        self._note(key, MAPPED, {}, sentence)

    def change(self, key: str, sentence: str, ours: Mapping[str, Any] | None = None) -> None:
        """Their key is our options, but means something else there."""
        self.set(ours or {}, key)
        self._note(key, CHANGED, dict(ours or {}), sentence)

    def drop(self, key: str, reason: str) -> None:
        """There is nothing here for their key. Said only if the file has it, and with another value than usual."""
        if self.differs(key):
            self._note(key, DROPPED, {}, reason)

    def note(self, key: str, ours: Mapping[str, Any]) -> None:
        """Their key is these settings of an entry in one of our lists, which is written as a whole."""
        self.origin.update(dict.fromkeys(ours, key))
        self._note(key, MAPPED, dict(ours), "")

    def _note(self, key: str, part: str, ours: dict[str, Any], sentence: str) -> None:
        name = self.names.get(key, key)
        before = self.entries.get(key) or self._by_name.get(name)  # two keys of today for one of theirs
        if before is None:
            before = Entry(part, name, self._shown(key), ours, sentence, self.written(key))
            self.entries[key] = self._by_name[name] = before
            return
        self.entries[key] = before
        before.part = part if part == before.part else CHANGED
        before.ours.update(ours)
        if sentence and sentence not in before.sentence:
            before.sentence = f"{before.sentence} {sentence}".strip()

    def _shown(self, key: str) -> Any:
        value = self.originals.get(key, self.value(key))
        return "(not shown)" if SECRET.search(key) and value else value

    # -- closing ------------------------------------------------------------------------------------------------------

    def rename(self, old: str, new: str) -> None:
        """Take a key of an older version for today's, unless that is there too."""
        if self.written(old) and not self.written(new):
            self.given[new] = self.given.pop(old)
            self.names[new] = old

    def close(self, name: str, reasons: Mapping[str, str]) -> Imported:
        """Account for every key that was not decided about: `reasons` for dropping, by pattern over keys."""
        defaults = len(self.idle)
        for key in self.given:
            if key in self.entries:
                continue
            plain = re.sub(r"\[\d+\]", "[]", key)
            if plain not in self.known:
                unknown = f"unknown: {self.trainer} has no such key"
                self._note(key, DROPPED, {}, _reason(plain, reasons, unknown) if plain.startswith(OPEN) else unknown)
            elif not self.differs(key):
                defaults += 1
            else:
                self._note(key, DROPPED, {}, _reason(plain, reasons, "no counterpart"))
        ours = {name: options.default_of(field) for name, field in options.options(Preset).items()}
        listed = [
            entry
            for entry in {id(entry): entry for entry in self.entries.values()}.values()
            if entry.written or entry.sentence or any(value != ours.get(one) for one, value in entry.ours.items())
        ]
        parts = {part: [entry for entry in listed if entry.part == part] for part in (MAPPED, CHANGED, DROPPED)}
        return Imported(
            self.trainer, self.path, name, nested(self.values), *parts.values(), defaults=defaults, origin=self.origin
        )


def _reason(key: str, reasons: Mapping[str, str], usual: str) -> str:
    """The first reason whose pattern a key has."""
    return next((reason for pattern, reason in reasons.items() if fnmatch.fnmatchcase(key, pattern)), usual)


def as_number(value: Any) -> float | None:
    """A number, also one written as a text; None if it is none. Infinity is one, which some optimizers have."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def same(a: Any, b: Any) -> bool:
    """Whether two values mean the same: 1 and 1.0 and "1", nothing and the empty text."""
    if a in (None, "", [], {}) and b in (None, "", [], {}):
        return True
    if isinstance(a, bool) or isinstance(b, bool):
        return str(a).lower() == str(b).lower()
    left, right = as_number(a), as_number(b)
    return a == b if left is None or right is None else left == right


def flat(values: Mapping[str, Any], known: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings and lists of mappings as one mapping. What is empty in `known` stays whole."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        whole = known.get(re.sub(r"\[\d+\]", "[]", key), None) in ({}, [])
        if isinstance(value, dict) and value and not whole:
            found |= flat(value, known, key)
        elif isinstance(value, list) and value and not whole and all(isinstance(entry, dict) for entry in value):
            for number, entry in enumerate(value):
                found |= flat(entry, known, f"{key}[{number}]")
        else:
            found[key] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite for our options, sections in the order of the schema."""
    order = ["description", "name", "family", *Preset.model_fields]
    tree: dict[str, Any] = {}
    for name in sorted(values, key=lambda name: order.index(name.split(".")[0])):
        *path, last = name.split(".")
        section = tree
        for part in path:
            section = section.setdefault(part, {})
        section[last] = values[name]
    return tree
