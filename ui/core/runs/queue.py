"""The queue of jobs: frozen presets that run one after the other on each device. It survives the window."""

import json
import shutil
import uuid
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PySide6.QtCore import QLockFile, QObject, QTimer, Signal

from ui.core import places, reading, words
from ui.core.runs import jobs as making
from ui.core.runs import launch
from ui.core.runs.devices import Devices
from ui.core.runs.jobs import Job
from ui.core.runs.states import OUTPUT, glance

EVERY = 1000
"""Milliseconds between looks at the processes."""


class Queue(QObject):
    """Jobs in order. Every change is on disk at once; methods raise ValueError with a sentence when they cannot."""

    changed = Signal()
    problem = Signal(str)
    """A sentence about something that went wrong by itself, e.g. the disk is full."""

    def __init__(self, folder: Path, devices: Devices, parent: QObject | None = None):
        """`folder` is the queue's own, runs/.queue. Starts nothing before `devices` are known."""
        super().__init__(parent)
        self.folder, self.devices = folder, devices
        self._file = folder / "queue.json"
        self._lock = QLockFile(str(folder / "window.lock"))
        self._lock.setStaleLockTime(0)  # never too old; one whose window has died does not count
        self._jobs: list[Job] = []
        self._paused, self._unsaved, self._said, self._stamp = False, False, "", 0
        self._begin()
        self._timer = QTimer(self, interval=EVERY)
        self._timer.timeout.connect(self.tick)
        self._timer.start()

    # -- what is there

    @property
    def jobs(self) -> list[Job]:
        """Running jobs, then waiting ones, in the order in which they start."""
        return [job for job in self._jobs if job.running] + [job for job in self._jobs if job.waiting]

    @property
    def ended(self) -> list[Job]:
        """Jobs whose run never began (`Job.ended` says why), until they are removed or run again."""
        return [job for job in self._jobs if job.ended]

    @property
    def drives(self) -> bool:
        """Whether this window starts the jobs. Another window may: then everything that changes the queue raises."""
        return self._lock.isLocked()

    @property
    def watching_sentence(self) -> str:
        """Why this window only watches; "" if it drives."""
        if self.drives:
            return ""
        if self._lock.error() is QLockFile.LockError.LockFailedError:
            return "Another window controls the queue."
        return f"The queue is off: {self.folder} is not writable."

    @property
    def paused(self) -> bool:
        """Whether nothing new is started."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._may_change()
        if paused != self._paused:
            self._paused = paused
            self._keep()
            self.tick()

    def job(self, id: str) -> Job | None:
        """The job of this id, if there is one."""
        return next((job for job in self._jobs if job.id == id), None)

    def waits(self, job: Job) -> str:
        """Why a waiting job has not started: a sentence."""
        known = [device.id for device in self.devices.all]
        running = [other for other in self._jobs if other.running]
        needed = making.wants(job, known, {place for other in running for place in other.places})
        if self._paused:
            return "The queue is paused."
        if known and not needed:
            return f"GPU {job.device} is not in this machine; choose another device."
        in_the_way = [other.name for other in running if set(other.places) & set(needed)]
        before = [other for other in self.jobs if other.waiting].index(job) if job in self.jobs else 0
        if before:
            return f"{words.plural(before, 'job')} before it."
        return f"Waiting for {' and '.join(in_the_way)} to finish." if in_the_way else "Starts now."

    def problem_with(self, values: dict[str, Any], name: str) -> str:
        """Why `add` would refuse this run name; "" if it would not."""
        if not name.strip():
            return "Enter a run name."
        folder = run_folder(values, name)
        if any(job.folder == folder and not job.ended for job in self._jobs):
            return f"A run of this name is already in the queue ({places.shown(folder)}); choose another name."
        if (folder / "preset.json").exists():
            return f"There is already a run of this name ({places.shown(folder)}); choose another name or resume it."
        if folder.is_dir() and any(folder.iterdir()):
            return f"{places.shown(folder)} already exists and is not a run folder; choose another name."
        return ""

    # -- changing it

    def add(self, values: dict[str, Any], name: str, device: str = making.ANY, next: bool = False) -> Job:
        """Freeze complete preset values under a run name and queue them, last or before all waiting jobs."""
        self._may_change()
        if problem := self.problem_with(values, name):
            raise ValueError(problem)
        job = self._made(name, run_folder(values, name), device, places.ROOT)
        try:
            reading.write_whole(job.preset, json.dumps({**values, "name": name}, indent=2, ensure_ascii=False))
        except OSError as error:
            raise ValueError(f"The job's preset cannot be saved to {job.preset}: {error.strerror}.") from error
        self._jobs.insert(0 if next else len(self._jobs), job)
        self._keep()
        return job

    def resume(self, run_folder: Path, device: str = making.ANY) -> Job:
        """Queue the run in a folder to go on from its last state (or from the start, if it has none)."""
        self._may_change()
        seen, shown = glance(run_folder), places.shown(run_folder)
        if any(job.folder == run_folder and not job.ended for job in self._jobs):
            raise ValueError(f"{seen.name} is in the queue already.")
        if seen.status.state.alive:
            raise ValueError(f"{seen.name} is running: it cannot be resumed.")
        if not (run_folder / "preset.json").exists():
            raise ValueError(f"{shown} cannot be resumed: it has no preset.json.")
        cwd = seen.cwd or places.ROOT
        if not reading.is_folder(cwd):
            raise ValueError(f"{seen.name} cannot be resumed: it was started in {cwd}, which is no longer there.")
        self._jobs = [job for job in self._jobs if job.folder != run_folder]
        job = self._made(seen.name, run_folder, device, cwd, resume=True)
        self._jobs.append(job)
        self._keep()
        return job

    def move(self, id: str, to: int) -> None:
        """Put a waiting job at a place among the waiting ones."""
        job = self._named(id, waiting=True)
        others = [other for other in self._jobs if other.waiting and other.id != id]
        others.insert(max(0, to), job)
        self._jobs = [other for other in self._jobs if not other.waiting] + others
        self._keep()

    def run_next(self, id: str) -> None:
        """Put a job before all waiting ones; one that ended before it began is tried again."""
        job = self._named(id)
        if job.running:
            raise ValueError(f"{job.name} is running already.")
        if any(other.folder == job.folder and not other.ended and other.id != id for other in self._jobs):
            raise ValueError(f"Another job for {places.shown(job.folder)} is already in the queue.")
        self._put(replace(job, process=None, places=(), ended=None, stop_asked=False))
        self.move(id, 0)

    def remove(self, id: str) -> None:
        """Forget a waiting or ended job and delete its frozen preset. A running one has to be stopped."""
        job = self._named(id)
        if job.running:
            raise ValueError(f"{job.name} is running: stop it instead.")
        self._forget(job)
        self._keep()

    def stop(self, id: str) -> bool:
        """Ask a running job to stop after its step, state saved; one that is only starting is ended at once (False)."""
        job = self._named(id)
        if job.process is None or not job.running:
            raise ValueError(f"{job.name} is not running.")
        begun = job.begun(glance(job.folder))
        if begun:
            launch.request(job.folder, "stop")
        else:
            launch.kill(job.process)  # it would delete a request from before its start, and nothing is lost yet
        self._put(replace(job, stop_asked=True))
        self._keep()
        return begun

    def kill(self, id: str) -> None:
        """End a running job's process at once; what came after its last state is lost."""
        job = self._named(id)
        if job.process is not None:
            launch.kill(job.process)
        self.tick()

    def close(self) -> None:
        """Let another window drive. Running jobs go on."""
        self._timer.stop()
        self._lock.unlock()

    # -- every second

    def tick(self) -> None:
        """Drop jobs that have ended, start those that may start."""
        if not self.drives:
            self._begin()
            return
        before = list(self._jobs)
        for job in [job for job in self._jobs if job.running]:
            self._look_after(job)
        if not self._paused:
            for job, devices in making.ready(self._jobs, [device.id for device in self.devices.all]):
                if not self._start(job, devices):
                    break
        if self._jobs != before or self._unsaved:
            self._keep()

    def _look_after(self, job: Job) -> None:
        """Drop a job whose process is gone, or note why its run never began."""
        assert job.process is not None
        if launch.alive(job.process):
            return
        seen = glance(job.folder)
        ended = making.verdict(job, seen, launch.exit_code(job.process))
        if ended is not None:
            self._put(replace(job, ended=ended))
            return
        if job.begun(seen):
            try:
                shutil.move(job.output, job.folder / OUTPUT)
            except OSError as error:
                self._say(f"The output of {job.name} cannot be moved to its run folder: {error}.")
        self._forget(job)

    def _start(self, job: Job, devices: tuple[str, ...]) -> bool:
        """Start a job. If the machine cannot, the queue is paused: the jobs behind it would fare no better."""
        starts = glance(job.folder).starts
        try:
            process = launch.start(making.command(job, devices), job.cwd, job.output, devices)
        except OSError as error:
            self._paused = self._unsaved = True
            self._say(f"{job.name} cannot be started ({error}). The queue is paused.")
            return False
        self._put(replace(job, process=process, places=devices, starts=starts))
        return True

    # -- keeping it

    def _begin(self) -> None:
        """Drive the queue if no other window does, and read what is kept."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._say(f"The queue's folder {self.folder} cannot be created: {error.strerror}.")
            return
        drives = self._lock.tryLock(0)
        try:
            stamp = self._file.stat().st_mtime_ns if self._file.exists() else 0
            if stamp == self._stamp and not drives:
                return
            self._jobs, self._paused = making.read(self._file)
            self._stamp = stamp
        except (OSError, ValueError) as error:
            if drives:
                self._put_aside(error)
        self.changed.emit()

    def _put_aside(self, error: Exception) -> None:
        """Keep an unreadable queue's file under another name, and say so."""
        aside, number = self.folder / "queue.broken.json", 2
        while aside.exists():
            aside, number = self.folder / f"queue.broken_{number}.json", number + 1
        try:
            self._file.rename(aside)
        except OSError as reason:
            self._lock.unlock()
            self._say(f"The queue {self._file} cannot be read ({error}) or renamed ({reason}).")
            return
        found = f"The queue could not be read ({error}); it is empty now."
        self._say(f"{found} The old file is now {aside}; the presets of its jobs are beside it.")

    def _keep(self) -> None:
        """Write the queue; if that fails, it is tried again with every tick."""
        try:
            making.write(self._file, self._jobs, self._paused)
            self._unsaved, self._said = False, ""
        except OSError as error:
            self._unsaved = True
            self._say(f"The queue cannot be saved to {self._file}: {error.strerror}. Trying again.")
        self.changed.emit()

    def _say(self, sentence: str) -> None:
        """Tell a problem once, when whoever listens is there."""
        if sentence != self._said:
            self._said = sentence
            QTimer.singleShot(0, self, lambda: self.problem.emit(sentence))

    def _may_change(self) -> None:
        if not self.drives:
            raise ValueError(self.watching_sentence)

    def _named(self, id: str, waiting: bool = False) -> Job:
        self._may_change()
        job = self.job(id)
        if job is None:
            raise ValueError("This job is no longer in the queue.")
        if waiting and not job.waiting:
            raise ValueError(f"{job.name} is no longer waiting.")
        return job

    def _made(self, name: str, folder: Path, device: str, cwd: Path, resume: bool = False) -> Job:
        id = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
        preset = folder if resume else self.folder / f"{id}.json"
        added = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Job(id, name, preset, folder, self.folder / f"{id}.out", device, resume, added, cwd)

    def _put(self, job: Job) -> None:
        self._jobs = [job if other.id == job.id else other for other in self._jobs]

    def _forget(self, job: Job) -> None:
        self._jobs = [other for other in self._jobs if other.id != job.id]
        for path in (job.output, *([] if job.resume else [job.preset])):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._say(f"{path} cannot be deleted: {error.strerror}.")


def run_folder(values: dict[str, Any], name: str) -> Path:
    """Where a run of these preset values goes."""
    return places.full(values["saving"]["folder"]) / name
