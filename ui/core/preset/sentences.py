"""The words in which a preset's problems are told; the trainer uses the same ones."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_PATH = 200
"""Nothing is suggested for longer ones."""


def shown(value: Any) -> str:
    """A value in a sentence: as in JSON, but texts in single quotes, and never long."""
    text = {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def enumerated(names: Iterable[str], word: str) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def number(value: float) -> str:
    """A number without needless digits: 10 for 10.0."""
    return str(int(value)) if value == int(value) else repr(value)


def not_one_of(value: Any, choices: Sequence[str]) -> str:
    """`'rde' is not one of red, blue; did you mean red?`."""
    if value is None:
        return f"required: one of {', '.join(choices)}"
    found = nearest(f"{value}", choices)
    meant = f"; did you mean {found[0]}?" if found else ""
    return f"{shown(value)} is not one of {', '.join(choices)}{meant}"


def unknown(path: str, known: Sequence[str], everything: Sequence[str]) -> str:
    """The line about an option that does not exist: `known` are those of this preset, `everything` those of any."""
    section = path.rpartition(".")[0]
    found = nearest(path, known) or nearest(path, everything)
    if found:
        same_section = all(other.rpartition(".")[0] == section for other in found)
        names = [other.rpartition(".")[2] if same_section else other for other in found]
        return f"{path}: unknown; did you mean {enumerated(names, 'or')}?"
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    return f"{path}: unknown" + (f"; {section or 'a preset'} has {', '.join(siblings)}" if siblings else "")


def unknown_in_entry(name: str, known: Sequence[str], where: str) -> str:
    """What is said of an unknown name in an entry of a list; `where`: the entry, as in `list[0]`."""
    found = nearest(name, known)
    return f"unknown; did you mean {found[0]}?" if found else f"unknown; {where} has {', '.join(known)}"


def numbered(text: str) -> str:
    """The trainer's sentence about an entry of a list: `[0].rank: ...` as `number 1, rank: ...`."""
    found = re.match(r"\[(\d+)\](?:\.(\w+))?:? ", text)
    if not found:
        return text
    inner = f", {found[2]}" if found[2] else ""
    return f"number {int(found[1]) + 1}{inner}: {text[found.end() :]}"


def nearest(path: str, known: Sequence[str]) -> list[str]:
    """The paths in `known` that somebody who wrote `path` may have meant, best first; none for a text that no path is
    as long as: comparing takes the square of the length."""
    if len(path) > LONGEST_PATH:
        return []
    section, _, last = path.rpartition(".")
    lasts = {other: other.rpartition(".")[2] for other in known}
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    by_last = difflib.get_close_matches(last, [lasts[other] for other in siblings], n=1, cutoff=0.7)
    return (
        [f"{section}.{found}" if section else found for found in by_last]
        or difflib.get_close_matches(path, [other for other in known if other not in siblings], n=1, cutoff=0.85)
        or [other for other in known if lasts[other] == last][:3]
        or difflib.get_close_matches(path, known, n=1, cutoff=0.75)
        or [other for other in known if difflib.get_close_matches(last, [lasts[other]], cutoff=0.8)][:3]
    )
