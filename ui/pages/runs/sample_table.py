"""Sample pictures as a table, a row for each prompt and a column for each step, read while they are looked at."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, QRect, QSize, Qt, Signal
from PySide6.QtGui import QImage, QImageReader, QPainter, QPen, QPixmap
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableView,
)

from ui.core import workers
from ui.core.runs.history import Sample
from ui.widgets import theme

Index = QModelIndex | QPersistentModelIndex
NOWHERE = QModelIndex()
KEPT = 800
"""How many small pictures are remembered."""

NONE = "–"
"""In the place of a sample that was not made."""


def read_picture(path: Path, side: int = 0) -> QImage:
    """The picture, at most `side` wide and high (0: as it is)."""
    reader = QImageReader(str(path))
    reader.setAutoTransform(True)
    size = reader.size()
    if side and size.isValid() and max(size.width(), size.height()) > side:
        reader.setScaledSize(size.scaled(side, side, Qt.AspectRatioMode.KeepAspectRatio))
    image = reader.read()
    if image.isNull():
        raise ValueError(f"{path.name} cannot be shown: {reader.errorString()}")
    return image


class SamplesModel(QAbstractTableModel):
    """The samples of a run by prompt and step. Small pictures are read in workers when they are asked for."""

    def __init__(self, side: int, parent: QObject | None = None):
        super().__init__(parent)
        self.side = side
        self.folder = Path()
        self.steps: list[int] = []
        self.prompts: list[tuple[int, str]] = []
        self._cells: dict[tuple[int, str, int], Sample] = {}
        self._samples: list[Sample] = []
        self._pictures: OrderedDict[str, QPixmap | str] = OrderedDict()
        self._reading: dict[str, workers.Task] = {}

    def set_samples(self, folder: Path, samples: Sequence[Sample]) -> bool:
        """Show these; whether anything is new. Pictures that a resumed run made again are read again."""
        known = self._samples if folder == self.folder else []
        if len(known) == len(samples) and all(a is b for a, b in zip(known, samples, strict=True)) and known:
            return False
        kept = {str(folder / new.path) for old, new in zip(known, samples, strict=False) if old is new}
        for path in [path for path in self._pictures if path not in kept]:
            del self._pictures[path]
        for path in [path for path in self._reading if path not in kept]:
            self._reading.pop(path).cancel()
        self.folder, self._samples = folder, list(samples)
        steps = sorted({sample.step for sample in samples})
        prompts = sorted({(sample.index, sample.prompt) for sample in samples})
        cells = {(sample.index, sample.prompt, sample.step): sample for sample in samples}
        grown = prompts == self.prompts and self.steps == steps[: len(self.steps)] and len(steps) > len(self.steps)
        if grown:
            self.beginInsertColumns(NOWHERE, len(self.steps), len(steps) - 1)
        else:
            self.beginResetModel()
        self.steps, self.prompts, self._cells = steps, prompts, cells
        self.endInsertColumns() if grown else self.endResetModel()
        return True

    def sample(self, row: int, step: int) -> Sample | None:
        """The sample of a prompt at a step, if it was made."""
        return self._cells.get((*self.prompts[row], step)) if row < len(self.prompts) else None

    def path(self, sample: Sample) -> Path:
        """Where its picture is."""
        return self.folder / sample.path

    def rowCount(self, parent: Index = NOWHERE) -> int:
        """One for each prompt."""
        return 0 if parent.isValid() else len(self.prompts)

    def columnCount(self, parent: Index = NOWHERE) -> int:
        """One for each step with samples."""
        return 0 if parent.isValid() else len(self.steps)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The step above, the prompt on the left.

        While the model is reset, one header is asked for sections that only the other one knows to be gone; an
        exception here would end the program.
        """
        if section >= len(self.steps if orientation == Qt.Orientation.Horizontal else self.prompts):
            return None
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return step_text(self.steps[section])
        if orientation == Qt.Orientation.Vertical and role in (
            Qt.ItemDataRole.DisplayRole,
            Qt.ItemDataRole.ToolTipRole,
        ):
            return self.prompts[section][1] or "(empty prompt)"
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The picture, a sentence why there is none, or nothing yet."""
        sample = self.sample(index.row(), self.steps[index.column()])
        if role in (Qt.ItemDataRole.AccessibleTextRole, Qt.ItemDataRole.ToolTipRole):
            return f"{step_text(sample.step)}: {sample.prompt}" if sample else "no sample was made at this step"
        if role == Qt.ItemDataRole.DecorationRole:
            return self._picture(str(self.path(sample))) if sample else NONE
        return None

    def _picture(self, path: str) -> QPixmap | str | None:
        if path in self._pictures:
            self._pictures.move_to_end(path)
            return self._pictures[path]
        if path not in self._reading:

            def arrived(thing: QImage | str) -> None:
                self._reading.pop(path, None)
                self._pictures[path] = thing if isinstance(thing, str) else QPixmap.fromImage(thing)
                while len(self._pictures) > KEPT:
                    self._pictures.popitem(last=False)
                last = self.index(len(self.prompts) - 1, len(self.steps) - 1)
                self.dataChanged.emit(self.index(0, 0), last)

            self._reading[path] = workers.run(read_picture, Path(path), self.side, done=arrived, failed=arrived)
        return None


class SampleTable(QTableView):
    """A table of sample pictures."""

    opened = Signal(int, int)
    """Row and column of a picture that was clicked, or on which Enter was pressed."""

    def __init__(self, model: SamplesModel):
        super().__init__()
        self.setModel(model)
        self.setItemDelegate(_Painter(model.side, self))
        self.setVerticalHeader(_Prompts(self))
        self.setShowGrid(False)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setTabKeyNavigation(False)
        cell = model.side + 8
        for header in (self.horizontalHeader(), self.verticalHeader()):
            header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
            header.setDefaultSectionSize(cell)
            header.setHighlightSections(False)
        self.verticalHeader().setFixedWidth(round(cell * 1.2))
        self.setCornerButtonEnabled(False)
        self.setStyleSheet("QTableCornerButton::section { background: transparent; border: none; }")
        self.clicked.connect(self.on_opened)
        self.activated.connect(self.on_opened)

    def on_opened(self, index: QModelIndex) -> None:
        """Say which picture is wanted."""
        self.opened.emit(index.row(), index.column())


def step_text(step: int) -> str:
    """A column's name."""
    return f"Step {step:,}" if step else "Before training"


class _Painter(QStyledItemDelegate):
    """Paints a picture in the middle of its cell."""

    def __init__(self, side: int, parent: QObject):
        super().__init__(parent)
        self.side = side

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """The picture and a margin."""
        return QSize(self.side + 8, self.side + 8)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """The picture, or why there is none."""
        colors = theme.colors()
        cell: QRect = option.rect  # pyright: ignore[reportAttributeAccessIssue]
        box = cell.adjusted(4, 4, -4, -4)
        thing = index.data(Qt.ItemDataRole.DecorationRole)
        if isinstance(thing, QPixmap):
            size = thing.size().scaled(box.size(), Qt.AspectRatioMode.KeepAspectRatio)
            target = QRect(box.topLeft(), size)
            target.moveCenter(box.center())
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, thing.width() > size.width() // 2)
            painter.drawPixmap(target, thing)
        else:
            painter.fillRect(box, colors.window)
            painter.setPen(colors.bad if thing and thing != NONE else colors.muted)
            flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            painter.drawText(box.adjusted(4, 4, -4, -4), flags, thing or "…")
        state = option.state  # pyright: ignore[reportAttributeAccessIssue]
        if state & QStyle.StateFlag.State_Selected:
            painter.setPen(QPen(colors.accent, 3))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(cell.adjusted(2, 2, -3, -3))


class _Prompts(QHeaderView):
    """The prompts in several lines, cut where their row ends."""

    def __init__(self, parent: QTableView):
        super().__init__(Qt.Orientation.Vertical, parent)

    def paintSection(self, painter: QPainter, rect: QRect, section: int) -> None:
        """One prompt."""
        colors = theme.colors()
        painter.fillRect(rect, colors.window)
        painter.setPen(colors.text)
        text = str(self.model().headerData(section, Qt.Orientation.Vertical))
        flags = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft | Qt.TextFlag.TextWordWrap
        box = rect.adjusted(8, 4, -8, -4)
        whole = text
        while len(text) > 8 and self.fontMetrics().boundingRect(box, flags, text).height() > box.height():
            text = whole[: int(len(text) * 0.9)].rstrip() + "…"
        painter.drawText(box, flags, text)
