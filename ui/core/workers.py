"""Work that must not hold up the window: functions on other threads, whose outcome comes back on the window's."""

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator
from inspect import ismethod
from threading import Lock
from typing import Any

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal
from shiboken6 import isValid

_waiting: set["Task"] = set()
"""Tasks whose outcome has not arrived; nobody else may hold them."""


class Task(QObject):
    """One call under way. `cancel()` drops its outcome; the function itself runs to its end."""

    _ended = Signal(object, object)

    def __init__(self, done: Callable[[Any], None], failed: Callable[[str], None]):
        super().__init__()
        self.done, self.failed, self.cancelled = done, failed, False
        self._ended.connect(self.on_ended)

    def cancel(self) -> None:
        """Neither `done` nor `failed` will be called."""
        self.cancelled = True

    def on_ended(self, result: Any, error: Exception | None) -> None:
        """Hand the outcome over, on the window's thread."""
        _waiting.discard(self)
        owner = self.done.__self__ if ismethod(self.done) else None
        if self.cancelled or (isinstance(owner, QObject) and not isValid(owner)):  # its window was closed meanwhile
            return
        if error is None:
            self.done(result)
        else:
            self.failed(str(error) if isinstance(error, OSError | ValueError) else repr(error))


_lock, _running = Lock(), [0]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: on this thread that would delete widgets, which only their own thread may."""
    with _lock:
        _running[0] += 1
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _running[0] -= 1
            if not _running[0]:
                gc.enable()


class _Call(QRunnable):
    def __init__(self, task: Task, function: Callable[..., Any], arguments: tuple):
        super().__init__()
        self.task, self.function, self.arguments = task, function, arguments

    @_uncollected()
    def run(self) -> None:
        try:
            result, error = self.function(*self.arguments), None
        except Exception as caught:  # noqa: BLE001  handed to the window, which says it
            if not isinstance(caught, OSError | ValueError):
                traceback.print_exc()
            result, error = None, caught
        with contextlib.suppress(RuntimeError):  # the program has ended meanwhile, and the task with it
            self.task._ended.emit(result, error)


def run(
    function: Callable[..., Any],
    *arguments: Any,
    done: Callable[[Any], None],
    failed: Callable[[str], None],
    pool: QThreadPool | None = None,
) -> Task:
    """Call `function(*arguments)` on another thread; then `done(result)` or `failed(sentence)` on this one."""
    task = Task(done, failed)
    _waiting.add(task)
    (pool or QThreadPool.globalInstance()).start(_Call(task, function, arguments))
    return task
