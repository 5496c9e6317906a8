"""What all scripts have in common: exit codes and error messages, printed text, and tables in pages of docs/."""

import logging
import os
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from modules import screen
from modules.printable import LONGEST, short
from modules.reasons import first_line, sentence

log = logging.getLogger(__name__)

FAILED, REFUSED, STOPPED, UNREAD = 1, 2, 130, 141
"""Exit codes: a bug of ours, bad input, Ctrl-C, and, as in shells, a closed pipe at stdout."""

DEBUG = "GIMBAL_DEBUG"
"""Environment variable that turns on tracebacks."""


def script(main: Callable[[], int | None], prints: bool = False) -> int:
    """Run a script's `main`; its exit code. Control characters in its output are escaped, and output that cannot be
    written is dropped; see `guarded` for errors. `prints`: the output is the result, so losing it is a failure."""
    before, hook = (sys.stdout, sys.stderr), threading.excepthook
    out, threading.excepthook = screen.begin(), in_a_thread
    try:
        code = guarded(main)
    finally:
        out.flush()
        if sys.__stdout__ is not out:  # within another program
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
            threading.excepthook = hook
    if out.error is None:
        return code
    if isinstance(out.error, BrokenPipeError):  # as in `... | head`
        return code or UNREAD
    _tell(f"stdout: cannot be written ({reason(out.error)}); the output is lost")
    return code or (FAILED if prints else 0)


def guarded(main: Callable[[], int | None]) -> int:
    """Run `main`; its exit code. An error becomes one sentence, with a traceback only where `DEBUG` is set."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        _tell("Stopped.")
        return STOPPED
    except (ValueError, OSError) as error:
        _tell(sentence(error))
        return REFUSED
    except MemoryError:
        _tell("Out of main memory: this input needs more.")
        return FAILED
    except Exception as error:  # noqa: BLE001  the outermost handler: reported, with a traceback if `DEBUG` is set
        again = "" if os.environ.get(DEBUG) else f" Set {DEBUG}=1 in the environment for a traceback."
        said = first_line(error).rstrip(". ")
        _tell(f"This is an error in Gimbal, not in your input: {type(error).__name__}: {said}.{again}")
        return FAILED


def in_a_thread(ended: threading.ExceptHookArgs) -> None:
    """Log that a library's thread has ended with an error (TensorBoard's, when its file cannot be written). Whoever
    waits for the thread reports it; a traceback on the screen would not help the user."""
    name = ended.thread.name if ended.thread is not None else "a thread"
    log.info("%s ended: %s", name, first_line(ended.exc_value) if ended.exc_value is not None else ended.exc_type)
    if os.environ.get(DEBUG):
        traceback.print_exception(ended.exc_value)


def answer(run: Callable[[Namespace], str], arguments: Namespace) -> int:
    """Print what `run` returns, or what is wrong with the input; the exit code, 0 or 2."""
    try:
        text = run(arguments)
    except (ValueError, OSError) as error:
        _tell(sentence(error))
        return REFUSED
    print(text)
    return 0


def reason(error: Exception) -> str:
    """The system's message for an error, without numbers and names."""
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def put(page: Path, text: str, begin: str, end: str) -> None:
    """Put `text` between two marks of a page. Raises ValueError if it does not have them."""
    before, first, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page} has no {begin} followed by {end}, so there is no place for the table")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _tell(text: str) -> None:
    """Print why the script ends."""
    if os.environ.get(DEBUG) and sys.exc_info()[1] is not None:
        traceback.print_exc()
    print(short(text, LONGEST), file=sys.stderr, flush=True)
