"""Sentences about a preset's problems that the trainer and the window say alike, and the names that are meant.

This file is shared by both; it imports neither.
"""

import difflib
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


def not_one_of(value: Any, choices: Sequence[str]) -> str:
    """`'rde' is not one of red, blue; did you mean red?`."""
    if value is None:
        return f"required: one of {', '.join(choices)}"
    found = nearest(f"{value}", choices)
    meant = f"; did you mean {found[0]}?" if found else ""
    return f"{shown(value)} is not one of {', '.join(choices)}{meant}"


def unknown(path: str, known: Sequence[str], everything: Sequence[str], flag: str = "") -> str:
    """The line about an option that does not exist: `known` are those of this preset, `everything` those of any.

    `flag` is "--" on a command line, where names are always given in full.
    """
    section = path.rpartition(".")[0]
    if found := nearest(path, known) or nearest(path, everything):
        same_section = not flag and all(other.rpartition(".")[0] == section for other in found)
        names = [other.rpartition(".")[2] if same_section else flag + other for other in found]
        return f"{flag}{path}: unknown; did you mean {enumerated(names, 'or')}?"
    if flag:
        return f"{flag}{path}: unknown; --help lists all options"
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    return f"{path}: unknown" + (f"; {section or 'a preset'} has {', '.join(siblings)}" if siblings else "")


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
