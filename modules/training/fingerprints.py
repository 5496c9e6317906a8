"""What a run was made from, as hashes of the contents: base, training adapter, first values, pictures, captions, and
program versions.

States store them, so that a resumed run can report what has changed. Hashes of large files are kept in a record and
computed again where a file may have changed: where its size, times or inode differ, and where it is as young as its
hash (the clocks of file systems are coarse, so a later change may show the same time).
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from modules import families
from modules.data.index import Index
from modules.disk import remove_left_overs, write_whole
from modules.files.facts import versions
from modules.preset.schema import Base, Preset
from modules.stamps import MARGIN as MARGIN
from modules.stamps import is_older, stamp_of
from modules.training.state import checksum

RECORD = "fingerprints.json"
"""Name of the record, in the cache's folder, or in the run's where nothing is cached; and of the fingerprints in a
state."""

LISTED = 10
"""Names in a sentence; more are counted."""

Made = dict[str, Any]
"""Fingerprints, as JSON: "base", "training_adapter", "start_from" and "pool" (sha256 by name of the file), "pictures"
and "validation" (`[pixels, caption, repeats]` by name, the first two hashes; with a mask its hash, too, and
with references a list of theirs), "skipped"
(names of pictures that cannot be read), "versions" (by package). Earlier states have no "training_adapter" and no
"skipped"."""


@dataclass
class Record:
    """Hashes of files that were computed before, on disk."""

    path: Path
    known: dict[str, dict[str, Any]] = field(init=False)
    made: set[Path] = field(default_factory=set)
    """Files that were read by this very record."""

    def __post_init__(self) -> None:
        self.known = {}
        remove_left_overs(self.path.parent, f"{self.path.name}.*")
        try:
            read = json.loads(self.path.read_text(encoding="utf-8"))
            if read["sha256"] == _sum(read["files"]):
                self.known = read["files"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return  # it only saves time

    def sha256(self, path: Path, anew: bool = False) -> str:
        """Of a file's contents, hex. `anew`: computed again in spite of the record, but once only. Raises OSError."""
        path, began = path.resolve(), time.time_ns()
        stamp = stamp_of(path)
        entry = self.known.get(str(path), {})
        trusted = entry.get("stamp") == stamp and is_older(stamp, entry.get("began"))
        if path in self.made or trusted and not anew:
            return entry["sha256"]
        found = checksum(path)
        if stamp_of(path) != stamp:
            raise OSError(f"{path} changed while it was being read; start again when the file is complete")
        self.known[str(path)] = {"stamp": stamp, "began": began, "sha256": found}
        self.made.add(path)
        return found

    def keep(self) -> None:
        """Write the record, if there is something new. Of two processes the last one wins; both are right."""
        if not self.made:
            return
        content = json.dumps({"files": self.known, "sha256": _sum(self.known)}, indent=1)
        with contextlib.suppress(OSError):  # it only saves time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, content)


def _sum(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def make(preset: Preset, training: Index, validation: Index | None, run_folder: Path, anew: bool = False) -> Made:
    """All fingerprints of a run. `anew`: as in `Record.sha256`. Raises OSError for files that cannot be read."""
    record = Record((Path(preset.data.cache_folder) if preset.data.cache else run_folder) / RECORD)
    started = Path(preset.adapter.start_from) if preset.adapter.start_from else None
    beside = [Path(preset.base.training_adapter)] if preset.base.training_adapter else []
    pool = sorted(Path(preset.adapter.pool).glob("*.safetensors")) if preset.adapter.pool else []
    base = families.load_class(preset.family).files_of(preset.base)
    made = {
        "base": {name: record.sha256(path, anew) for name, path in base.items()},
        "training_adapter": {path.name: record.sha256(path, anew) for path in beside},
        "start_from": {started.name: record.sha256(started, anew)} if started and started.is_file() else {},
        "pool": {path.name: record.sha256(path, anew) for path in pool},
        "pictures": _pictures(training),
        "validation": _pictures(validation) if validation else {},
        "skipped": [name for index in (training, validation) if index for name, _ in index.skipped],
        "versions": versions(),
    }
    record.keep()
    return made


def _pictures(index: Index) -> dict[str, list]:
    def short(text: str) -> str:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    made: dict[str, list] = {}
    for picture in index.pictures:
        name, number = picture.name, 1
        while name in made:  # the same file again, at another resolution or with another caption
            number += 1
            name = f"{picture.name} #{number}"
        masked = [picture.mask.key[:16]] if picture.mask else []
        shown = [[one.key[:16] for one in picture.references]] if picture.references else []
        made[name] = [picture.key[:16], short(picture.caption), picture.repeats, *masked, *shown]
    return made


def in_background(work: Callable[[], Made]) -> Future[Made]:
    """Start `work` in a daemon thread."""
    done: Future[Made] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001  raised by the future's `result`
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done


def is_made(made: Made) -> Future[Made]:
    """The same as `in_background`, of fingerprints that are known."""
    done: Future[Made] = Future()
    done.set_result(made)
    return done


def is_here(base: Base) -> bool:
    """Whether the base is a local file or folder, and nothing of it comes from the hub."""
    return Path(base.path).is_dir() or Path(base.path).is_file() and bool(base.config)


# -- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changes:
    """What has changed since a state was written, in sentences."""

    decisive: list[str]
    """The model is another one."""
    others: list[str]


def compare(before: Made, now: Made, preset: Preset) -> Changes:
    """What has changed from `before` to `now`."""
    base = differing(before["base"], now["base"])
    beside = differing(before.get("training_adapter", {}), now["training_adapter"])
    started = differing(before["start_from"], now["start_from"])
    decisive, others = [], []
    if base:
        decisive.append(f"base.path {preset.base.path}: {base}")
    if beside:
        decisive.append(f"base.training_adapter {preset.base.training_adapter}: {beside}")
    if started and now["start_from"]:  # a resumed run does not need the file, so it may be missing
        decisive.append(f"adapter.start_from {preset.adapter.start_from}: {started}")
    if pool := differing(before["pool"], now["pool"]):
        others.append(f"adapter.folder {preset.adapter.pool}: {pool}; the run resumes from its own state")
    skipped = before.get("skipped", []), now.get("skipped", [])
    others += _pictures_changed("pictures", before["pictures"], now["pictures"], *skipped)
    others += _pictures_changed("validation pictures", before["validation"], now["validation"], *skipped)
    if changed := versions_changed(before["versions"], now["versions"]):
        others.append(f"package versions have changed since the run's last state: {changed}")
    return Changes(decisive, others)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What was changed, added and removed, by name; empty: nothing."""
    changed = [name for name in before if name in now and before[name] != now[name]]
    parts = {
        "changed": changed,
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
    }
    return "; ".join(f"{what}: {listed(names)}" for what, names in parts.items() if names)


def _pictures_changed(
    what: str,
    before: Mapping[str, list],
    now: Mapping[str, list],
    skipped: Sequence[str] = (),
    skipped_now: Sequence[str] = (),
) -> list[str]:
    both = [name for name in before if name in now]
    added, removed = [name for name in now if name not in before], [name for name in before if name not in now]
    was_skipped, is_skipped = set(skipped), set(skipped_now)
    parts = {
        "added": [name for name in added if name not in was_skipped],
        "removed": [name for name in removed if name not in is_skipped],
        "skipped, since they cannot be read any more": [name for name in removed if name in is_skipped],
        "that were skipped and can be read now": [name for name in added if name in was_skipped],
        "with changed pixels": [name for name in both if before[name][0] != now[name][0]],
        "with a changed caption": [name for name in both if before[name][1] != now[name][1]],
        "with changed repeats": [name for name in both if before[name][2] != now[name][2]],
        "with a changed mask": [name for name in both if _masks(before[name]) != _masks(now[name])],
        "with changed references": [name for name in both if _references(before[name]) != _references(now[name])],
    }
    found = "; ".join(f"{len(names)} {how} ({listed(names)})" for how, names in parts.items() if names)
    return [f"{what} have changed since the run's last state: {found}"] if found else []


def _masks(picture: list) -> list:
    return [one for one in picture[3:] if isinstance(one, str)]


def _references(picture: list) -> list:
    return [one for one in picture[3:] if isinstance(one, list)]


def versions_changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Packages with both versions."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}" for name in names)


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more


def as_text(made: Made) -> str:
    """Fingerprints as a state stores them."""
    return json.dumps(made, indent=1)


def of_text(texts: Mapping[str, str]) -> Made | None:
    """The fingerprints in the texts of a state; None in states of earlier versions, which have none."""
    return json.loads(texts[RECORD]) if RECORD in texts else None
