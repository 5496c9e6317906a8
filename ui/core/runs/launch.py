"""Starting the trainer as a process of its own, which outlives the window, and talking to it."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REQUESTS = ("stop", "save", "sample")
"""What a running training understands (docs/events.md)."""

SAME_TIME = 10
"""Seconds by which a process's time of creation may differ: psutil derives it from a clock that may be set."""

HOST = platform.node()
"""This machine, as the trainer calls it too."""

_children: dict["Process", subprocess.Popen] = {}
"""What this window has started. They have to be waited for, or they stay as zombies when they end."""


@dataclass(frozen=True)
class Process:
    """Enough to recognise a process again: number, time of its creation (psutil's), machine."""

    pid: int
    created: float
    host: str


def start(words: Sequence[str], cwd: Path, output: Path, devices: Sequence[str] = ()) -> Process:
    """Run a command detached from this window, on these devices (ids as in devices.py). Raises OSError.

    Whatever it prints goes into the file `output`, also after the window has gone.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    detached = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
    with output.open("wb") as file:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(devices),
            start_new_session=True,
            creationflags=detached,
        )
    try:
        created = psutil.Process(child.pid).create_time()
    except psutil.Error:  # it has ended already
        created = time.time()
    process = Process(child.pid, created, HOST)
    _children[process] = child
    return process


def environment(devices: Sequence[str]) -> dict[str, str]:
    """This process's environment, with the devices that the trainer may see."""
    result = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    result.setdefault("TQDM_MININTERVAL", "30")  # its bars go into a file: ten lines a second would fill the disk
    named = [device for device in devices if device]
    if named:
        result["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order; CUDA's own begins with the fastest
        result["CUDA_VISIBLE_DEVICES"] = ",".join(named)
    return result


def alive(process: Process) -> bool:
    """Whether the process still runs on this machine. One of ours that has ended is waited for."""
    if process.host != HOST or exit_code(process) is not None:
        return False
    try:
        found = psutil.Process(process.pid)
        return abs(found.create_time() - process.created) < SAME_TIME and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):  # the last two of a number that no process has
        return False


def exit_code(process: Process) -> int | None:
    """The exit code of an ended process that this window started; None if it has not ended, or is not ours."""
    child = _children.get(process)
    return child.poll() if child is not None else None


def request(folder: Path, what: str) -> None:
    """Ask the training in a run folder for "stop", "save" or "sample". Raises ValueError with a sentence."""
    assert what in REQUESTS, what
    path = folder / "requests" / what
    try:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    except OSError as error:
        why = f"{path} cannot be written ({error.strerror})"
        raise ValueError(f"The training cannot be asked to {what}: {why}.") from error


def requested(folder: Path, what: str) -> bool:
    """Whether a request has not been seen by the training yet."""
    assert what in REQUESTS, what
    return (folder / "requests" / what).exists()


def kill(process: Process) -> None:
    """End a process and its children at once; nothing is saved. Raises ValueError with a sentence."""
    if not alive(process):
        return
    try:
        first = psutil.Process(process.pid)
        for one in [*first.children(recursive=True), first]:
            one.kill()
    except psutil.NoSuchProcess:
        pass  # it was faster
    except psutil.AccessDenied as error:
        raise ValueError(f"Process {process.pid} cannot be ended: permission denied.") from error
