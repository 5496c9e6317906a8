"""Reading small files that anything may have happened to: JSON within bounds, and nothing but files is opened; and
writing them whole."""

import errno
import json
import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from training_presets.sentences import enumerated

LARGEST = 8 * 2**20
"""Bytes of a JSON file that are read."""

DEEPEST = 100
"""Levels of objects and lists within each other."""

TOO_DEEP = f"is damaged or of another kind: its values are nested more than {DEEPEST} levels deep"


def opened(path: Path) -> BinaryIO:
    """The file at `path`, open for reading. Raises OSError for what is none: a pipe would wait for ever."""
    try:
        found = path.stat()
    except ValueError as error:  # a character that no path has
        raise OSError(errno.EINVAL, f"{error}", f"{path!r}") from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), f"{path}")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", f"{path}")
    return path.open("rb")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError where it cannot be read; ValueError, in words, for what is in it."""
    return parse(read_text(path, LARGEST, "it has more than"))


def read_text(path: Path, most: int, too_large: str) -> str:
    """The text in a file of at most so many bytes, with or without a byte order mark. Raises OSError where it cannot be
    read; ValueError, in the trainer's words, and in those of `too_large`."""
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{too_large} {most / 2**20:.0f} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seen = f"byte {error.start + 1} is {content[error.start]:#04x}"
        how = "it is UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else seen
        raise ValueError(f"is not UTF-8 text ({how}); save it as UTF-8") from None


def parse(text: str | bytes, exact: bool = False) -> Any:
    """The value of a JSON text. `exact`: without what Python's JSON has beyond the standard, and each name once.
    Raises ValueError, in the trainer's words."""
    try:
        found = json.loads(
            text, object_pairs_hook=_without_duplicates if exact else None, parse_constant=_refused if exact else None
        )
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}" if text.strip() else "it is empty"
        raise ValueError(f"is not JSON ({reason})") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    return _bounded(found)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either the old or the new one, never half of it. Raises OSError.

    Not forced to the disk: that takes seconds while a trainer writes its states, and this is the window's thread.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # the error above is the one to tell
            temporary.unlink()
        raise


def is_there(path: Path) -> bool:
    """Whether anything is there. False too for a text that is no path, and in folders that may not be looked into."""
    return _mode(path) != 0


def is_folder(path: Path) -> bool:
    """Whether a folder is there; likewise."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Whether a file is there; likewise."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = [name[:80] for name, count in counts.items() if count > 1][:3]
        raise ValueError(f"{enumerated(twice, 'and')} is given twice in one section; keep one")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _bounded(value: Any) -> Any:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise ValueError(TOO_DEEP)
