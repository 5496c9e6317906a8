"""The same work on many files in several processes.

Threads do not help where files are small: Python's own part of opening a picture takes longer than decoding it, and
only one thread at a time does that. Nor does `multiprocessing`: its processes import the program that started them,
torch included. These import what the work needs, and start in a moment. A decoder that crashes ends its process, not
ours.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from modules.data.names import shown

COUNT = max(1, min(8, os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
"""Processes. Of several trainings on one machine that are one run, each has its part."""

WORTH = 400
"""Files from which on processes are started; fewer are done in threads."""

CHUNK = 96
"""Files that are handed over at once."""

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys; sys.path[0] = sys.argv[1]; from modules.data.workers import serve; serve()"

READY = "ready"
"""What a worker says first."""

Done = TypeVar("Done")


def each(work: Callable[[Path], Done], paths: Sequence[Path], count: int = COUNT) -> Iterator[Done | ValueError]:
    """What `work` returns for each path, in order, or the ValueError it raises.

    With many paths it runs in processes: then `work` is a function of a module that imports no torch.
    """
    if len(paths) < WORTH or count < 2:
        with ThreadPoolExecutor(count) as pool:
            yield from pool.map(lambda path: outcome(work, path), paths)
        return
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    workers = [Worker(work) for _ in range(min(count, len(chunks)))]
    for worker in workers:
        idle.put(worker)

    def answers(chunk: Sequence[Path]) -> list[Any]:
        worker = idle.get()
        try:
            return worker.ask(chunk)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(workers))
    try:
        for chunk in pool.map(answers, chunks):
            yield from chunk
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.end()


def outcome(work: Callable[[Path], Done], path: Path) -> Done | ValueError:
    """What `work` returns, or the ValueError it raises."""
    try:
        return work(path)
    except ValueError as error:
        return ValueError(str(error))


class Worker:
    """A process that does `work`; where none can be started, it is done here."""

    def __init__(self, work: Callable[[Path], Any]):
        self.work = work
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-c", PROGRAM, str(ROOT)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.is_ready = False
        _send(self.process.stdin, self.work)

    def ask(self, paths: Sequence[Path]) -> list[Any]:
        """The outcome for each path. One at which the process ends without an answer is damaged."""
        try:
            _send(self.process.stdin, list(paths))
            self.is_ready = self.is_ready or self._answer() == READY
            return self._answer()
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # ValueError: it has ended before
            self.end()
        if not self.is_ready:
            return [outcome(self.work, path) for path in paths]
        self._start()
        if len(paths) > 1:
            return [answer for path in paths for answer in self.ask([path])]
        reason = "decoding it has ended the process that did so; save it again, or remove it"
        return [ValueError(f"{shown(paths[0])}: {reason}")]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return pickle.load(self.process.stdout)

    def end(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        self.process.kill()
        self.process.wait()


def _send(pipe: Any, message: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # seen when its answer is read
        pickle.dump(message, pipe)
        pipe.flush()


def serve() -> None:
    """The process of a worker: answer until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; the process that asks decides
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what libraries print is no answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        work = pickle.load(requests)
        pickle.dump(READY, answers)
        while True:
            found = [outcome(work, path) for path in pickle.load(requests)]
            pickle.dump(found, answers)
            answers.flush()
