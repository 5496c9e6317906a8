"""Reading files that grow: a run's events and its log."""

import os
from pathlib import Path
from typing import Any

from PySide6.QtCore import QElapsedTimer, QObject, QTimer, Signal

from ui.core import reading, workers
from ui.core.runs.history import History

SLICE = 1 << 19
"""Bytes of events that are read and applied in one go: a few milliseconds of the window's time."""

EVERY = 500
"""Milliseconds between looks at the file. Asking for changes is not reliable on network folders."""

SHOW_EVERY = 300
"""Milliseconds between signals while a long file is loaded."""

LONGEST = 1 << 24
"""Bytes of a line; a longer one is none, such as a hole that a power cut has left."""

HEAD = 64
"""Bytes at a file's beginning by which it is known again; they hold the first event's time."""


class Growing:
    """The complete lines of a file that grows, from where the last read ended."""

    def __init__(self, path: Path, last_bytes: int | None = None):
        """`last_bytes`: of a longer file, only so many at its end are read at first."""
        self.path, self.last_bytes = path, last_bytes
        self.restarted = False
        """The last read found another or a shorter file, and began anew."""
        self.more = False
        """The last read stopped at its limit."""
        self.skipped = 0
        """Bytes before what was read first."""
        self._place, self._head = 0, b""

    def read_bytes(self, limit_bytes: int = -1) -> bytes:
        """Whole lines of about this many bytes, or all; a line without an end if it is longer than any."""
        self.restarted, self.more = False, False
        try:
            file = reading.opened(self.path)
        except FileNotFoundError:
            self.restarted, self._place, self._head = self._place > 0, 0, b""
            return b""
        with file:
            head, size = file.read(HEAD), os.fstat(file.fileno()).st_size
            if size < self._place or not head.startswith(self._head):
                self.restarted, self._place = True, 0
            if self._place == 0 and self.last_bytes is not None and size > self.last_bytes:
                file.seek(size - self.last_bytes)
                file.readline()  # the rest of a line
                self.skipped = self._place = file.tell()
            file.seek(self._place)
            data = file.read(limit_bytes)
            if data and not data.endswith(b"\n"):
                data += file.readline(LONGEST)
            if len(data) < LONGEST or self.last_bytes is not None:
                data = data[: data.rfind(b"\n") + 1]
            self._place += len(data)
            self._head = head[: self._place]
            self.more = bool(data) and self._place < size
            return data


class Tail(Growing):
    """The events in such a file."""

    broken = 0
    """Lines of the last read that are none."""

    def read(self, limit_bytes: int = -1) -> list[dict[str, Any]]:
        """The next events; at least one line if there is one, even beyond the limit. Raises OSError.

        A file that does not exist has no events.
        """
        data = self.read_bytes(limit_bytes)
        if data and not data.endswith(b"\n"):
            self.broken = 1
            return []
        lines = [line for line in data.decode("utf-8", "replace").split("\n") if line.strip()]
        found = read_lines(lines)
        events = [event for event in found if event is not None]
        self.broken = len(found) - len(events)
        return events


class Follower(QObject):
    """Keeps the `history` of a run folder up to date: read in a worker, applied in small slices on this thread.

    Has to be closed before it is deleted.
    """

    grew = Signal()
    """The history has more, or was begun anew; while a long file is loaded, a few times a second at most."""
    loaded = Signal()
    """The file's end was reached for the first time (also when there is no file yet)."""
    problem = Signal(str)
    """The file cannot be read: a sentence. It is tried again."""

    def __init__(self, folder: Path, parent: QObject | None = None):
        super().__init__(parent)
        self.folder = folder
        self.history = History()
        """Another object after the file was begun anew."""
        self.is_loaded = False
        self._tail = Tail(folder / "events.jsonl")
        self._unshown, self._said = False, ""
        self._shown = QElapsedTimer()
        self._shown.start()
        self._timer = QTimer(self, singleShot=True, interval=EVERY)
        self._timer.timeout.connect(self.on_time)
        self.on_time()

    def close(self) -> None:
        """Follow no longer; no signal comes afterwards."""
        self._timer.stop()
        self._task.cancel()

    def on_time(self) -> None:
        """Read on. The next slice is asked for when this one is applied, so the window is never flooded."""
        self._task = workers.run(self._tail.read, SLICE, done=self.on_read, failed=self.on_failed)

    def on_read(self, events: list[dict[str, Any]]) -> None:
        """Take in a slice."""
        self._said = ""
        if self._tail.restarted:
            self.history = History()
        self.history.apply(events)
        self.history.broken_lines += self._tail.broken
        self._unshown = self._unshown or bool(events) or self._tail.restarted or self._tail.broken > 0
        more = self._tail.more
        if more:
            self.on_time()  # from here on, the tail is the worker's
        else:
            self._timer.start()
        if self._unshown and (not more or self._shown.hasExpired(SHOW_EVERY)):
            self._unshown = False
            self._shown.start()
            self.grew.emit()
        if not more and not self.is_loaded:
            self.is_loaded = True
            self.loaded.emit()

    def on_failed(self, reason: str) -> None:
        """Say once why nothing more comes, and try again."""
        self._timer.start()
        if reason != self._said:
            self._said = reason
            self.problem.emit(f"The events of {self.folder} cannot be read: {reason}.")


class LogTail(Growing):
    """The text of such a file: its last part first, then what is new."""

    def __init__(self, path: Path, last_bytes: int = 256 * 1024):
        super().__init__(path, last_bytes)

    def read(self) -> str:
        """Whole lines that are new since the last call; "" if there is no file. Blocking. Raises OSError."""
        return self.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")


def read_lines(lines: list[str]) -> list[dict[str, Any] | None]:
    """The event on each line; None where there is none."""
    try:  # all at once, which takes two thirds of the time
        events = reading.parse(f"[{','.join(lines)}]")
    except ValueError:
        events = []
    if len(events) != len(lines):  # a broken line, or one that holds several values
        return [None] if len(lines) == 1 else [event for line in lines for event in read_lines([line])]
    return [event if isinstance(event, dict) else None for event in events]


def last_events(path: Path, last_bytes: int) -> tuple[list[dict[str, Any]], bool]:
    """The events on the complete lines of a file's last part, and whether that is the whole file. Raises OSError."""
    tail = Tail(path, last_bytes)
    return tail.read(), tail.skipped == 0
