"""Ctrl-C, SIGTERM and SIGHUP (a terminal that was closed), from the first second to the last.

`begin` comes before anything heavy is imported. From then on a signal raises KeyboardInterrupt at once, which ends the
program with code 130. Inside of `deferred`, where steps are trained, it is only remembered, and the loop calls `asked`
where nothing is half done; a second Ctrl-C raises there too.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from modules.reasons import sentence

REFUSED, STOPPED = 2, 130
"""Exit codes."""

ONE_CTRL_C = 1.0
"""Seconds within which signals count as one Ctrl-C: processes get it from the terminal and again from a launcher."""

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Windows has no SIGHUP."""

REFUSAL = "Cannot start:"
"""Printed before the list of problems."""

WORDS = b"\nStopping after this step; the state is saved. Press Ctrl-C again to stop at once.\n"


@dataclass
class Signals:
    """What has been asked of this process."""

    begun: bool = False
    """Whether `begin` was called for the whole program."""
    asked: float | None = None
    """When the first signal came, s of `time.monotonic`."""
    deferred: bool = False
    """Whether a first signal is only remembered."""
    insisted: bool = False
    """Whether there was a second Ctrl-C."""
    ending: bool = False
    """Whether the program is ending already."""
    speaks: bool = True
    """Whether this process tells the user."""


SIGNALS = Signals()


def begin() -> None:
    """Handle signals until the program ends."""
    listen()
    SIGNALS.begun = True


def listen() -> dict[int, Any]:
    """Handle signals by `on_signal`; returns the previous handlers. One that was ignored when the program started
    (`nohup`, a shell's background job) stays so."""
    numbers = [int(signal.Signals[name]) for name in NAMES if name in signal.Signals.__members__]
    before = {number: signal.getsignal(number) for number in numbers}
    heard = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, on_signal)
    return heard


def forget() -> None:
    """Reset, where the command is called several times in one process and not by scripts/train.py."""
    if not SIGNALS.begun:
        SIGNALS.asked, SIGNALS.insisted = None, False


def on_signal(number: int, frame: object) -> None:
    """Stop at once, or remember it."""
    first, now = SIGNALS.asked is None, time.monotonic()
    if SIGNALS.asked is None:
        SIGNALS.asked = now
    if SIGNALS.ending:
        if number == signal.SIGINT and now - SIGNALS.asked > ONE_CTRL_C:
            os._exit(STOPPED)  # cleaning up hangs
        return
    if not SIGNALS.deferred:
        raise KeyboardInterrupt
    if first:
        say(WORDS)
    elif number == signal.SIGINT and now - SIGNALS.asked > ONE_CTRL_C:
        SIGNALS.insisted = True
        raise KeyboardInterrupt


def say(words: bytes) -> None:
    """Tell the user. Not `print`: a signal may come in the middle of one, and it is not reentrant."""
    try:
        if SIGNALS.speaks:
            os.write(2, words)
    except OSError:  # the terminal is gone, as with SIGHUP
        pass


def asked() -> bool:
    """Whether there was a signal to stop."""
    return SIGNALS.asked is not None


def insisted() -> bool:
    """Whether there was a second Ctrl-C, which does not wait for anything."""
    return SIGNALS.insisted


@contextmanager
def deferred(speaks: bool) -> Iterator[None]:
    """Inside, a first signal is only remembered. `speaks`: whether this process tells the user so."""
    before = {} if SIGNALS.begun else listen()
    SIGNALS.deferred, SIGNALS.speaks = True, speaks
    try:
        if asked():  # the KeyboardInterrupt was caught elsewhere
            say(WORDS)
        yield
    finally:
        SIGNALS.deferred = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def at_once() -> Iterator[None]:
    """Inside of `deferred`: a signal raises KeyboardInterrupt again, also one that has come already."""
    before, SIGNALS.deferred = SIGNALS.deferred, False
    try:
        if before and asked():
            raise KeyboardInterrupt
        yield
    finally:
        SIGNALS.deferred = before


def end() -> None:
    """From here on signals do not interrupt: files are being closed, and the outcome is printed."""
    SIGNALS.ending = SIGNALS.begun


def run(program: Callable[[], int]) -> int:
    """The exit code of `program`. Signals and errors end it with a sentence and without a traceback."""
    try:
        return program()
    except KeyboardInterrupt:
        end()
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except Exception as error:  # noqa: BLE001  whatever it was, a traceback tells a user nothing
        print(f"{REFUSAL}\n  - {sentence(error)}", file=sys.stderr)
        return REFUSED
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pydantic, which is written in Rust, interrupted in its import
            raise
        end()
        print("Stopped.", file=sys.stderr)
        return STOPPED
    finally:
        end()
