"""File operations of a run, from within its forked process: counted, recorded, or the moment at which it is killed.

Names (create, rename, delete, mkdir, rmdir, truncate) come from Python's audit events, bytes from a `FileIO` of our
own under every file opened for writing, flushes from `os.fsync`. safetensors writes from Rust, where Python sees
nothing: its bytes are made elsewhere and written through the same `FileIO`. So a kill can fall before each operation
and in the middle of each write. Only what is below one folder counts; TensorBoard's files do not, since a thread of
its own writes them and no two runs would have the same numbers.
"""

import builtins
import io
import mmap
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

SKIPPED = "/tensorboard"
WRITING = os.O_WRONLY | os.O_RDWR

LAYOUT = struct.Struct("qd")
"""What is shared with the process that kills: operations begun so far, and `time.monotonic()` of the last one."""


@dataclass(frozen=True)
class Kill:
    """When and whom to kill. As text: `57` before operation 57, `57/` in the middle of that write, `57+0.012` so many
    seconds after it began, `t0.4` seconds after the start; in front `1:` or `both:` for other processes than the first.
    """

    operation: int | None = None
    torn: bool = False
    seconds: float | None = None
    """After the operation began, or without one after the start, s."""
    who: str = "0"

    def __str__(self) -> str:
        prefix = "" if self.who == "0" else f"{self.who}:"
        if self.operation is None:
            return f"{prefix}t{self.seconds:.4f}"
        later = f"+{self.seconds:.4f}" if self.seconds else ""
        return f"{prefix}{self.operation}{'/' if self.torn else ''}{later}"

    @classmethod
    def parse(cls, text: str) -> "Kill":
        """Back from `str`."""
        who, _, moment = text.rpartition(":")
        if moment.startswith("t"):
            return cls(None, False, float(moment[1:]), who or "0")
        operation, plus, seconds = moment.partition("+")
        torn = operation.endswith("/")
        return cls(int(operation.rstrip("/")), torn, float(seconds) if plus else None, who or "0")


@dataclass
class Operation:
    """One operation; paths are relative to the watched folder, with `/`."""

    kind: str
    """`open` (for writing), `write`, `truncate`, `fsync`, `rename`, `unlink`, `mkdir`, `rmdir`."""
    path: str
    other: str = ""
    """Of a rename: the new name."""
    flags: int = 0
    """Of an open: as in `os.open`."""
    offset: int = 0
    """Of a write: where. Of a truncate: the new size."""
    data: bytes = b""
    seconds: float = 0.0
    """When, after the first operation."""


class Shared:
    """Two numbers that a forked process leaves for its parent, also when it is killed."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, LAYOUT.size)

    def put(self, operations: int) -> None:
        """Say that another operation begins now."""
        self.memory[:] = LAYOUT.pack(operations, time.monotonic())

    def get(self) -> tuple[int, float]:
        """Operations begun, and when the last one was."""
        return LAYOUT.unpack(self.memory[:])


class Watch:
    """Watches this process from `start` on, which cannot be undone: for forked processes only."""

    def __init__(self, folder: Path, shared: Shared, kill: Kill | None = None, keep: bool = False):
        self.folder, self.shared, self.kill, self.keep = os.path.realpath(folder), shared, kill, keep
        self.pid, self.begun, self.number = os.getpid(), time.monotonic(), 0
        self.operations: list[Operation] = []

    def start(self) -> None:
        """Put everything in its place."""
        shared_open, shared_fsync, shared_write = io.open, os.fsync, os.write
        serialize_file = safetensors.torch.serialize_file
        watch = self

        class Written(io.FileIO):
            """A file that tells of its writes."""

            def write(self, data: Any) -> int:
                return watch.write(self.fileno(), data, super().write, "a" in self.mode)

            def truncate(self, size: int | None = None) -> int:
                size = self.tell() if size is None else size
                watch.happens("truncate", watch.name_of(self.fileno()), offset=size)
                return super().truncate(size)

        def opened(
            file: Any, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
        ) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or watch.below(file) is None:
                return shared_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw: Any = Written(file, mode.replace("t", "").replace("b", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffer: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)

        def fsync(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            watch.happens("fsync", watch.name_of(number))
            shared_fsync(handle)

        def write(number: int, data: Any) -> int:
            return watch.write(number, data, lambda content: shared_write(number, content), False)

        def serialized(tensors: Any, filename: Any, metadata: Any = None) -> None:
            beside = Path(f"{self.folder}.{self.pid}.serialized")  # outside of what is watched
            serialize_file(tensors, beside, metadata=metadata)
            content = beside.read_bytes()
            beside.unlink()
            with opened(filename, "wb", 0) as file:
                file.write(content)

        builtins.open = io.open = opened
        os.fsync, os.fdatasync, os.write = fsync, fsync, write
        safetensors.torch.serialize_file = serialized
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        """Python's audit events that are about names."""
        if event == "open":
            path, _, flags = arguments
            if flags & WRITING and flags & (os.O_CREAT | os.O_TRUNC) and not isinstance(path, int):
                self.happens("open", self.below(path), flags=flags)
        elif event == "os.rename":
            source, target, from_folder, to_folder = arguments
            self.happens("rename", self.below(source, from_folder), self.below(target, to_folder) or "")
        elif event == "os.remove":
            self.happens("unlink", self._if(True, self.below(*arguments)))
        elif event == "os.mkdir":
            self.happens("mkdir", self._if(False, self.below(arguments[0], arguments[2])))
        elif event == "os.rmdir":
            self.happens("rmdir", self.below(*arguments))
        elif event == "os.truncate":
            place, size = arguments
            self.happens("truncate", self.name_of(place) if isinstance(place, int) else self.below(place), offset=size)

    def write(self, number: int, data: Any, really: Callable[[bytes], int], at_end: bool) -> int:
        """One write to an open file, perhaps only half of it."""
        path, content = self.name_of(number), bytes(data)
        if path is not None:
            offset = os.fstat(number).st_size if at_end else os.lseek(number, 0, os.SEEK_CUR)
            if self.kill is not None and self.kill.torn and self.kill.operation == self.number:
                really(content[: len(content) // 2])
            self.happens("write", path, offset=offset, data=content)
        return really(content)

    def happens(
        self, kind: str, path: str | None, other: str = "", flags: int = 0, offset: int = 0, data: bytes = b""
    ) -> None:
        """Count an operation that is about to happen; perhaps it does not any more."""
        if path is None or os.getpid() != self.pid:
            return
        number, self.number = self.number, self.number + 1
        self.shared.put(self.number)
        if self.keep:
            seconds = time.monotonic() - self.begun
            self.operations.append(Operation(kind, path, other, flags, offset, data, seconds))
        if self.kill is not None and self.kill.operation == number:
            if self.kill.seconds:
                signal.setitimer(signal.ITIMER_REAL, self.kill.seconds)  # nobody handles SIGALRM: it ends the process
            else:
                os.kill(self.pid, signal.SIGKILL)

    def below(self, path: Any, folder: int | None = None) -> str | None:
        """The path relative to the watched folder, or None where it is elsewhere."""
        start = "" if folder in (None, -1) else os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH115  see `name_of`
        return self._inside(os.path.abspath(os.path.join(start, os.fsdecode(path))))  # noqa: PTH100, PTH118

    def name_of(self, number: int) -> str | None:
        """The same of an open file, under the name that it has now."""
        # Texts, not paths: this stands in the way of every file that the process opens.
        return self._inside(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115

    def _if(self, there: bool, path: str | None) -> str | None:
        """The path if something is there, or is not: else the operation fails and changes nothing."""
        return path if path is not None and os.path.lexists(f"{self.folder}/{path}") == there else None

    def _inside(self, path: str) -> str | None:
        inside = path.startswith(self.folder + "/") and SKIPPED not in path and not path.endswith(" (deleted)")
        return path[len(self.folder) + 1 :] if inside else None

    def save(self, path: Path) -> None:
        """Leave the record for the parent."""
        path.write_bytes(pickle.dumps(self.operations))


def record_of(path: Path) -> list[Operation]:
    """What `save` has written."""
    return pickle.loads(path.read_bytes())  # noqa: S301  written a moment ago by our own child
