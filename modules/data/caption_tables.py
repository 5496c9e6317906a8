"""What JSON files beside pictures, and metadata files of a folder of pictures, say about captions.

The forms are those of Hugging Face's image folders (`file_name` and `text`), of sd-scripts (a path with `caption` and
`tags`), of ai-toolkit (a path with `caption`), and of taggers (`tags`, as text, list or with their probabilities).
"""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.data.captions import glue, lines, read_text
from modules.data.names import composed, looked_at, shown
from modules.documents import parse_json
from modules.preset.data_options import Data

CAPTION_KEYS = ("text", "caption", "captions")
"""Names of the caption."""

TAGS = "tags"

FILE_KEYS = ("file_name", "image_path", "image", "file", "filename", "path")
"""Names of the file name."""

FOCUS = "focus"
"""Name of a picture's focus point."""

TABLES = tuple(f"metadata.{kind}" for kind in ("jsonl", "json", "csv", "parquet"))
"""Names of metadata files, the first of a folder's first."""

Row = tuple[str, Mapping[str, Any] | ValueError]
"""Where it stands in its file, and the entry, or what is wrong with it."""


@dataclass(frozen=True)
class Said:
    """What an entry says about a picture."""

    captions: tuple[str, ...]
    """One, which may have several lines; or several, of one line each."""
    tags: str = ""
    unused: frozenset[str] = frozenset()
    """Names of other values in it."""

    def text(self, options: Data) -> str:
        """The caption, with tags behind it: behind each line, where a line is a caption, as in sd-scripts."""
        caption = "\n".join(self.captions)
        alone = [caption] if options.caption_lines == "all" else lines(caption)
        return "\n".join(glue(options).join(part for part in (one, self.tags) if part) for one in alone)


def said(options: Data, entry: Any) -> Said:
    """What an entry says. Raises ValueError where it has no caption."""
    if isinstance(entry, str | list):
        entry = {"caption": entry}
    if not isinstance(entry, Mapping):
        raise ValueError('is not a text, a list of texts, or an object with "caption"')
    given = {key: _captions(entry[key], key) for key in CAPTION_KEYS if entry.get(key) is not None}
    tags = _tags(options, entry[TAGS]) if entry.get(TAGS) is not None else ""
    if not given and not tags:
        raise ValueError('has no caption; write it as {"caption": "a red car"}')
    given = {key: captions for key, captions in given.items() if any(captions)} or given
    if len(set(given.values())) > 1:
        first, second, *_ = given
        raise ValueError(f'has a "{first}" and a different "{second}"; keep one of them')
    captions = next(iter(given.values()), ("",))
    for text in (*captions, tags):
        _check(text)
    return Said(captions, tags, frozenset(map(str, entry.keys() - {*FILE_KEYS, *CAPTION_KEYS, TAGS, FOCUS})))


def _captions(value: Any, key: str) -> tuple[str, ...]:
    """The captions in a value; those of a list are single lines."""
    if isinstance(value, str):
        return (value.strip(),)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f'has no caption: "{key}" is not a text or a list of texts')
    return tuple(one for one in (" ".join(lines(one)) for one in value) if one) or ("",)


def _tags(options: Data, value: Any) -> str:
    """Tags as one text, in their order."""
    if isinstance(value, str):
        return glue(options).join(part for part in map(str.strip, value.split("\n")) if part)
    if not isinstance(value, list | Mapping) or not all(isinstance(one, str) for one in value):
        raise ValueError(f'"{TAGS}" is not a text, a list of texts, or an object whose names are tags')
    return glue(options).join(one.strip() for one in value if one.strip())


def _check(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair in its caption ({text[error.start]!a}); remove it") from error
    if "\0" in text:
        raise ValueError("has zero bytes in its caption; remove them")


# -- files ------------------------------------------------------------------------------------------------------------


def sidecar(options: Data, file: Path) -> Said:
    """What a .json file beside a picture says. Raises ValueError, naming the file."""
    value = parse_json(read_text(file), shown(file))
    try:
        return said(options, value)
    except ValueError as error:
        raise ValueError(f"{shown(file)}: {error}") from None


def rows(file: Path) -> Iterable[Row]:
    """The entries of a metadata file. Raises ValueError, naming the file, if it cannot be read."""
    if file.suffix == ".parquet":
        return _parquet(file)
    text = read_text(file)
    return {".jsonl": _json_lines, ".json": _json, ".csv": _csv}[file.suffix](file, text)


def file_named(entry: Mapping[str, Any]) -> str:
    """The file name in an entry. Raises ValueError if it has none."""
    for key in FILE_KEYS:
        if isinstance(entry.get(key), str) and entry[key]:
            return entry[key]
    raise ValueError('has no "file_name"; write {"file_name": "a.png", "text": "the caption"}')


def places(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """The pictures by their whole paths, and, as sd-scripts writes them, without the endings; also in the composed
    Unicode normal form."""
    whole = {os.path.abspath(path): [path] for path in paths}  # noqa: PTH100  resolve() would follow links
    stems: dict[str, list[Path]] = defaultdict(list)
    for place, own in whole.items():
        stems[str(Path(place).with_suffix(""))] += own
    exact = {**stems, **whole}
    return {**{composed(Path(place)): own for place, own in exact.items()}, **exact}


def named(folder: Path, name: str, there: Mapping[str, list[Path]]) -> list[Path]:
    """The pictures that an entry of a metadata file in `folder` means, of those `there` (`places`). Raises ValueError
    when there are none."""
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        place = os.path.abspath(folder / os.path.normpath(written))  # noqa: PTH100
        if pictures := there.get(place) or there.get(composed(Path(place))):
            return pictures
    if isinstance(looked_at(folder / os.path.normpath(name)), OSError):
        raise ValueError(f"names a missing file, {shown(name)}; remove the line or restore the picture")
    raise ValueError(f"names {shown(name)}, which is not one of the pictures here; remove the line")


def _json_lines(_: Path, text: str) -> Iterable[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parsed(line)


def _parsed(line: str) -> Mapping[str, Any] | ValueError:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"is not JSON ({error.msg}, column {error.colno})")
    except RecursionError:
        return ValueError("is nested too deep")
    except ValueError as error:  # a number of 5,000 digits
        return ValueError(f"is not JSON ({error})")
    return _entry(entry)


def _entry(value: Any) -> Mapping[str, Any] | ValueError:
    if isinstance(value, dict):
        return value
    return ValueError('has no "file_name"; write {"file_name": "a.png", "text": "the caption"}')


def _json(file: Path, text: str) -> Iterable[Row]:
    """A list of entries, or an object that has them by file name."""
    value = parse_json(text, shown(file))
    if isinstance(value, list):
        return [(f"entry {number}", _entry(entry)) for number, entry in enumerate(value, start=1)]
    if not isinstance(value, dict):
        raise ValueError(f"{shown(file)}: is not a list of entries or an object with file names; "
                         'write {"a.png": {"caption": "the caption"}}')
    return [
        (shown(name), {**(entry if isinstance(entry, dict) else {"caption": entry}), FILE_KEYS[0]: name})
        for name, entry in value.items()
    ]


def _csv(file: Path, text: str) -> Iterable[Row]:
    """A table with a heading, divided by commas, semicolons or tabs."""
    heading = text.split("\n", 1)[0]
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=heading.count))
    try:
        names = [name.strip() for name in table.fieldnames or ()]
        if not set(names) & {*FILE_KEYS} or not set(names) & {*CAPTION_KEYS, TAGS}:
            columns = 'no columns "file_name" and "text"; name them in its first line'
            raise ValueError(f"{shown(file)}: has {columns}")
        table.fieldnames = names
        found = [(f"line {table.line_num}", row) for row in table]
    except csv.Error as error:
        raise ValueError(f"{shown(file)} line {table.line_num}: is not CSV ({error})") from None
    return [(where, _filled(row)) for where, row in found]


def _filled(row: Mapping[str | None, Any]) -> dict[str, Any]:
    """A row without its empty cells; those for captions are empty captions."""
    return {name: value or "" for name, value in row.items() if name and (value or name in CAPTION_KEYS)}


def _parquet(file: Path) -> Iterable[Row]:
    """A table of Apache Parquet; only the columns that are used are read."""
    place = shown(file)
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{place}: reading it needs the package pyarrow; install it (pip install pyarrow), or save "
                         "the table as metadata.csv or metadata.jsonl") from None
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            texts = [field.name for field in table.schema_arrow if "string" in str(field.type)]
            wanted = [name for name in texts if name in (*FILE_KEYS, *CAPTION_KEYS, TAGS)]
            entries = table.read(columns=wanted).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{place}: is not a Parquet file ({error}); save it again") from None
    unused = dict.fromkeys(name for name in names if name not in wanted)
    return [(f"row {number}", {**unused, **_filled(entry)}) for number, entry in enumerate(entries, start=1)]
