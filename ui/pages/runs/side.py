"""The left of the runs page: the queue with its buttons, and the runs with a filter."""

from pathlib import Path

from PySide6.QtCore import QModelIndex, QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtWidgets import QLabel, QLineEdit, QPushButton, QWidget

from ui.core.runs.library import Library
from ui.core.runs.queue import Queue
from ui.pages.runs.row_list import Row, RunList, job_row, run_row
from ui.widgets import dialogs
from ui.widgets.making import across, action, button, down, dressed, say

NO_RUNS = "No runs yet. Open a preset, then press “Train…”."
NO_MATCH = "No matching runs"


class Side(QWidget):
    """Chooses what the rest of the page shows."""

    chosen = Signal(object)
    """The row, or None."""
    said = Signal(str)
    """A sentence: why something could not be done."""

    def __init__(self, queue: Queue, library: Library):
        super().__init__()
        self.queue, self.library = queue, library
        self.jobs, self.runs = RunList("Queue"), RunList("Runs")
        self.jobs.setDragDropMode(RunList.DragDropMode.InternalMove)
        tip = "Start no more jobs; running jobs continue"
        self.pause = dressed(QPushButton("Pause queue"), tip=tip, checkable=True)
        self.watching = dressed(QLabel(wordWrap=True), "note")
        self.no_jobs = dressed(QLabel("Queue is empty", wordWrap=True), "muted")
        self.no_runs = dressed(QLabel(wordWrap=True), "muted")
        self.filter = dressed(QLineEdit(clearButtonEnabled=True), name="Filter runs by name, method or family")
        self.filter.setPlaceholderText("Filter runs")
        self.up = action(self.jobs, "Move up", lambda: self.shift(-1), "up", "Alt+Up", "Move up")
        self.down = action(self.jobs, "Move down", lambda: self.shift(1), "down", "Alt+Down", "Move down")
        self.first = action(self.jobs, "Run next", self.run_next, "next", "Alt+Home", "Run next")
        take_out = "Remove from the queue"
        self.cancel = action(self.jobs, take_out, self.remove, "remove", "Del", take_out)
        self.actions_of_queue = (self.up, self.down, self.first, self.cancel)
        self._lay_out()
        self._connect()
        self.refresh()

    def refresh(self) -> None:
        """Show the queue and the runs as they are."""
        jobs = self.queue.jobs
        self.jobs.set_rows([job_row(job, self.library.glance(job.folder)) for job in jobs])
        for index, job in enumerate(jobs):
            item = self.jobs.item(index)
            movable = Qt.ItemFlag.ItemIsDragEnabled if job.waiting and self.queue.drives else Qt.ItemFlag(0)
            flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | movable
            if item.flags() != flags:
                with QSignalBlocker(self.jobs):
                    item.setFlags(flags)
        wanted = self.filter.text().strip().lower()
        glances = self.library.glances
        self.runs.set_rows(
            [run_row(one) for one in glances if wanted in f"{one.name} {one.method} {one.family}".lower()]
        )
        self.jobs.setVisible(bool(jobs))
        self.no_jobs.setVisible(not jobs)
        rows = max(1, min(5, len(jobs)))
        self.jobs.setFixedHeight(self.jobs.sizeHintForRow(0) * rows + 2 * self.jobs.frameWidth() if jobs else 0)
        say(self.no_runs, "" if self.runs.count() else NO_MATCH if glances else NO_RUNS)
        self.runs.setVisible(bool(self.runs.count()))
        say(self.watching, self.queue.watching_sentence)
        with QSignalBlocker(self.pause):
            self.pause.setChecked(self.queue.paused)
        self.pause.setText("Queue paused" if self.queue.paused else "Pause queue")
        self.pause.setEnabled(self.queue.drives)
        self._enable()

    def row(self) -> Row | None:
        """The chosen one."""
        return self.jobs.current() or self.runs.current()

    def choose(self, folder: Path) -> bool:
        """Choose a run by its folder, or its job in the queue; whether there is one."""
        if self.runs.choose(str(folder)):
            return True
        return any(self.jobs.choose(row.key) for row in self.jobs.rows() if row.folder == str(folder))

    def shift(self, by: int) -> None:
        """Move the chosen job."""
        job = self._job().job
        self._do(lambda: self.queue.move(job, self._waiting().index(job) + by))

    def run_next(self) -> None:
        """Put the chosen job before all others that wait."""
        job = self._job().job
        self._do(lambda: self.queue.run_next(job))

    def remove(self) -> None:
        """Ask, then forget the chosen waiting job."""
        row = self._job()
        question = f"Remove “{row.name}” from the queue?"
        details = "It will not be trained. Its preset is not changed."
        take_out = lambda: self._do(lambda: self.queue.remove(row.job))  # noqa: E731
        dialogs.confirm(self, "Remove from the queue", question, details, "&Remove", take_out)

    def on_selected(self, chosen: RunList, other: RunList) -> None:
        """Only one of the two lists has a choice."""
        if chosen.current():
            with QSignalBlocker(other):
                other.clearSelection()
        self._enable()
        self.chosen.emit(self.row())

    def on_rows_moved(self, _p: QModelIndex, start: int, _end: int, _q: QModelIndex, to: int) -> None:
        """A job was dragged: tell the queue, after the list has done with the drop. Running jobs stay in front."""
        place = to - 1 if to > start else to
        job, running = self.jobs.rows()[place].job, sum(one.running for one in self.queue.jobs)
        QTimer.singleShot(0, self, lambda: self._do(lambda: self.queue.move(job, max(0, place - running))))

    def on_pause_toggled(self, paused: bool) -> None:
        """Start no further jobs, or go on."""

        def pause() -> None:
            self.queue.paused = paused

        self._do(pause)

    def _do(self, change) -> None:
        """Change the queue, or say why that cannot be."""
        try:
            change()
        except ValueError as error:
            self.said.emit(str(error))
        self.refresh()

    def _job(self) -> Row:
        row = self.jobs.current()
        assert row  # or the actions are disabled
        return row

    def _waiting(self) -> list[str]:
        return [job.id for job in self.queue.jobs if job.waiting]

    def _enable(self) -> None:
        row, drives, waiting = self.jobs.current(), self.queue.drives, self._waiting()
        place = waiting.index(row.job) if row and row.job in waiting else -1
        self.up.setEnabled(drives and place > 0)
        self.first.setEnabled(drives and place > 0)
        self.down.setEnabled(drives and 0 <= place < len(waiting) - 1)
        self.cancel.setEnabled(drives and place >= 0)

    def _lay_out(self) -> None:
        self.jobs.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        buttons = (button(one, "flat", one.text()) for one in self.actions_of_queue)
        head = across(dressed(QLabel("Queue"), "heading"), None, *buttons, self.pause)
        queue = (head, self.watching, self.jobs, self.no_jobs, 8)
        runs = (dressed(QLabel("Runs"), "heading"), self.filter, (self.runs, 1), self.no_runs)
        down(*queue, *runs, of=self, margins=(12, 12, 12, 12)).addStretch(0)

    def _connect(self) -> None:
        self.jobs.itemSelectionChanged.connect(lambda: self.on_selected(self.jobs, self.runs))
        self.runs.itemSelectionChanged.connect(lambda: self.on_selected(self.runs, self.jobs))
        self.jobs.model().rowsMoved.connect(self.on_rows_moved)
        self.pause.toggled.connect(self.on_pause_toggled)
        self.filter.textChanged.connect(self.refresh)
        self.queue.changed.connect(self.refresh)
        self.library.changed.connect(self.refresh)
