"""Sample pictures as a table, a row for each prompt and a column for each step, read while they are looked at."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, QSize, Qt, Signal
from PySide6.QtGui import QIcon, QImage, QPixmap
from PySide6.QtWidgets import QHeaderView, QStyledItemDelegate, QTableView

from ui.core import workers
from ui.core.runs.history import Sample
from ui.widgets import theme
from ui.widgets.images import read_scaled
from ui.widgets.making import dressed

Index = QModelIndex | QPersistentModelIndex
NOWHERE = QModelIndex()
KEPT = 800
"""How many small pictures are remembered."""

PROMPTS = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop | Qt.TextFlag.TextWordWrap
STYLE = """
QTableCornerButton::section { background: transparent; border: none; }
QTableView::item:selected { border: 3px solid palette(highlight); }
"""
NONE = "–"
"""In the place of a sample that was not made."""


def read_picture(path: Path, side: int = 0) -> QImage:
    """The picture, at most `side` wide and high (0: as it is). Raises ValueError with a sentence."""
    image = read_scaled(path, side)
    if image.isNull():
        raise ValueError(f"{path.name} cannot be shown: {'it is damaged' if path.exists() else 'file not found'}.")
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
        above, text = orientation == Qt.Orientation.Horizontal, Qt.ItemDataRole.DisplayRole
        if section >= len(self.steps if above else self.prompts):
            return None
        if above:
            return step_text(self.steps[section]) if role == text else None
        return self.prompts[section][1] or "(empty prompt)" if role in (text, Qt.ItemDataRole.ToolTipRole) else None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The picture, a sentence why there is none, or nothing yet."""
        sample = self.sample(index.row(), self.steps[index.column()])
        if role in (Qt.ItemDataRole.AccessibleTextRole, Qt.ItemDataRole.ToolTipRole):
            return f"{step_text(sample.step)}: {sample.prompt}" if sample else "no sample at this step"
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignCenter
        thing = self._picture(str(self.path(sample))) if sample else NONE
        if role == Qt.ItemDataRole.DisplayRole:
            return None if isinstance(thing, QPixmap) else thing or "…"
        if role == Qt.ItemDataRole.ForegroundRole:
            return theme.colors().bad if sample and isinstance(thing, str) else theme.colors().muted
        return thing if role == Qt.ItemDataRole.DecorationRole else None

    def _picture(self, path: str) -> QPixmap | str | None:
        if path in self._pictures:
            self._pictures.move_to_end(path)
            return self._pictures[path]
        room = (self.side, self.side, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation)
        if path not in self._reading:

            def arrived(thing: QImage | str) -> None:
                self._reading.pop(path, None)
                self._pictures[path] = thing if isinstance(thing, str) else QPixmap.fromImage(thing).scaled(*room)
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
        self.setItemDelegate(_Untinted(self))
        single, pixels = QTableView.SelectionMode.SingleSelection, QTableView.ScrollMode.ScrollPerPixel
        dressed(self, selectionMode=single, horizontalScrollMode=pixels, verticalScrollMode=pixels)
        dressed(self, showGrid=False, tabKeyNavigation=False, cornerButtonEnabled=False)
        cell = model.side + 8
        for header in (self.horizontalHeader(), self.verticalHeader()):
            header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
            header.setDefaultSectionSize(cell)
            header.setHighlightSections(False)
        self.verticalHeader().setFixedWidth(round(cell * 1.2))
        self.verticalHeader().setDefaultAlignment(PROMPTS)
        self.verticalHeader().setTextElideMode(Qt.TextElideMode.ElideNone)
        self.setStyleSheet(STYLE)
        self.clicked.connect(self.on_opened)
        self.activated.connect(self.on_opened)

    def on_opened(self, index: QModelIndex) -> None:
        """Say which picture is wanted."""
        self.opened.emit(index.row(), index.column())


def step_text(step: int) -> str:
    """A column's name."""
    return f"Step {step:,}" if step else "Before training"


class _Untinted(QStyledItemDelegate):
    """Pictures in the middle of their cells, in their own colours where they are selected, too."""

    def initStyleOption(self, option: Any, index: Index) -> None:
        """Qt: what is painted."""
        super().initStyleOption(option, index)
        option.icon.addPixmap(option.icon.pixmap(option.decorationSize), QIcon.Mode.Selected)
        option.decorationSize = option.rect.size() - QSize(8, 8)
