"""All runs in the runs folders, kept up to date by a worker, joined with the queue's jobs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal

from ui.core import places, reading, workers
from ui.core.preset.schema import at
from ui.core.runs import launch
from ui.core.runs.jobs import Job
from ui.core.runs.queue import Queue
from ui.core.runs.states import OUTPUT, Glance, State, Status, glance

EVERY = 2000
"""Milliseconds between looks."""

WATCHED = ("events.jsonl", "environment.json", "preset.json", "state", "requests", OUTPUT)
"""What a run's glance depends on, beside its process."""

Stamp = tuple[tuple[int, int], ...]
Known = dict[Path, tuple[Stamp, Glance]]


class Library(QObject):
    """`glances`, newest start first: every run folder, and running or ended jobs that have no folder yet.

    A waiting job shows here only if it resumes a run that is listed anyway (its state is WAITING then).
    """

    changed = Signal()
    problem = Signal(str)
    """A runs folder cannot be read: a sentence."""

    def __init__(self, folders: Sequence[Path], queue: Queue, parent: QObject | None = None):
        super().__init__(parent)
        self.glances: list[Glance] = []
        self.runs_folders: list[Path] = list(folders)
        self.is_loaded = False
        self._queue, self._known, self._said = queue, Known(), ""
        self._task: workers.Task | None = None
        self._again = False
        self._timer = QTimer(self, interval=EVERY)
        self._timer.timeout.connect(self.refresh)
        self._timer.start()
        queue.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Look again now, in a worker."""
        if self._task is not None:
            self._again = True
            return
        jobs = [*self._queue.jobs, *self._queue.ended]
        self._task = workers.run(
            scan, list(self.runs_folders), jobs, self._known, done=self.on_scanned, failed=self.on_failed
        )

    def glance(self, folder: Path) -> Glance | None:
        """What is known of one folder."""
        return next((seen for seen in self.glances if seen.folder == folder), None)

    def close(self) -> None:
        """Look no longer."""
        self._timer.stop()
        self._queue.changed.disconnect(self.refresh)
        if self._task is not None:
            self._task.cancel()

    def on_scanned(self, answer: tuple[list[Glance], str]) -> None:
        """Take over what the worker saw."""
        self._task = None
        glances, problem = answer
        if glances != self.glances or not self.is_loaded:
            self.glances, self.is_loaded = glances, True
            self.changed.emit()
        self._say(problem)
        if self._again:
            self._again = False
            self.refresh()

    def on_failed(self, reason: str) -> None:
        """Say it, and look again later."""
        self._task = None
        self._say(f"The runs cannot be listed: {reason}.")

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            if sentence:
                self.problem.emit(sentence)


def scan(folders: Sequence[Path], jobs: Sequence[Job], known: Known) -> tuple[list[Glance], str]:
    """Glances of all runs and jobs, newest first, and what could not be read. `known` holds the last looks."""
    problems, found = [], {}
    for folder in folders:
        try:
            runs = [place for place in folder.iterdir() if reading.is_file(place / "preset.json")]
        except OSError as error:
            if folder != places.RUNS or not isinstance(error, FileNotFoundError):  # made by the first run
                problems.append(f"The runs folder {folder} cannot be read: {error.strerror}.")
            continue
        found.update({run: looked_at(run, known) for run in runs})
    for gone in known.keys() - found.keys():
        del known[gone]
    for job in jobs:
        seen = found.get(job.folder)
        if seen is not None or not job.waiting:
            found[job.folder] = joined(seen or of_job(job), job)
    added = {job.folder: job.added for job in jobs if not job.waiting}
    order = sorted(found.values(), key=lambda seen: max(seen.started, added.get(seen.folder, "")), reverse=True)
    return order, " ".join(problems)


def looked_at(folder: Path, known: Known) -> Glance:
    """A run folder's glance; the last one, if nothing can have changed."""
    stamp = tuple(_stamp(folder / name) for name in WATCHED)
    if folder in known:
        old, seen = known[folder]
        gone = seen.exported is not None and not reading.is_there(seen.exported)
        if old == stamp and not seen.status.state.alive and not gone:
            return seen
    known[folder] = stamp, glance(folder)
    return known[folder][1]


def joined(seen: Glance, job: Job) -> Glance:
    """A glance with what the queue knows of the run."""
    seen = replace(seen, job=job.id)
    if job.ended is not None:  # unless it was started again from elsewhere
        return seen if seen.starts > job.starts else replace(seen, status=job.ended)
    if job.waiting:
        return replace(seen, status=Status(State.WAITING, "In the queue, to be resumed."), resumable=False)
    if job.begun(seen) or job.process is None:
        return seen
    if job.stop_asked:  # also in the moment in which its process has gone and it is still listed
        return replace(seen, status=Status(State.STOPPING, "Cancelling before the run begins."), resumable=False)
    if not launch.alive(job.process):
        return seen
    starting = Status(State.STARTING, "Starting: checking preset, base model and pictures.")
    return replace(seen, status=starting, resumable=False)


def of_job(job: Job) -> Glance:
    """A glance at a job that has no run folder yet."""
    try:
        preset = reading.read_json(job.preset)
    except (OSError, ValueError):  # the queue says what is wrong with it when it starts
        preset = {}
    gone = Status(State.VANISHED, "The trainer stopped unexpectedly before the run began.")
    told = ("family", "adapter.method", "description")
    family, method, description = (str(at(preset, path) or "") for path in told)
    return Glance(job.folder, job.name, gone, family, method, description)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size
