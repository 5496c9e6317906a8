"""What has to be known of every picture of a set before it is trained on, which needs its pixels.

What was seen is recorded in the cache's folder: `--check`, the training after it and the next start open only pictures
that are new or that may have changed since.
"""

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TypeVar

import PIL

from modules.data import workers
from modules.data.formats import PLUG_INS
from modules.data.opening import LARGE, TooLarge, content_key, open_with_note
from modules.data.twins import signature
from modules.disk import remove_left_overs, whole
from modules.stamps import is_older, stamp_of

Progress = Callable[[int, int], None]
"""Called with the number done and the total."""

Seen = TypeVar("Seen")

FORMAT = 2
"""Part of a record. Raise it when pixels are read in another way, or `Look` has another meaning."""

WORTH = 200
"""Pictures from which on looks are recorded."""

SAVED_EVERY = 30.0
"""Seconds between two writings of a record while pictures are looked at: it may take long, and be stopped."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a picture that was decoded."""

    size: tuple[int, int]
    """Width and height after the EXIF rotation."""
    key: str
    """sha256 of its pixels, hex."""
    signature: bytes
    """See `twins`."""
    note: str
    """What is to be noted of pictures like it; mostly nothing."""


def look(path: Path, most: int = LARGE) -> Look | TooLarge:
    """Decode a picture, unless it has more than `most` pixels. Raises ValueError as `open_picture` does."""
    opened = open_with_note(path, most)
    if isinstance(opened, TooLarge):
        return opened
    picture, note = opened
    return Look(picture.size, content_key(picture), signature(picture), note)


def look_alone(path: Path) -> Look | TooLarge:
    """The same for a picture of any size that is allowed. For one at a time: it may take much memory."""
    return look(path, 0)


def looks(
    paths: Sequence[Path], record: Path | None, progress: Progress | None = None
) -> dict[Path, Look | ValueError]:
    """Of each path what is known of it, or why nothing is. `record`: the file of what was seen before."""
    known = Record(record) if record is not None and len(paths) >= WORTH else None
    stamps = {path: stamp for path in paths if (stamp := _stamp(path))} if known else {}
    found: dict[Path, Look | ValueError] = {}
    for path, stamp in stamps.items():
        if known and (seen := known.get(path, stamp)):
            found[path] = seen
    new = [path for path in paths if path not in found]
    if progress is not None and found:
        progress(len(found), len(paths))
    try:
        for path, seen in _small_first(new):
            found[path] = seen
            if progress is not None:
                progress(len(found), len(paths))
            if known and isinstance(seen, Look) and path in stamps:
                known.add(path, stamps[path], seen)
    finally:
        if known:
            known.keep(paths)
    return found


def _small_first(paths: Sequence[Path]) -> Iterator[tuple[Path, Look | ValueError]]:
    """What is seen of each path; large pictures come last, one at a time."""
    large: list[Path] = []
    for path, seen in zip(paths, workers.each(look, paths), strict=True):
        if isinstance(seen, TooLarge):
            large.append(path)
        else:
            yield path, seen
    for path, seen in zip(large, workers.each(look_alone, large, count=1), strict=True):
        assert not isinstance(seen, TooLarge)
        yield path, seen


def _stamp(path: Path) -> list[int]:
    """What changes when the file changes; nothing for files that are not there."""
    try:
        return stamp_of(path)
    except (OSError, ValueError):
        return []


# -- the record -------------------------------------------------------------------------------------------------------


def record_of(cache_folder: Path, roots: Iterable[Path]) -> Path:
    """The record of the pictures below these folders."""
    folders = sorted(str(root.resolve()) for root in roots)
    name = hashlib.sha256(json.dumps(folders).encode()).hexdigest()[:24]
    return cache_folder / "pictures" / f"{name}.jsonl"


def made_by() -> str:
    """What reads pictures here: another version may give other pixels."""
    packages = {plug_in.package: "" for plug_in in PLUG_INS.values()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    return json.dumps([FORMAT, PIL.__version__, packages])


class Record:
    """Looks of earlier times: a line for each picture, its path and what was seen, then the checksum of all lines."""

    def __init__(self, path: Path):
        self.path = path
        self.began = self.saved = time.time_ns()
        self.lines: dict[str, str] = {}
        """By the picture's path, as JSON; what was seen as JSON too, which takes less memory than its values."""
        self.is_new = False
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # it only saves time
            self.lines = _read(path)

    def get(self, path: Path, stamp: list[int]) -> Look | None:
        """What was seen of a picture, unless it may have changed since."""
        line = self.lines.get(_name(path))
        if line is None:
            return None
        then, began, size, key, tiles, note = json.loads(line)
        if then != stamp or not is_older(stamp, began):
            return None
        return Look((size[0], size[1]), key, base64.b64decode(tiles), note)

    def add(self, path: Path, stamp: list[int], seen: Look) -> None:
        """What is seen now. The stamp is of before it was opened."""
        tiles = base64.b64encode(seen.signature).decode()
        self.lines[_name(path)] = json.dumps([stamp, self.began, seen.size, seen.key, tiles, seen.note])
        self.is_new = True
        if time.time_ns() - self.saved > SAVED_EVERY * 1e9:
            self._write()

    def keep(self, paths: Iterable[Path]) -> None:
        """Write what is known of these pictures, if that has changed. Of two processes the last one wins."""
        wanted = {_name(path) for path in paths}
        kept = {name: line for name, line in self.lines.items() if name in wanted}
        self.is_new |= len(kept) < len(self.lines)
        self.lines = kept
        if self.is_new:
            self._write()

    def _write(self) -> None:
        total = hashlib.sha256()
        with contextlib.suppress(OSError):  # it only saves time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_left_overs(self.path.parent, f"{self.path.name}.*")
            with whole(self.path, flush=False) as partial, partial.open("wb") as file:
                for line in chain([made_by()], map("\t".join, self.lines.items())):
                    content = line.encode() + b"\n"
                    total.update(content)
                    file.write(content)
                file.write(total.hexdigest().encode())
        self.saved, self.is_new = time.time_ns(), False


def _name(path: Path) -> str:
    return json.dumps(str(path.absolute()))


def _read(path: Path) -> dict[str, str]:
    """The lines of a record. Raises one of several errors if it is damaged or has another format."""
    lines: dict[str, str] = {}
    total = hashlib.sha256()
    with path.open("rb") as file:
        first = file.readline()
        if first != made_by().encode() + b"\n":
            raise ValueError("made by other versions")
        total.update(first)
        for content in file:
            if not content.endswith(b"\n"):
                if content.decode() != total.hexdigest():
                    raise ValueError("checksum mismatch")
                return lines
            total.update(content)
            name, _, line = content.decode().rstrip("\n").partition("\t")
            lines[name] = line
    raise ValueError("no checksum")
