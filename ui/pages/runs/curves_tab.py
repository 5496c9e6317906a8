"""Which runs are drawn beside the one that is looked at, and the tab with the curves of them all."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtGui import QIcon, QPixmap, QShowEvent
from PySide6.QtWidgets import QLabel, QListWidget, QListWidgetItem, QPushButton, QStackedWidget, QWidget

from ui.core import workers
from ui.core.runs.history import History
from ui.core.runs.states import Glance
from ui.core.runs.tail import Follower
from ui.widgets import theme
from ui.widgets.making import across, down, dressed, with_icon

if TYPE_CHECKING:
    from ui.pages.runs.plots import Curves

FOLDER = Qt.ItemDataRole.UserRole
ZOOMING = (
    "Show all steps again (Ctrl+0). Wheel: zoom, over an axis only that axis; drag: move; drag with the right button: "
    "stretch; Ctrl++ and Ctrl+-: zoom the steps"
)


class ComparePanel(QWidget):
    """A list of runs to tick. A ticked run is followed and has a colour of its own."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.current: Path | None = None
        self.followers: dict[Path, tuple[Follower, int]] = {}
        """Of the ticked runs, with their colours."""
        self.list = dressed(QListWidget(), name="Runs to compare with", spacing=2)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.note = dressed(QLabel("Compare with:", wordWrap=True), "muted")
        down(self.note, (self.list, 1), of=self, margins=(8, 6, 0, 4))
        self.setFixedWidth(self.fontMetrics().averageCharWidth() * 26)
        self.list.itemChanged.connect(self.on_item_changed)
        theme.notifier().changed.connect(self.paint_colors)

    def set_runs(self, glances: Sequence[Glance], current: Path | None) -> None:
        """Offer these runs; the current one is always drawn, in the first colour."""
        if current != self.current and current in self.followers:
            self.followers.pop(current)[0].close()
        self.current = current
        offered = [(glance.folder, glance.name) for glance in glances if glance.folder != current]
        for folder in self.followers.keys() - {folder for folder, _ in offered}:
            self.followers.pop(folder)[0].close()
        shown = [(item.data(FOLDER), item.text()) for item in self._items()]
        if offered == shown:
            return
        with QSignalBlocker(self.list):
            self.list.clear()
            for folder, name in offered:
                item = QListWidgetItem(name, self.list)
                item.setData(FOLDER, folder)
                item.setToolTip(str(folder))
                item.setCheckState(Qt.CheckState.Checked if folder in self.followers else Qt.CheckState.Unchecked)
        self.paint_colors()

    def histories(self) -> list[tuple[Path, str, History, int]]:
        """Folder, name, history and colour of every ticked run."""
        names = {item.data(FOLDER): item.text() for item in self._items()}
        return [(path, names[path], one.history, color) for path, (one, color) in self.followers.items()]

    def on_item_changed(self, item: QListWidgetItem) -> None:
        """Follow a run that was ticked, leave one that was unticked."""
        folder, ticked = item.data(FOLDER), item.checkState() == Qt.CheckState.Checked
        free = sorted({*range(1, len(theme.colors().series))} - {color for _, color in self.followers.values()})
        if ticked and folder not in self.followers and free:
            follower = Follower(folder, self)
            self.followers[folder] = (follower, free[0])
            follower.grew.connect(self.changed)
            follower.loaded.connect(self.changed)
        elif not ticked and folder in self.followers:
            self.followers.pop(folder)[0].close()
        if ticked and not free:
            self.note.setText(f"{len(theme.colors().series)} runs can be compared at most.")
            item.setCheckState(Qt.CheckState.Unchecked)
        self.paint_colors()
        self.changed.emit()

    def paint_colors(self) -> None:
        """A square in the curve's colour beside each ticked run."""
        side = self.fontMetrics().height() * 2 // 3
        with QSignalBlocker(self.list):
            for item in self._items():
                swatch, (_, color) = QPixmap(side, side), self.followers.get(item.data(FOLDER), (None, 0))
                swatch.fill(theme.colors().series[color] if color else Qt.GlobalColor.transparent)
                item.setIcon(QIcon(swatch))

    def _items(self) -> list[QListWidgetItem]:
        return [self.list.item(row) for row in range(self.list.count())]


class CurvesTab(QWidget):
    """The curves, which are made when they are first looked at: what draws them takes a while to load."""

    def __init__(self) -> None:
        super().__init__()
        self.curves: Curves | None = None
        self.run: tuple[Path, str, History] | None = None
        self.loading: workers.Task | None = None
        self.note = dressed(QLabel(wordWrap=True, margin=40, alignment=Qt.AlignmentFlag.AlignCenter), "muted")
        self.note.setText("Loading the curves…")
        self.stack = QStackedWidget()
        self.stack.addWidget(self.note)
        self.panel = ComparePanel()
        self.panel.hide()
        self.panel.changed.connect(self.draw)
        compare = dressed(QPushButton("Compare"), tip="Compare with other runs", checkable=True)
        self.compare = with_icon(compare, "chart")
        self.compare.toggled.connect(self.on_compare_toggled)
        self.reset = with_icon(dressed(QPushButton("Reset view"), tip=ZOOMING), "reset")
        across((self.stack, 1), self.panel, of=self, margins=(0, 0, 0, 0))

    def show_run(self, run: tuple[Path, str, History] | None, glances: Sequence[Glance]) -> None:
        """Draw this run (folder, name, history), and offer the others for comparison."""
        another = (self.run and self.run[0]) != (run and run[0])
        self.run = run
        self.panel.set_runs([one for one in glances if one.step], run[0] if run else None)
        self.draw()
        if another and self.curves:
            self.curves.reset_view()

    def wait(self) -> None:
        """The run's steps are still being read: do not show another's."""
        self.note.setText("Reading the steps…")
        self.stack.setCurrentWidget(self.note)

    def draw(self) -> None:
        """Bring the plots up to date if they can be seen."""
        if not self.curves or not self.isVisible():
            return
        from ui.pages.runs.plots import Shown

        ticked = self.panel.histories() if self.compare.isChecked() else []
        others = {path: Shown(name, history.curves, color) for path, name, history, color in ticked}
        main = {self.run[0]: Shown(self.run[1], self.run[2].curves, 0)} if self.run else {}
        self.curves.show_runs(main | others)
        empty = not any(run.curves for run in (main | others).values())
        self.note.setText("No steps yet")
        self.stack.setCurrentWidget(self.note if empty else self.curves)

    def showEvent(self, event: QShowEvent) -> None:
        """Load what draws curves, the first time; later only draw what has come meanwhile."""
        super().showEvent(event)
        if self.curves or self.loading:
            self.draw()
        else:
            self.loading = workers.run(_load, done=self.on_loaded, failed=self.note.setText)
            self.destroyed.connect(self.loading.cancel)

    def on_loaded(self, kind: "type[Curves]") -> None:
        """Make the plots."""
        self.curves = kind()
        self.curves.bottom_bar.addWidget(self.reset)
        self.curves.bottom_bar.addWidget(self.compare)
        self.reset.clicked.connect(self.curves.reset_view)
        self.stack.addWidget(self.curves)
        self.draw()

    def on_compare_toggled(self, compare: bool) -> None:
        """Show the list and the ticked runs, or neither; the ticks stay."""
        self.panel.setVisible(compare)
        self.draw()


def _load() -> "type[Curves]":
    """The import that takes over half a second, in a worker."""
    from ui.pages.runs.plots import Curves

    return Curves
