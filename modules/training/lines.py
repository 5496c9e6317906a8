"""A file that lines are appended to, also when the disk is full for a while."""

import os
from contextlib import suppress
from pathlib import Path
from threading import RLock

from modules.disk import PARTIAL

KEPT = 10_000
"""Lines that are buffered, at most; then the oldest are lost. About a day of steps that take ten seconds."""

RESERVE = 2**16
"""Bytes reserved on the disk for the last lines of a run that fills it: those that report it."""

BLOCK = 2**16
"""Bytes that are read at once when looking for the last line end, from the file's end."""


class Lines:
    """Lines of text in UTF-8 that are appended to a file, each in one piece: a line is there or it is not.

    What UTF-8 lacks (bytes of file names that are not UTF-8) is escaped with a backslash, as in JSON.
    """

    def __init__(self, path: Path):
        """Removes an incomplete last line, left by a crash. Where the file cannot be opened, lines are buffered."""
        self.path, self.waiting, self.lost = path, [], 0
        self._reserve = path.with_name(f"{path.name}.reserve{PARTIAL}")
        self._file: int | None = None
        self._closed = False
        self._lock = RLock()  # warnings of other threads become events too
        self._set_aside()
        with suppress(OSError):
            self._open()

    def write(self, line: str) -> int:
        """Append a line, or buffer it until it can be written. How many were lost, once lines are written again."""
        with self._lock:
            return 0 if self._closed else self._write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _write(self, line: bytes) -> int:
        self.waiting.append(line)
        surplus = max(0, len(self.waiting) - KEPT)
        del self.waiting[:surplus]
        self.lost += surplus
        if not self._flush():
            return 0
        lost, self.lost = self.lost, 0
        return lost

    def close(self) -> None:
        """Write buffered lines, on a full disk at least the last ones. Nothing is written afterwards."""
        if not self._flush():
            while sum(map(len, self.waiting[:-1])) > RESERVE // 2:
                del self.waiting[0]
        with suppress(OSError):
            self._reserve.unlink()
        self._flush()
        self._closed = True
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is not None and not os.fstat(self._file).st_nlink:  # deleted: writes would be lost
            os.close(self._file)
            self._file = None
        if self._file is None:
            drop_unfinished_line(self.path)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_TRANSLATION, 0o666)
        return self._file

    def _flush(self) -> bool:
        """Write buffered lines; whether all are written."""
        try:
            file = self._open()
            while self.waiting:
                self._append(file, self.waiting[0])
                del self.waiting[0]
        except OSError:
            return False
        return True

    def _append(self, file: int, line: bytes) -> None:
        """Raises OSError, and leaves nothing of the line, where there is no room for all of it."""
        size = os.fstat(file).st_size
        try:
            written = os.write(file, line)
            while written < len(line):  # a partial write: the next call raises the reason
                written += os.write(file, line[written:])
        except OSError:
            os.ftruncate(file, size)
            raise

    def _set_aside(self) -> None:
        """Reserve room. Not zeros, which some file systems do not store."""
        with suppress(OSError):
            self._reserve.write_bytes(os.urandom(RESERVE))


NO_TRANSLATION = os.O_BINARY if os.name == "nt" else 0
"""Windows would write two characters for a line end."""


def drop_unfinished_line(path: Path) -> None:
    """Remove a line that a crash left incomplete, so that the next one begins a line. Reads only as far back as that
    line goes."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
