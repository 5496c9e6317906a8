"""What jobs can run on: the machine's GPUs as nvidia-smi names them, or the machine itself."""

import os
import subprocess
import sys
from dataclasses import dataclass

from PySide6.QtCore import QObject, Signal

from ui.core import workers

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader,nounits")
PATIENCE = 20
"""Seconds that nvidia-smi may take; it is slow while a driver wakes up."""


@dataclass(frozen=True)
class Device:
    """`id` is the GPU's number as text; "" is the machine itself, when there is no NVIDIA GPU."""

    id: str
    name: str

    @property
    def label(self) -> str:
        """For people: "GPU 0: NVIDIA H100 80GB HBM3", "this machine"."""
        return f"GPU {self.id}: {self.name}" if self.id else self.name


MACHINE = Device("", "this machine")


class Devices(QObject):
    """The devices of this machine, found by a worker."""

    changed = Signal()

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self.all: tuple[Device, ...] = ()
        """Empty until nvidia-smi has answered, never afterwards."""

    def refresh(self) -> None:
        """Look, in a worker."""
        workers.run(found, done=self.on_found, failed=self.on_failed)

    def choices(self) -> list[tuple[str, str]]:
        """(value for Queue.add's device, label): "any", each GPU, "all"; only "any" where there is one device."""
        if len(self.all) < 2:
            return [("any", self.all[0].label if self.all else MACHINE.label)]
        each = [(device.id, device.label) for device in self.all]
        return [("any", "the first free GPU"), *each, ("all", f"all {len(self.all)} GPUs together")]

    def on_found(self, devices: tuple[Device, ...]) -> None:
        """Keep the answer."""
        if devices != self.all:
            self.all = devices
            self.changed.emit()

    def on_failed(self, reason: str) -> None:
        """nvidia-smi is there but does not work: jobs run on whatever the trainer finds."""
        self.on_found((Device("", f"this machine (nvidia-smi does not work: {reason})"),))


def found() -> tuple[Device, ...]:
    """The devices; blocking. Raises ValueError if nvidia-smi is there but gives no answer."""
    flags = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=PATIENCE, check=False, creationflags=flags)
    except FileNotFoundError:
        return (MACHINE,)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it gave no answer in {PATIENCE} s") from None
    if done.returncode != 0:
        raise ValueError((done.stdout + done.stderr).strip().split("\n")[0] or f"exit code {done.returncode}")
    return visible(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) or (MACHINE,)


def visible(table: str, allowed: str | None) -> tuple[Device, ...]:
    """The GPUs of nvidia-smi's table that CUDA_VISIBLE_DEVICES allows (numbers or UUIDs; None: all)."""
    names = None if allowed is None else [name.strip() for name in allowed.split(",") if name.strip()]
    devices = []
    for line in table.strip().splitlines():
        number, uuid, name = (part.strip() for part in line.split(",", 2))
        if names is None or number in names or any(uuid.startswith(one) for one in names):
            devices.append(Device(number, name))
    return tuple(devices)
