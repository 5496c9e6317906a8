"""The list at the left of the runs page: jobs that run or wait, and all runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QItemSelectionModel, QModelIndex, QPersistentModelIndex, QRect, QSignalBlocker, Qt
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QStyle

from ui.core import words
from ui.core.runs.jobs import Job
from ui.core.runs.states import Glance, State
from ui.pages.runs.state_icon import state_color, state_icon
from ui.widgets import theme
from ui.widgets.making import dressed, scrolled
from ui.widgets.two_lines import BADGE, DETAIL, PADDING, TwoLines

ROW = Qt.ItemDataRole.UserRole
PANEL = QStyle.PrimitiveElement.PE_PanelItemViewItem


@dataclass(frozen=True)
class Row:
    """What the list shows of a job or a run."""

    key: str
    name: str
    state: State
    note: str
    """At the right of the name: when, or how much longer."""
    progress: str
    fraction: float | None
    """Of the steps; None shows no bar."""
    tip: str
    job: str = ""
    folder: str = ""


def job_row(job: Job, glance: Glance | None) -> Row:
    """A job in the queue, with what its run folder tells."""
    state = State.WAITING if job.waiting else glance.status.state if glance else State.STARTING
    device = {"any": "", "all": "all GPUs"}.get(job.device, f"GPU {job.device}")
    steps, fraction = _progress(glance) if glance and not job.waiting else ("resumes" if job.resume else "", None)
    return Row(job.id, job.name, state, device, steps, fraction, str(job.folder), job.id, str(job.folder))


def run_row(glance: Glance) -> Row:
    """A run, or a job that never came to have a folder."""
    state, moment = glance.status.state, glance.last_time or glance.started
    left = words.duration(glance.seconds_left) + " left" if state.alive and glance.seconds_left else ""
    steps, fraction = _progress(glance)
    note = left or (words.when(moment) if moment else "")
    tip = f"{glance.status.sentence}\n{glance.folder}"
    return Row(str(glance.folder), glance.name, state, note, steps, fraction, tip, glance.job, str(glance.folder))


class RunList(QListWidget):
    """Two lines each: name and time, state and progress."""

    def __init__(self, name: str):
        super().__init__()
        dressed(scrolled(self), name=name)
        self.setItemDelegate(_Painter(self, badge="muted"))
        theme.notifier().changed.connect(self.viewport().update)

    def rows(self) -> list[Row]:
        """What is shown."""
        return [self.item(index).data(ROW) for index in range(self.count())]

    def current(self) -> Row | None:
        """The chosen one."""
        item = self.currentItem()
        return item.data(ROW) if item and item.isSelected() else None

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show these; the choice and the scrolled place stay."""
        chosen, before = self.current(), self.rows()
        with QSignalBlocker(self):
            if [row.key for row in before] != [row.key for row in rows]:
                place = self.verticalScrollBar().value()
                self.clear()
                for row in rows:
                    _fill(QListWidgetItem(self), row)
                self.verticalScrollBar().setValue(place)
                if chosen:
                    self.choose(chosen.key)
            else:
                for index, (old, new) in enumerate(zip(before, rows, strict=True)):
                    if old != new:
                        _fill(self.item(index), new)

    def choose(self, key: str) -> bool:
        """Choose a row by its key; whether there is one."""
        for index, row in enumerate(self.rows()):
            if row.key == key:
                self.setCurrentRow(index, QItemSelectionModel.SelectionFlag.ClearAndSelect)
                return True
        return False


def _progress(glance: Glance) -> tuple[str, float | None]:
    if not glance.steps:
        return "", None
    fraction = glance.step / glance.steps if glance.status.state != State.FINISHED else None
    total = f"{words.count(glance.step)} of {words.count(glance.steps)}"
    return (f"{words.count(glance.steps)} steps" if fraction is None else total), fraction


def _fill(item: QListWidgetItem, row: Row) -> None:
    state = " · ".join(filter(None, (row.state.value, row.progress)))
    spoken = ", ".join(filter(None, (row.name, state, row.note)))
    for role, data in ((ROW, row), (DETAIL, state), (BADGE, row.note), (Qt.ItemDataRole.AccessibleTextRole, spoken)):
        item.setData(role, data)
    item.setText(row.name)
    item.setToolTip(row.tip)


class _Painter(TwoLines):
    """Two lines beside the state's icon, and of what is not finished a bar at the bottom."""

    def paint(self, painter: QPainter, option: Any, index: QModelIndex | QPersistentModelIndex) -> None:
        """Qt: a row."""
        row: Row = index.data(ROW)
        option.widget.style().drawPrimitive(PANEL, option, painter, option.widget)
        cell, side = QRect(option.rect), option.fontMetrics.height()
        state_icon(row.state).paint(painter, QRect(cell.left() + PADDING, cell.center().y() - side // 2, side, side))
        option.rect = cell.adjusted(side + PADDING, 0, 0, 0)
        super().paint(painter, option, index)
        if row.fraction is not None:
            bar = QRect(cell.left(), cell.bottom() - 2, cell.width(), 2)
            painter.fillRect(bar, theme.colors().border)
            bar.setWidth(round(cell.width() * min(1.0, row.fraction)))
            painter.fillRect(bar, state_color(row.state))
