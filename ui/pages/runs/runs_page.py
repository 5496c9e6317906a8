"""The runs page: the queue and all runs at the left, the chosen one at the right."""

from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QLabel, QStackedWidget, QWidget

from ui.core.runs.library import Library
from ui.core.runs.queue import Queue
from ui.core.settings import Settings
from ui.pages.runs.live import Live
from ui.pages.runs.row_list import Row
from ui.pages.runs.side import Side
from ui.widgets.making import down, dressed, split

NOTHING = "Select a run to see its curves, samples and messages."
NO_RUNS = (
    "No runs yet.\n\nOpen a preset, change its settings, then press “Train…”. "
    "The run appears in the list and continues when this window is closed."
)
SPLITTER = "runs_splitter"


class RunsPage(QWidget):
    """Chooses the run that works, or the latest one, by itself until the user chooses."""

    open_preset = Signal(Path)

    def __init__(self, queue: Queue, library: Library, settings: Settings):
        super().__init__()
        self.queue, self.library, self.settings = queue, library, settings
        self.wanted: Path | None = None
        """A run that is to be chosen as soon as it is listed."""
        self.side, self.live = Side(queue, library), Live(queue, library)
        self.empty = dressed(QLabel(alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True, margin=60), "muted")
        self.right = QStackedWidget()
        self.right.addWidget(self.empty)
        self.right.addWidget(self.live)
        self.split = split((self.side, 0), (self.right, 1))
        unit = self.fontMetrics().averageCharWidth()
        self.split.setSizes([unit * 37, unit * 91])
        self.split.restoreState(settings.state(SPLITTER))
        down(self.split, of=self, margins=(0, 0, 0, 0))
        self.split.splitterMoved.connect(self.on_splitter_moved)
        self.side.chosen.connect(self.on_chosen)
        self.side.said.connect(self.live.say)
        self.live.open_preset.connect(self.open_preset)
        library.changed.connect(self.on_library_changed)
        queue.changed.connect(self.on_library_changed)
        queue.problem.connect(self.live.say)
        library.problem.connect(self.live.say)
        self.on_library_changed()

    @property
    def run_actions(self) -> tuple[QAction, ...]:
        """What can be done with the chosen run, for a menu."""
        return tuple(self.live.controls.actions())

    @property
    def queue_actions(self) -> tuple[QAction, ...]:
        """What can be done with the chosen job, for a menu."""
        return self.side.actions_of_queue

    def show_run(self, folder: Path) -> None:
        """Choose a run, for instance the one that was just queued."""
        if self.side.choose(folder):
            self.on_chosen(self.side.row())  # the list says nothing if it was chosen there already
        else:
            self.wanted = folder
            self.live.show_run(folder)
            self.right.setCurrentWidget(self.live)

    def on_chosen(self, row: Row | None) -> None:
        """Show the chosen run."""
        if row:
            self.wanted = None
            self.live.show_run(Path(row.folder), row.job)
            self.right.setCurrentWidget(self.live)
        else:
            self.live.close_run()
            self.empty.setText(NOTHING if self.library.glances or self.queue.jobs else NO_RUNS)
            self.right.setCurrentWidget(self.empty)

    def on_library_changed(self) -> None:
        """Choose something if nothing is chosen: what runs, else the latest."""
        if self.wanted:
            if self.side.choose(self.wanted):
                self.wanted = None
            return
        row = self.side.row()
        if row and self.right.currentWidget() is self.live and self.live.folder == Path(row.folder):
            return
        rows = [*self.side.jobs.rows(), *self.side.runs.rows()]
        shown = self.live.folder
        if not row and shown and (self.side.choose(shown) or self.library.glance(shown)):
            return  # its job has ended, or the filter hides it: who looks at it goes on looking at it
        if row or not rows:
            self.on_chosen(row)
        elif not self.library.is_loaded:
            return
        else:
            alive = [one for one in rows if one.state.alive]
            self.side.choose(Path((alive or self.side.runs.rows() or rows)[0].folder))

    def on_splitter_moved(self) -> None:
        """Remember how wide the list is."""
        self.settings.keep(SPLITTER, self.split.saveState())
