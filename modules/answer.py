"""What all scripts have in common: how they end, whatever happens; the text they print, or the sentence about bad
input; and a table's place in a page of docs/."""

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
"""Exit codes: an error of ours, bad input, Ctrl-C, and, as shells have it, the reader of the output has gone."""

DEBUG = "GIMBAL_DEBUG"
"""Environment variable that asks for traces of errors."""


def script(main: Callable[[], int | None], prints: bool = False) -> int:
    """Run a script's `main`; its exit code. What it prints cannot steer the terminal, and a screen that does not take
    it ends nothing; see `guarded` for errors. `prints`: what is printed is the result, and without it the script has
    failed."""
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
    if isinstance(out.error, BrokenPipeError):  # as in `... | head`: there is nobody to tell
        return code or UNREAD
    _tell(f"stdout: cannot be written ({reason(out.error)}), so what was printed is lost")
    return code or (FAILED if prints else 0)


def guarded(main: Callable[[], int | None]) -> int:
    """Run `main`; its exit code. An error becomes one sentence, with a trace only where `DEBUG` asks for it."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        _tell("Stopped.")
        return STOPPED
    except (ValueError, OSError) as error:
        _tell(sentence(error))
        return REFUSED
    except MemoryError:
        _tell("There is not enough main memory for this input.")
        return FAILED
    except Exception as error:  # noqa: BLE001  nobody is above to handle it; said, and traced where that is asked for
        again = "" if os.environ.get(DEBUG) else f" With {DEBUG}=1 in the environment the same command says where."
        said = first_line(error).rstrip(". ")
        _tell(f"This is an error in Gimbal, not in your input: {type(error).__name__}: {said}.{again}")
        return FAILED


def in_a_thread(ended: threading.ExceptHookArgs) -> None:
    """A thread of a library has ended by an error (TensorBoard's, when its file cannot be written). Whoever waits for
    the thread says so; a trace on the screen would say it to the user, and in words that are not meant for them."""
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
    """What the system says of an error, without numbers and names."""
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def put(page: Path, text: str, begin: str, end: str) -> None:
    """Put `text` between two marks of a page. Raises ValueError if it does not have them."""
    before, first, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page} has no {begin} with {end} behind it: there is no place for the table")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _tell(text: str) -> None:
    """Say why the script ends."""
    if os.environ.get(DEBUG) and sys.exc_info()[1] is not None:
        traceback.print_exc()
    print(short(text, LONGEST), file=sys.stderr, flush=True)
