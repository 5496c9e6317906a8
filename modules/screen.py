"""stdout and stderr of a program that must not fail because of them.

What cannot be written is dropped: to a closed pipe, a closed terminal, a full disk behind `> log`, a closed descriptor.
Characters that the encoding lacks are escaped, and so are control characters: file names, captions and the contents of
files may have escape sequences. Nothing heavy is imported here, since `begin` has to come before anything that prints.
"""

import errno
import io
import os
import select
import sys
import threading
from typing import Any, TextIO

from modules.printable import printed

PATIENCE = 1.0
"""Seconds that a slow reader has, where the other side has made the pipe non-blocking."""


def plain(text: str) -> str:
    """`text` as `printed` returns it, with no control characters but its line ends and tabs.

    Carriage returns at either end stay, as progress bars have them.
    """
    inside = text.strip("\r")
    start = len(text) - len(text.lstrip("\r"))
    return text[:start] + printed(inside) + text[start + len(inside) :]


class Dropping(io.RawIOBase):
    """Bytes for a stream; what cannot be written is silently dropped."""

    def __init__(self, inner: io.RawIOBase, closed: bool = False):
        self.inner = inner
        self.was_closed = closed
        """Whether there is no stream: `inner` is a dummy."""
        self.error: Exception | None = None
        """Why something was dropped."""

    def writable(self) -> bool:
        """Always: see `write`."""
        return True

    def write(self, data: Any, /) -> int:
        """Write what can be written; always returns the size of all."""
        rest, size = memoryview(data).cast("B"), memoryview(data).nbytes
        try:
            if self.was_closed and size:
                raise OSError(errno.EBADF, "it is closed")
            while rest:
                written = self.inner.write(rest)
                if written is None and not select.select([], [self.inner], [], PATIENCE)[1]:
                    raise OSError(errno.EAGAIN, f"its reader has not read for {PATIENCE:g} s")
                rest = rest[written or 0 :]
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.error = error
        return size

    def fileno(self) -> int:
        """The stream's own."""
        return self.inner.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal that is still there."""
        return self.inner.isatty()


class Screen(io.TextIOWrapper):
    """A stream of text, with control characters escaped."""

    def __init__(self, raw: Dropping, encoding: str, line_buffering: bool):
        super().__init__(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=line_buffering)
        self.raw = raw

    @property
    def error(self) -> Exception | None:
        """Why something that was printed is lost; None if nothing is."""
        self.flush()
        return self.raw.error

    def write(self, text: str, /) -> int:
        """Write `text`, see `plain`."""
        super().write(plain(text))
        return len(text)


def begin() -> Screen:
    """Replace stdout and stderr; stdout. Call once, first of all."""
    for number in (0, 1, 2):
        open_if_closed(number)
    is_program = sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    if not is_program:  # this runs within another program, which keeps its streams
        sys.stdout, sys.stderr = out, _ = within(sys.stdout), within(sys.stderr)
        return out
    sys.stdout = sys.__stdout__ = out = screen(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = screen(sys.stderr, 2)
    threading.excepthook = sys.unraisablehook = unseen
    return out


def open_if_closed(number: int) -> None:
    """Open a descriptor that was closed at the start (`2>&-`): else the next opened file would get its number and all
    that is printed."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)


def screen(stream: TextIO | None, number: int) -> Screen:
    """`stream`, which is the descriptor `number`, with its settings but for error handling."""
    if not isinstance(stream, io.TextIOWrapper):  # None where the descriptor was closed
        return Screen(Dropping(io.FileIO(number, "w", closefd=False), stream is None), "utf-8", line_buffering=True)
    encoding, by_line = stream.encoding, stream.line_buffering or stream.write_through
    buffer: Any = stream.detach()  # or `stream` would close its parts when it goes away
    raw = Dropping(buffer if isinstance(buffer, io.RawIOBase) else buffer.detach())  # raw with `python -u`
    return Screen(raw, encoding, by_line)


def within(stream: Any) -> Screen:
    """A screen that writes into `stream`, which is unchanged."""
    return Screen(Dropping(stream.buffer), stream.encoding, line_buffering=True)


def unseen(failure: Any) -> None:
    """Log the error of a thread or of an object's finalizer. It stops nothing, so it is not shown on the screen."""
    import logging

    if isinstance(failure.exc_value, Exception):
        kind = type(failure.exc_value)
        trace = (kind, failure.exc_value, failure.exc_traceback)
        logging.getLogger(__name__).info("in the background: %r", failure.exc_value, exc_info=trace)
