"""Focus points: the middle of what a crop of a picture should show, from metadata.jsonl."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.data.captions import FOCUS, read_text
from modules.data.names import shown
from modules.preset.data_options import Data

if TYPE_CHECKING:
    from modules.data.survey import Survey

FILE = "metadata.jsonl"


def points(
    options: Data, paths: Collection[Path], files: Sequence[Path], found: "Survey"
) -> dict[Path, tuple[float, float]]:
    """The focus points of pictures, if they are cropped around one, as fractions of width and height. Problems go to
    `found`; what else is wrong with the files is said where captions are read from them."""
    wanted = set(paths) if options.crop == "focus" else set()
    given: dict[Path, tuple[float, float]] = {}
    for file in files if wanted else ():
        if file.name != FILE:
            continue
        for number, entry in _entries(file):
            path = file.parent / os.path.normpath(entry["file_name"])
            if path in wanted:
                try:
                    given[path] = _point(entry[FOCUS])
                except ValueError as error:
                    found.problem(f"{shown(file)} line {number}: {error}")
    return given


def _entries(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The entries of a file with a focus, with the numbers of their lines."""
    found = []
    try:
        lines = read_text(file).split("\n")
    except ValueError:
        return []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and FOCUS in entry:
            found.append((number, entry))
    return found


def _point(given: Any) -> tuple[float, float]:
    """Raises ValueError for what is no point of a picture."""
    is_pair = isinstance(given, list) and len(given) == 2 and all(type(value) in (int, float) for value in given)
    if not is_pair or not all(0 <= value <= 1 for value in given):
        raise ValueError(f'"{FOCUS}" is {json.dumps(given)}; give two fractions of width and height, as in [0.5, 0.3]')
    return float(given[0]), float(given[1])
