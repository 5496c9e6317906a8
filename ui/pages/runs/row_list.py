"""The list at the left of the runs page: jobs that run or wait, and all runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QItemSelectionModel, QModelIndex, QPersistentModelIndex, QRect, QSignalBlocker, QSize, Qt
from PySide6.QtGui import QColor, QFont, QPainter
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QStyle, QStyledItemDelegate, QStyleOptionViewItem

from ui.core import words
from ui.core.runs.jobs import Job
from ui.core.runs.states import Glance, State
from ui.pages.runs.state_icon import state_color, state_icon
from ui.widgets import theme

ROW = Qt.ItemDataRole.UserRole


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
        self.setAccessibleName(name)
        self.setItemDelegate(_Painter(self))
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QListWidget.ScrollMode.ScrollPerPixel)
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
    item.setData(ROW, row)
    item.setToolTip(row.tip)
    spoken = ", ".join(filter(None, (row.name, row.state.value, row.progress, row.note)))
    item.setData(Qt.ItemDataRole.AccessibleTextRole, spoken)


class _Painter(QStyledItemDelegate):
    """Paints a row."""

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        line = option.fontMetrics.height()  # pyright: ignore[reportAttributeAccessIssue]
        return QSize(line * 8, round(line * 2.9))

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        row: Row = index.data(ROW)
        style = option.widget.style()  # pyright: ignore[reportAttributeAccessIssue]
        style.drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)  # pyright: ignore[reportAttributeAccessIssue]
        cell: QRect = option.rect  # pyright: ignore[reportAttributeAccessIssue]
        line = option.fontMetrics.height()  # pyright: ignore[reportAttributeAccessIssue]
        box = cell.adjusted(line // 2, line // 3, -line // 2, -line // 3)
        top = QRect(box.left(), box.top(), box.width(), line)
        bottom = QRect(box.left(), box.bottom() - line, box.width(), line)
        painter.save()
        colors = theme.colors()
        used = _text(painter, top, row.note, colors.muted, right=True)
        _text(painter, top.adjusted(0, 0, -used, 0), row.name, colors.text, bold=True)
        icon = QRect(bottom.left(), bottom.top(), line, line)
        state_icon(row.state).paint(painter, icon)
        used = _text(painter, bottom, row.progress, colors.muted, right=True)
        words_box = bottom.adjusted(line + line // 3, 0, -used, 0)
        width = _text(painter, words_box, row.state.value, state_color(row.state))
        if row.fraction is not None:
            bar = words_box.adjusted(width, line // 2 - 2, -line // 3, 0)
            bar.setHeight(4)
            _bar(painter, bar, row.fraction, state_color(row.state))
        painter.restore()


def _text(painter: QPainter, box: QRect, text: str, color: QColor, right: bool = False, bold: bool = False) -> int:
    """Write elided text at one side of a box; how much of its width that takes."""
    font = QFont(painter.font())
    font.setWeight(QFont.Weight.DemiBold if bold else QFont.Weight.Normal)
    painter.setFont(font)
    painter.setPen(color)
    metrics = painter.fontMetrics()
    shown = metrics.elidedText(text, Qt.TextElideMode.ElideRight, box.width())
    side = Qt.AlignmentFlag.AlignRight if right else Qt.AlignmentFlag.AlignLeft
    painter.drawText(box, side | Qt.AlignmentFlag.AlignVCenter, shown)
    return metrics.horizontalAdvance(shown) + (metrics.averageCharWidth() if shown else 0)


def _bar(painter: QPainter, box: QRect, fraction: float, color: QColor) -> None:
    if box.width() < 8:
        return
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(theme.colors().border)
    painter.drawRoundedRect(box, 2, 2)
    painter.setBrush(color)
    painter.drawRoundedRect(QRect(box.topLeft(), QSize(round(box.width() * min(1.0, fraction)), box.height())), 2, 2)
