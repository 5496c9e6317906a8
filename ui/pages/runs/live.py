"""One run as it is now: its state in words, its numbers, what can be done with it, and everything it writes."""

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtWidgets import QLabel, QProgressBar, QTabWidget, QWidget

from ui.core import words, workers
from ui.core.runs.history import Curve, History
from ui.core.runs.jobs import Job
from ui.core.runs.library import Library
from ui.core.runs.queue import Queue
from ui.core.runs.states import Glance, State
from ui.core.runs.tail import Follower
from ui.pages.runs.controls import Controls, Subject, makes_samples
from ui.pages.runs.curves_tab import CurvesTab
from ui.pages.runs.gallery import Gallery
from ui.pages.runs.log import Log
from ui.pages.runs.messages import Messages
from ui.pages.runs.state_icon import state_color, state_icon, state_role
from ui.widgets import theme
from ui.widgets.elided import Elided
from ui.widgets.making import across, down, dressed, plain, say

FACTS: tuple[str, ...] = ("Epoch", "Speed", "Time left", "Memory", "Loss", "Validation")
SLOW = 300
"""Milliseconds that the curves of the run before may stay; a shorter gap would only flicker."""


class Live(QWidget):
    """Follows the run of one folder, or tells of a job that has none yet."""

    open_preset = Signal(Path)

    def __init__(self, queue: Queue, library: Library):
        super().__init__()
        self.queue, self.library = queue, library
        self.folder: Path | None = None
        self.job_id = ""
        self.state: State | None = None
        self.samples, self.loaded = True, False
        self.follower: Follower | None = None
        self.name = dressed(Elided(textFormat=Qt.TextFormat.PlainText), "title")
        self.icon, self.word, self.progress = QLabel(), QLabel(), QLabel()
        self.sentence, self.about, self.answer = (dressed(plain(), role) for role in ("", "muted", "muted"))
        self.bar = dressed(QProgressBar(textVisible=False), name="Progress of the run")
        self.bar.setMaximumHeight(self.fontMetrics().height())
        self.facts = {fact: plain("–") for fact in FACTS}
        self.facts["Loss"].setToolTip("Running average")
        self.facts["Validation"].setToolTip("Validation loss, and its change since before training")
        self.controls = Controls(queue)
        self.curves, self.gallery, self.messages, self.log = CurvesTab(), Gallery(), Messages(), Log()
        self.tabs = QTabWidget(documentMode=True)
        tabs = {"Curves": self.curves, "Samples": self.gallery, "Messages": self.messages, "Log": self.log}
        for name, widget in tabs.items():
            self.tabs.addTab(widget, name)
        self._lay_out()
        self.controls.said.connect(self.say)
        self.controls.said.connect(library.refresh)
        self.controls.open_preset.connect(self.open_preset)
        self.controls.show_log.connect(lambda: self.tabs.setCurrentWidget(self.log))
        library.changed.connect(self.refresh)
        queue.changed.connect(self.refresh)
        theme.notifier().changed.connect(self.refresh)

    def show_run(self, folder: Path, job: str = "") -> None:
        """Follow the run in this folder from now on."""
        if folder != self.folder:
            self.close_run()
            self.folder = folder
            self.say("")
            self.follower = Follower(folder, self)
            self.follower.grew.connect(self.on_grew)
            self.follower.loaded.connect(self.on_loaded)
            self.follower.problem.connect(self.say)
            self._read_preset()
            self.job_id = job
            self.on_grew()
            QTimer.singleShot(SLOW, self.follower, self.on_slow)
        self.job_id = job
        self.refresh()

    def close_run(self) -> None:
        """Follow nothing."""
        if self.follower:
            self.follower.close()
            self.follower.deleteLater()
        self.follower, self.folder, self.job_id, self.state, self.loaded = None, None, "", None, False
        self.controls.show_subject(None)
        self.log.show_file(None)
        self.gallery.show_samples(Path(), [])
        self._show_messages(History())

    def refresh(self) -> None:
        """Bring the state, and what depends on it, up to date."""
        if not self.folder:
            return
        glance, job = self.library.glance(self.folder), self._job()
        if job and job.waiting:
            state, sentence = State.WAITING, self.queue.waits(job)
        elif glance:
            state, sentence = glance.status.state, glance.status.sentence
        elif job and job.ended:
            state, sentence = job.ended.state, job.ended.sentence
        else:
            state, sentence = State.STARTING, "The trainer is starting."
        if self.state and self.state != state:
            self.say("")
            self._read_preset()
        self.state = state
        self.name.setText(glance.name if glance else job.name if job else self.folder.name)
        self._show_state(state, sentence)
        say(self.about, _about(glance))
        self.about.setToolTip(glance.description if glance else "")
        self.controls.show_subject(Subject(self.folder, state, glance, job, self.samples))
        self.log.show_file(_log_file(self.folder, job))
        self._show_numbers()
        self._show_curves()

    def on_grew(self) -> None:
        """Show what the run has written."""
        if not self.folder:
            return
        history = self._history()
        self._show_numbers()
        if not self.loaded:  # of a long run only the progress; the rest at once when all is there
            return
        self.controls.answer(history)
        self._show_curves()
        self.gallery.show_samples(self.folder, history.samples)
        self._show_messages(history)

    def on_loaded(self) -> None:
        """Everything until now has been read."""
        self.loaded = True
        self.on_grew()

    def on_slow(self) -> None:
        """A run was chosen a moment ago: if it is long, the curves of the one before have to go."""
        if not self.loaded:
            self.curves.wait()

    def say(self, sentence: str) -> None:
        """Answer to what was pressed."""
        say(self.answer, sentence)

    def _history(self) -> History:
        return self.follower.history if self.follower else History()

    def _job(self) -> Job | None:
        glance = self.library.glance(self.folder) if self.folder else None
        return self.queue.job(self.job_id or (glance.job if glance else ""))

    def _read_preset(self) -> None:
        """Find out, in a worker, whether the run makes samples."""
        folder = self.folder
        assert folder

        def arrived(samples: bool) -> None:
            if folder == self.folder and samples != self.samples:
                self.samples = samples
                self.refresh()

        workers.run(makes_samples, folder / "preset.json", done=arrived, failed=self.say)

    def _show_state(self, state: State, sentence: str) -> None:
        side = self.fontMetrics().height()
        self.icon.setPixmap(state_icon(state).pixmap(side, side))
        self.word.setText(state.value)
        self.word.setStyleSheet(f"color: {state_color(state).name()}; font-weight: 600;")
        self.sentence.setText(sentence)
        theme.set_role(self.sentence, state_role(state) if state != State.FINISHED else "")

    def _show_curves(self) -> None:
        if self.folder and self.loaded:
            self.curves.show_run((self.folder, self.name.text(), self._history()), self.library.glances)

    def _show_messages(self, history: History) -> None:
        self.messages.show_history(history)
        problems = self.messages.problems()
        self.tabs.setTabText(self.tabs.indexOf(self.messages), f"Messages ({problems})" if problems else "Messages")

    def _show_numbers(self) -> None:
        """The progress bar and the facts."""
        history = self._history()
        glance = self.library.glance(self.folder) if self.folder else None
        step = history.step or (glance.step if glance else 0)
        steps = history.steps or (glance.steps if glance else 0)
        busy = not steps and self.state is not None and self.state.alive
        self.bar.setRange(0, steps if steps or busy else 1)
        self.bar.setValue(step)
        total = f"Step {words.count(step)} of {words.count(steps)}"
        self.progress.setText(total if steps else "No steps yet")
        for fact, text in _facts(history, self.state).items():
            self.facts[fact].setText(text)

    def _lay_out(self) -> None:
        facts = across()
        for fact, value in self.facts.items():
            value.setAccessibleName(fact)
            both = down(dressed(QLabel(fact), "muted"), value)
            both.setSpacing(0)
            facts.addLayout(both, 1)
        head, progress = across((self.name, 1), self.icon, self.word), across((self.bar, 1), self.progress)
        about, below = (head, self.sentence, self.about), (self.controls, self.answer, (self.tabs, 1))
        down(*about, progress, facts, *below, of=self, margins=(12, 12, 12, 12)).setSpacing(6)
        self.answer.hide()


def _about(glance: Glance | None) -> str:
    """Family, method and when."""
    if not glance:
        return ""
    parts: Sequence[str] = (glance.family, glance.method, words.when(glance.started) if glance.started else "")
    lines = (" · ".join(part for part in parts if part), glance.problem)
    return "\n".join(line for line in lines if line)


def _facts(history: History, state: State | None) -> dict[str, str]:
    """The numbers above the tabs; a dash where there is none."""
    facts: dict[str, str] = dict.fromkeys(FACTS, "–")
    last = history.latest
    if last:
        speed, left = float(last["seconds_per_step"]), float(last["seconds_left"])
        facts["Epoch"] = f"{last['epoch']:.2f}"
        facts["Speed"] = f"{speed:.2f} s per step" if speed >= 0.5 else f"{1 / max(speed, 1e-9):.1f} steps per s"
        facts["Time left"] = words.duration(left) if state and state.alive else "–"
        facts["Memory"] = words.size(float(last["memory_mb"]) * 2**20)
        facts["Loss"] = _number(last["loss_average"])
    if values := history.curves.get("validation", Curve()).values:  # none after a resume from before the first
        value = values[-1]
        base = history.baseline
        facts["Validation"] = _number(value) + (f" ({value / base - 1:+.1%})" if base and value == value else "")
    return facts


def _number(value: float | None) -> str:
    return "non-finite" if value is None or value != value else f"{value:.4f}"


def _log_file(folder: Path, job: Job | None) -> Path | None:
    """The run's log; of a job that never had one, what its process printed."""
    if (folder / "log.txt").exists():
        return folder / "log.txt"
    return job.output if job and not job.waiting else None
