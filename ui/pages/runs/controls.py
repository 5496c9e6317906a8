"""What can be done with the run that is shown: the actions, and a row of buttons for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import Qt, QUrl, Signal
from PySide6.QtGui import QAction, QDesktopServices, QGuiApplication
from PySide6.QtWidgets import QWidget

from ui.core import reading, words
from ui.core.runs import launch
from ui.core.runs.history import History
from ui.core.runs.jobs import Job
from ui.core.runs.queue import Queue
from ui.core.runs.states import Glance, State
from ui.pages.runs.tensorboard import TensorBoard
from ui.widgets import dialogs
from ui.widgets.making import across, action, button

ASKED = {
    "stop": "Stopping: the trainer saves a state after this step.",
    "save": "State requested: it is saved after this step.",
    "sample": "Samples requested: they are drawn after this step.",
}
LOST = (
    "Training since the last saved state is lost. If you wait, the trainer saves a state after the current step and "
    "then stops."
)
ENDED = "Training had not started; the process is stopped and nothing is lost."


@dataclass
class Subject:
    """What the controls are about."""

    folder: Path
    state: State
    glance: Glance | None
    job: Job | None
    samples: bool
    """Whether its preset lets it make sample pictures."""


class Controls(QWidget):
    """Buttons that are there when they make sense, and can be pressed when they can do something."""

    said = Signal(str)
    """A sentence: what has been asked, what was done, or why it could not be."""
    open_preset = Signal(Path)
    show_log = Signal()

    def __init__(self, queue: Queue):
        super().__init__()
        self.queue = queue
        self.subject: Subject | None = None
        self.latest: dict[str, list] = {}
        """The last state and the last sample of the run, to see when there is another."""
        self.asked: dict[str, list] = {}
        """What has been asked for and is still to come, with what was the latest then."""
        self.board = TensorBoard(self)
        self.board.said.connect(self.said)
        self.row = across(of=self, margins=(0, 0, 0, 0))
        self.stop = self._add("Stop", "F8", "Save a state after this step and stop the run", lambda: self.ask("stop"))
        self.end = self._add("End now …", "", "Stop the process now, without saving", self.on_end, "danger")
        self.save = self._add("Save now", "F6", "Save a training state after this step", lambda: self.ask("save"))
        self.sample = self._add("Sample now", "F7", "Draw sample pictures after this step", lambda: self.ask("sample"))
        self.resume = self._add("Resume", "F9", "Queue it to continue from its last state", self.on_resume, "primary")
        self.log = self._add("Show log", "", "Show the trainer's output", self.show_log.emit)
        self.forget = self._add("Remove", "", "Remove the job, which did not start, from the list", self.on_forget)
        self.open_folder = self._add("Open folder", "", "Show the run's files", self.on_open_folder)
        self.copy = self._add("Copy file path", "", "Copy the path of the exported file", self.on_copy)
        self.preset = self._add("Open preset", "", "Edit a copy of this run's preset", self.on_preset)
        show_runs = lambda: self.board.show(self.shown.folder.parent)  # noqa: E731
        self.tensorboard = self._add("TensorBoard", "", "Show this folder's runs in the browser", show_runs)
        self.row.addStretch(1)
        self.show_subject(None)

    def show_subject(self, subject: Subject | None) -> None:
        """Be about another run, or the same one in another state."""
        if not subject or not self.subject or subject.folder != self.subject.folder or not subject.state.alive:
            self.asked.clear()
        self.subject = subject
        state = subject.state if subject else None
        glance, job = (subject.glance, subject.job) if subject else (None, None)
        alive, stopping = state is not None and state.alive, state == State.STOPPING or "stop" in self.asked
        resumable = glance is not None and glance.resumable
        ended = state in (State.STOPPED, State.FAILED, State.VANISHED, State.REFUSED) or resumable
        self._set(self.stop, alive and not stopping)
        self._set(self.end, alive and stopping, bool(job or (glance and glance.process)))
        listens = state == State.RUNNING and not stopping
        self._set(self.save, alive, listens and "save" not in self.asked)
        samples = subject is not None and subject.samples
        self._set(self.sample, alive, listens and samples and "sample" not in self.asked)
        why = "" if samples else " (off in this run's preset)"
        self.sample.setToolTip("Draw sample pictures after this step (F7)" + why)
        self._set(self.resume, ended, self.queue.drives and not (job and job.running))  # its process still cleans up
        again = "Resume" if resumable else "Start again"
        self.resume.setText("Try again" if state == State.REFUSED else again)
        self._set(self.log, ended)
        self._set(self.forget, job is not None and job.ended is not None, self.queue.drives)
        exists = subject is not None and subject.folder.is_dir()
        self._set(self.open_folder, True, exists)
        self._set(self.copy, bool(glance and glance.exported))
        self._set(self.preset, True, subject is not None and (exists or job is not None))
        self._set(self.tensorboard, True, exists)

    def ask(self, what: str) -> None:
        """Ask the trainer for something, and say so."""
        job, sentence = self.shown.job, ASKED[what]
        try:
            if what == "stop" and job and job.running:
                sentence = sentence if self.queue.stop(job.id) else ENDED
            else:
                launch.request(self.shown.folder, what)
        except (OSError, ValueError) as error:
            self.said.emit(str(error))
            return
        self.asked[what] = self.latest.get(what, [])
        self.said.emit(sentence)
        self.show_subject(self.subject)

    def answer(self, history: History) -> None:
        """Say when what was asked for has come."""
        self.latest = {
            "save": [one for one in history.saved if one.what == "state"][-1:],
            "sample": history.samples[-1:],
        }
        for what, made in (("save", "State saved"), ("sample", "Samples drawn")):
            if what in self.asked and self.asked[what] != self.latest[what]:
                del self.asked[what]
                self.said.emit(f"{made} after step {words.count(history.step)}.")
                self.show_subject(self.subject)

    @property
    def shown(self) -> Subject:
        """What the controls are about while one of them can be used."""
        assert self.subject
        return self.subject

    def on_end(self) -> None:
        """Ask whether to end the process without saving, and do it."""
        subject = self.shown
        question = "End the run without saving?"
        end = lambda: self._do(lambda: self._kill(subject), "Run ended.")  # noqa: E731
        dialogs.confirm(self, "End now", question, LOST, "&End now", end)

    def on_resume(self) -> None:
        """Queue it again."""
        job, folder = self.shown.job, self.shown.folder
        again = job and self.shown.state == State.REFUSED
        resume = (lambda: self.queue.run_next(job.id)) if job and again else (lambda: self.queue.resume(folder))
        self._do(resume, "Queued: starts when a device is free.")

    def on_forget(self) -> None:
        """Take a job that never began off the list."""
        job = self.shown.job
        assert job
        self._do(lambda: self.queue.remove(job.id))

    def on_open_folder(self) -> None:
        """Show the run's files in the system's file manager."""
        if not QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.shown.folder))):
            self.said.emit(f"No program could open the folder {self.shown.folder}")

    def on_copy(self) -> None:
        """Copy the path of the exported file."""
        assert self.shown.glance
        path = str(self.shown.glance.exported)
        QGuiApplication.clipboard().setText(path)
        self.said.emit(f"Copied: {path}")

    def on_preset(self) -> None:
        """Open the run's preset, or that of a job without a run folder."""
        job, written = self.shown.job, self.shown.folder / "preset.json"
        self.open_preset.emit(job.preset if job and not written.exists() else self.shown.folder)

    def _add(self, text: str, keys: str, tip: str, slot: Callable[[], object], role: str = "") -> QAction:
        """An action, and a button that does it."""
        made = action(self, text, slot, keys=keys, tip=tip)
        made.setShortcutContext(Qt.ShortcutContext.WindowShortcut)
        self.row.addWidget(button(made, role))
        return made

    def _do(self, change: Callable[[], object], done: str = "") -> None:
        """Change something and say so, or why that cannot be."""
        try:
            change()
        except ValueError as error:
            done = str(error)
        if done:
            self.said.emit(done)

    def _kill(self, subject: Subject) -> None:
        if subject.job and subject.job.running:
            self.queue.kill(subject.job.id)
        elif subject.glance and subject.glance.process:
            launch.kill(subject.glance.process)

    def _set(self, action: QAction, visible: bool, enabled: bool = True) -> None:
        action.setVisible(visible)
        action.setEnabled(visible and enabled)


def makes_samples(preset: Path) -> bool:
    """Whether a run's preset lets it make sample pictures; a run without a readable preset is taken to do so."""
    try:
        return bool(reading.read_json(preset)["samples"]["enabled"])
    except (OSError, ValueError, KeyError, TypeError):
        return True
