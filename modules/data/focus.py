"""Focus points: the middle of what a crop of a picture should show, from metadata files."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.data.caption_tables import FOCUS, TABLES, file_named, named, places, rows
from modules.data.names import shown
from modules.preset.data_options import Data

if TYPE_CHECKING:
    from modules.data.survey import Survey


COLUMNS = (".csv", ".parquet")
"""Suffixes of tables, in which every picture has the column."""


def points(
    options: Data, paths: Collection[Path], files: Sequence[Path], found: "Survey"
) -> dict[Path, tuple[float, float]]:
    """The focus points of pictures, if they are cropped around one, as fractions of width and height. Problems go to
    `found`; what else is wrong with the files is said where captions are read from them."""
    given: dict[Path, tuple[float, float]] = {}
    there = places(paths) if options.crop == "focus" else {}
    for file in files if there else ():
        if file.name not in TABLES:
            continue
        for place, name, point in _entries(file):
            for path in _pictures(file.parent, name, there):
                try:
                    given[path] = _point(point)
                except ValueError as error:
                    found.problem(f"{shown(file)} {place}: {error}")
    return given


def _pictures(folder: Path, name: str, there: Mapping[str, list[Path]]) -> list[Path]:
    """Those that an entry means; none where it names another folder's, or nothing, which captions are checked for."""
    try:
        return named(folder, name, there)
    except ValueError:
        return []


def _entries(file: Path) -> list[tuple[str, str, Any]]:
    """Place, file name and focus of the entries that have one."""
    found = []
    try:
        for place, entry in rows(file):
            if not isinstance(entry, ValueError) and FOCUS in entry:
                point = _in_table(entry[FOCUS]) if file.suffix in COLUMNS else entry[FOCUS]
                if point is not None or file.suffix not in COLUMNS:
                    found.append((place, file_named(entry), point))
    except ValueError:
        return found
    return found


def _in_table(value: Any) -> Any:
    """A cell of a table: none where it is empty; text is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def _point(given: Any) -> tuple[float, float]:
    """Raises ValueError for what is no point of a picture."""
    is_pair = isinstance(given, list) and len(given) == 2 and all(type(value) in (int, float) for value in given)
    if not is_pair or not all(0 <= value <= 1 for value in given):
        raise ValueError(f'"{FOCUS}" is {json.dumps(given)}; give two fractions of width and height, as in [0.5, 0.3]')
    return float(given[0]), float(given[1])
