"""The run folder: a run's identity. The same command opens the same folder and goes on there."""

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

from modules.preset.files import differences, resolve, write
from modules.preset.schema import Preset
from modules.training.events import read_events
from modules.training.state import tidy_states

REQUESTS = ("stop", "save", "sample")
"""What can be asked of a running training, by an empty file of this name in `requests/`."""

MAY_CHANGE = (
    "description",
    "name",
    "saving",
    "samples",
    "base.offload_blocks",
    "training.gradient_checkpointing",
    "training.compile",
)
"""Options and sections that may differ when a run is resumed: they do not change what is learned."""

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
"""Names that Windows keeps for devices."""


@dataclass
class Run:
    """A run folder that this process may write to."""

    folder: Path
    name: str
    finished: Path | None = None
    """The exported file, if the run is done and the file still exists."""

    lock: FileLock | None = field(default=None, repr=False)

    def requested(self, name: str) -> bool:
        """Whether `stop`, `save` or `sample` was asked for since the last look. Looking takes the request away."""
        assert name in REQUESTS, name
        try:
            (self.folder / "requests" / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Let other processes have the folder."""
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_run(folder: Path, preset: Preset, name: str) -> Run:
    """Create `folder/name`, or open it again to resume; only the main process does this.

    Raises ValueError, before anything is changed, if the name cannot be a folder's, if the folder holds something else
    or a run of another preset, or if another process is training there.
    """
    check_name(name)
    place = folder / name
    check_same(place, preset)
    check_ours(place)
    (place / "requests").mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is training in {place}: wait for it, stop it (an empty file {place / 'requests' / 'stop'}"
            " does), or give this run another name with --name"
        ) from None
    for request in REQUESTS:  # left over from a run that was killed before it could look
        (place / "requests" / request).unlink(missing_ok=True)
    tidy_states(place)
    write(preset, place / "preset.json")
    write_environment(place / "environment.json")
    return Run(place, name, finished_file(place), lock)


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
        reason = "it begins or ends with a blank or a dot"
    elif RESERVED.fullmatch(name):
        reason = "Windows keeps this name for a device"
    elif len(name) > 100:
        reason = f"it has {len(name)} characters, more than 100"
    if reason:
        raise ValueError(f"the run's name {name!r} cannot be a folder's name: {reason}; give another one with --name")


def check_same(place: Path, preset: Preset) -> None:
    """Raise ValueError if a run of another preset is in the folder, listing what differs."""
    path = place / "preset.json"
    if not path.exists():
        return
    what_to_do = f"Train under another name (--name), or delete {place} to start anew."
    try:
        stored = resolve(str(path)).preset
    except ValueError as error:
        raise ValueError(f"{path} cannot be read by this version of Gimbal ({error}). {what_to_do}") from error
    changed = [
        f"  {option}: {_shown(old)} -> {_shown(new)}"
        for option, old, new in differences(stored, preset)
        if not may_change(option)
    ]
    if changed:
        listed = "\n".join(changed)
        raise ValueError(f"{place} holds a run of another preset; these options differ:\n{listed}\n{what_to_do}")


def may_change(option: str) -> bool:
    """Whether a run may go on with another value of the option `section.name`."""
    return option in MAY_CHANGE or option.split(".")[0] in MAY_CHANGE


def check_ours(place: Path) -> None:
    """Raise ValueError if the folder holds other things than a run."""
    if not place.exists() or (place / "preset.json").exists():
        return
    found = [path.name for path in place.iterdir() if path.name not in ("lock", "requests", "log.txt", "events.jsonl")]
    strangers = sorted(name for name in found if not name.startswith(".preset.json"))
    if strangers:
        raise ValueError(
            f"{place} is not a run folder (it has no preset.json but {strangers[0]}): give this run another name "
            "with --name, or move what is in there"
        )


def finished_file(place: Path) -> Path | None:
    """The exported file of a run that is done; None if it is not done, or if the file is gone."""
    path = place / "events.jsonl"
    if not path.is_file():
        return None
    ends = [event for event in read_events(path) if event["event"] == "finished"]
    if not ends or ends[-1]["outcome"] != "done" or not ends[-1]["path"]:
        return None
    file = place / ends[-1]["path"]
    return file if file.exists() else None


def write_environment(path: Path) -> None:
    """Add this start to `environment.json`: machine, versions and command. A resumed run has several."""
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps([*starts, environment()], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


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
            "created": process.create_time(),  # with it, another process that got the same number later is told apart
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
    """Commit of the working copy that `folder` is the root of; None if it is none, or git is missing."""
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
    return value if value == "(absent)" else json.dumps(value, ensure_ascii=False)
