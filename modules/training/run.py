"""The run folder: a run's identity. The same command opens the same folder and resumes there."""

import errno
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modules.disk import PARTIAL, check_writable, make_folder, write_whole, writer_lives
from modules.preset.files import differences, read, write
from modules.preset.schema import Preset
from modules.printable import short
from modules.training import ended, state

REQUESTS = ("stop", "save", "sample")
"""What can be asked of a running training, by an empty file of this name in `requests/`."""

MAY_CHANGE = (
    "description",
    "name",
    "saving",
    "samples",
    "base.offload_blocks",
    "training.steps",
    "training.epochs",
    "training.gradient_checkpointing",
    "training.compile",
)
"""Options and sections that may differ when a run is resumed: they do not change what is learned in a step. What
follows from the length of the training is adapted when that differs (see `resuming`)."""

FILES = ("preset.json", "environment.json", "events.jsonl", "log.txt", "layers.tsv", "pictures.tsv", "lock",
         "adapter.safetensors")
FOLDERS = (state.FOLDER, "requests")
"""Names in a run folder that a training needs."""
BESIDE = ("samples", "tensorboard", state.BEST)
"""Folders of by-products."""

PACKAGES = (
    "torch",
    "accelerate",
    "bitsandbytes",
    "diffusers",
    "numpy",
    "pillow",
    "prodigyopt",
    "pydantic",
    "safetensors",
    "schedulefree",
    "transformers",
)

RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows reserves for devices."""


@dataclass
class Run:
    """A run folder that this process may write to."""

    folder: Path
    name: str
    finished: Path | None = None
    """The exported file, if the run is finished and its files are intact."""
    again: Path | None = None
    """The adapters of a finished run, if its exported file is damaged and has to be recreated from them."""

    lock: FileLock | None = field(default=None, repr=False)

    newest: Path | None = None
    """The last intact state when the folder was opened."""
    notes: list[str] = field(default_factory=list)
    """What was damaged in the folder and is recreated, in sentences."""

    @property
    def is_ours(self) -> bool:
        """Whether this process writes to the folder; of several, the main one does."""
        return self.lock is not None

    def requested(self, name: str) -> bool:
        """Whether `stop`, `save` or `sample` was requested since the last call. Removes the request."""
        assert name in REQUESTS, name
        path = self.folder / "requests" / name
        asked = os.path.lexists(path)
        if asked:
            state.remove(path)  # a folder counts, too
        return asked

    def check_there(self) -> None:
        """Raise FileNotFoundError where the folder was deleted since it was opened. Writing would create a new folder
        without the rest of the run."""
        try:
            (self.folder / "preset.json").stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            said = "was deleted or moved during the training, so the training has ended"
            raise FileNotFoundError(errno.ENOENT, said, str(self.folder)) from error
        except OSError:  # a disk that does not answer now: the next write reports it
            return

    def close(self) -> None:
        """Release the folder for other processes."""
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_run(folder: Path, preset: Preset, name: str, steps: int | None = None) -> Run:
    """Create `folder/name`, or open it again to resume; only the main process does this. `steps` are those of the whole
    training; required where epochs are given.

    Raises ValueError, before anything of the run is changed, if the name cannot be a folder's, if the folder holds
    something else or a run of another preset, if the run has already done more steps or has states and none of them
    is intact, or if another process is training there; OSError if it cannot be written.
    """
    check_name(name)
    place = folder / name
    check_ours(place)
    check_kinds(place, name)
    make_folder(place / "requests")
    check_places(place)
    lock = FileLock(place / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is training in {place}: wait for it, stop it (an empty file {place / 'requests' / 'stop'}"
            " does), or give this run another name with --name"
        ) from None
    try:
        return _opened(Run(place, name, lock=lock), preset, steps)
    except BaseException:
        lock.release()
        raise


def _opened(run: Run, preset: Preset, steps: int | None) -> Run:
    """The run, checked and ready to be written to. The lock is held: no other process changes the folder."""
    place = run.folder
    state.tidy_states(place)
    state.tidy_states(place / state.BEST)
    remove_leftovers(place, run.name)
    newest, damaged = state.newest(place)
    run.newest = newest
    run.notes = check_same(place, preset, newest)
    found = ended.look(place, preset, newest)
    run.finished, run.again, run.notes = found.file, found.adapter, [*run.notes, *found.notes]
    if damaged and newest is None and found.file is found.adapter is None:
        raise ValueError(state.none_left(place, damaged))
    ended.check_length(place, preset, newest, steps)
    for request in REQUESTS:  # left over from a run that was killed before reading them
        state.remove(place / "requests" / request)
    write(preset, place / "preset.json")
    run.notes += write_environment(place / "environment.json")
    return run


def join_run(folder: Path, name: str) -> Run:
    """The same folder for the processes beside the main one, which only read in it."""
    return Run(folder / name, name)


def check_name(name: str) -> None:
    """Raise ValueError unless `name` can be a folder on every system."""
    reason = ""
    bad = sorted(set(re.findall(r'[<>:"/\\|?*\x00-\x1f]', name)))
    if not name:
        reason = "it is empty"
    elif bad:
        reason = f"it contains {' '.join(repr(character) for character in bad)}"
    elif name != name.strip(" ") or name.startswith(".") or name.endswith("."):
        reason = "it begins or ends with a space or a dot"
    elif RESERVED.fullmatch(name):
        reason = "Windows reserves this name for a device"
    elif len(name) > 100:
        reason = f"it has {len(name)} characters, more than 100"
    if reason:
        raise ValueError(f"the run name {name!r} is not a valid folder name: {reason}; give another one with --name")


def check_same(place: Path, preset: Preset, newest: Path | None = None) -> list[str]:
    """Raise ValueError if a run of another preset is in the folder, listing what differs.

    A preset.json that is damaged, or was changed, is replaced by the preset in `newest`, the run's last intact state.
    Returns sentences about one that has to be rewritten.
    """
    path = place / "preset.json"
    stored, reason = ended.stored_preset(path)
    if stored is not None and not changes(stored, preset):
        return []
    inside = ended.stored_preset(newest / "preset.json")[0] if newest is not None else None
    if inside is not None and not changes(inside, preset):
        said = f"is damaged ({reason})" if reason else "was changed" if stored else "is missing"
        return [f"{path} {said}; restoring it from {newest}"]
    stored = stored or inside
    if stored is not None:
        listed = "\n".join(f"  {name}: {_shown(old)} -> {_shown(new)}" for name, old, new in changes(stored, preset))
        raise ValueError(
            f"{place} holds a run of another preset; these options differ:\n{listed}\n"
            f"Train under another name (--name), or delete {place} to start over."
        )
    if newest is None and not (place / "adapter.safetensors").exists() and not _is_preset(path):
        return [f"{path} is damaged ({reason}); rewriting it"] if reason else []
    why = reason or "it is missing"
    raise ValueError(
        f"{path} cannot be read by this version of Gimbal ({why}), so the run there cannot be compared with "
        "this preset. Restore a copy of the file, or train under another name (--name); nothing there was changed"
    )


def _is_preset(path: Path) -> bool:
    """Whether there is a preset in the file, also one with options that this version does not have."""
    try:
        return bool(read(path))
    except (ValueError, OSError, RecursionError):
        return False


def changes(stored: Preset, preset: Preset) -> list[tuple[str, Any, Any]]:
    """The options that differ in `preset` although they must not: name and both values."""
    return [change for change in differences(stored, preset) if not may_change(change[0])]


def may_change(option: str) -> bool:
    """Whether a run may resume with another value of the option `section.name`."""
    return option in MAY_CHANGE or option.split(".")[0] in MAY_CHANGE


def check_ours(place: Path) -> None:
    """Raise ValueError if the folder holds other things than a run."""
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file, but a run needs a folder: give this run another name with --name, or "
                         "move the file")
    if not place.exists() or (place / "preset.json").exists() or state.states(place):
        return
    found = [path.name for path in place.iterdir() if path.name not in ("lock", "requests", "log.txt", "events.jsonl")]
    strangers = sorted(name for name in found if not name.startswith(".preset.json") and not name.endswith(PARTIAL))
    if strangers:
        raise ValueError(
            f"{place} is not a run folder (it has no preset.json but {strangers[0]}): give this run another name "
            "with --name, or move its contents"
        )


def check_kinds(place: Path, name: str) -> None:
    """Raise ValueError if there is a folder, a pipe or a device where the run has a file, or a file in place of a
    folder."""
    for path in (place / file for file in (*FILES, f"{name}.safetensors", f"{name}.errors.tsv")):
        if os.path.lexists(path) and not path.is_file():
            what = "a folder" if path.is_dir() else "not a regular file"
            raise ValueError(f"{path} is {what}, but a run needs a file of this name: move it away")
    for path in (place / folder for folder in FOLDERS):
        if os.path.lexists(path) and not path.is_dir():
            what = "a broken link" if path.is_symlink() else "a file"
            raise ValueError(f"{path} is {what}, but a run needs a folder of this name: move it away")


def check_places(place: Path) -> None:
    """Raise OSError unless the run can write to its files: before the first step, not at the first save."""
    for folder in (place, *(place / name for name in (*FOLDERS, *BESIDE))):
        if folder.is_dir():
            check_writable(folder)
    for path in (place / name for name in ("events.jsonl", "lock")):  # the others are replaced
        if path.exists():
            with path.open("ab"):
                pass


def remove_leftovers(place: Path, name: str) -> None:
    """Delete partial files of killed processes. The run's own files stay, whatever its name is, and so do files that
    another process on this machine is writing (scripts/export.py)."""
    for path in place.rglob(f"*{PARTIAL}*"):
        if path.name.removeprefix(name).endswith((PARTIAL, f"{PARTIAL}.safetensors")) and not writer_lives(path):
            state.remove(path)


def write_environment(path: Path) -> list[str]:
    """Add this start to `environment.json`: machine, versions and command. A resumed run has several. Sentences about a
    file that is damaged: it is renamed, and a new one created."""
    starts, notes = [], []
    try:
        starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise ValueError("it is not a list of starts")
    except (ValueError, RecursionError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        starts, notes = [], [f"{path} is damaged ({reason}); renamed it to {aside.name} and created a new one"]
    write_whole(path, json.dumps([*starts, environment()], indent=2, ensure_ascii=False) + "\n")
    return notes


def environment() -> dict[str, Any]:
    """What a training runs on, and which process it is."""
    import psutil
    import torch

    process = psutil.Process()
    cuda = torch.cuda.is_available()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "process": {
            "pid": process.pid,
            "created": process.create_time(),  # tells another process with the same id apart
            "host": platform.node(),
            "folder": str(Path.cwd()),
        },
        "gimbal": git_commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())] if cuda else [],
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def git_commit(folder: Path) -> str | None:
    """Commit of the git repository in `folder`; None if it is not one, or git is missing."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _shown(value: Any) -> str:
    return value if value == "(absent)" else short(json.dumps(value, ensure_ascii=False))
