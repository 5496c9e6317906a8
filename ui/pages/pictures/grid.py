"""The grid of thumbnails: each with name, caption, sizes and marks in words."""

from typing import Any

from PySide6.QtCore import QEvent, QModelIndex, QPersistentModelIndex, QPoint, QRect, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QIcon, QPainter, QPaintEvent, QPixmap, QResizeEvent
from PySide6.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from ui.pages.pictures.data_set import Picture, PictureModel
from ui.pages.pictures.thumbnails import Thumbnails
from ui.widgets import theme
from ui.widgets.making import dressed, scrolled

WIDEST = "1024×1024 → 1024×1024"
"""The sizes a cell has room for; longer ones are elided."""

LINES = 3
"""Of text below a thumbnail."""

PAD = 6
Index = QModelIndex | QPersistentModelIndex


class PictureGrid(QListView):
    """Thumbnails in rows; only those in sight are read and painted."""

    chosen = Signal(object)
    """The selected Picture, or None."""

    def __init__(self, model: PictureModel, thumbnails: Thumbnails, parent: QWidget | None = None):
        super().__init__(parent)
        self.pictures = model
        self.words = ""
        """What is said while there is nothing to show."""
        self._thumbnails = thumbnails
        self.setViewMode(QListView.ViewMode.IconMode)  # before what it would set otherwise
        static, adjust, batched = QListView.Movement.Static, QListView.ResizeMode.Adjust, QListView.LayoutMode.Batched
        dressed(self, movement=static, resizeMode=adjust, layoutMode=batched, batchSize=200)
        dressed(scrolled(self), name="Pictures", uniformItemSizes=True, mouseTracking=True)
        self.setModel(model)
        self.setItemDelegate(Cell(model, thumbnails, self))
        self._soon = QTimer(self, singleShot=True, interval=30)
        self._soon.timeout.connect(self.on_settled)
        self._share_width()
        self.verticalScrollBar().valueChanged.connect(self.on_moved)
        model.modelReset.connect(self.on_moved)
        thumbnails.ready.connect(self.on_ready)
        self.selectionModel().currentChanged.connect(self.on_current_changed)

    def select(self, key: tuple[int, str]) -> None:
        """Select a picture, or none when it is not shown; without emitting a signal if it stays the same."""
        row = self.pictures.row_of(key)
        self.setCurrentIndex(self.pictures.index(row) if row >= 0 else QModelIndex())

    def in_sight(self) -> list[str]:
        """Paths of the pictures in sight, then those just below and above."""
        size, room = self.gridSize(), self.viewport().rect()
        columns = max(1, room.width() // size.width())
        first = self.verticalScrollBar().value() // size.height() * columns
        count = (room.height() // size.height() + 2) * columns
        seen = self.pictures.shown[first : first + count]
        near = self.pictures.shown[first + count : first + 2 * count]
        near += self.pictures.shown[max(0, first - count) : first][::-1]
        return [picture.path for picture in [*seen, *near] if picture.width]

    def on_moved(self) -> None:
        """Other pictures come into sight."""
        self._soon.start()

    def on_settled(self) -> None:
        """Read what is in sight now."""
        if self.isVisible():
            self._thumbnails.want(self.in_sight())

    def on_ready(self, path: str) -> None:
        """A thumbnail was read."""
        self.viewport().update()

    def on_current_changed(self, index: Index) -> None:
        """Another picture was selected."""
        self.chosen.emit(self.pictures.data(index, Qt.ItemDataRole.UserRole))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Qt: another size; the cells share the width."""
        super().resizeEvent(event)
        self._share_width()
        self.on_moved()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Qt: the pictures, or why there are none."""
        super().paintEvent(event)
        if not self.pictures.shown:
            painter = QPainter(self.viewport())
            painter.setPen(theme.colors().muted)
            painter.drawText(self.viewport().rect(), Qt.AlignmentFlag.AlignCenter, self.words)

    def event(self, event: QEvent) -> bool:
        """Qt: a larger font needs larger cells; what was hidden may need thumbnails."""
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._share_width()
        if event.type() == QEvent.Type.Show:
            self.on_moved()
        return super().event(event)

    def _share_width(self) -> None:
        """As many columns as fit, all of the same width."""
        # Room for the scroll bar is kept: its coming must not change the columns.
        bar = self.verticalScrollBar().sizeHint().width()
        metrics, room = self.fontMetrics(), self.width() - 2 * self.frameWidth() - bar - 1
        least = metrics.horizontalAdvance(WIDEST) + 4 * PAD
        width, height = max(least, room // max(1, room // least)), round(least * 0.72) + LINES * metrics.height()
        cell = QSize(width, height + 4 * PAD)
        if cell != self.gridSize():
            self.setGridSize(cell)


class Cell(QStyledItemDelegate):
    """A thumbnail with its marks, and below it name, caption and sizes: all the style has to paint."""

    def __init__(self, model: PictureModel, thumbnails: Thumbnails, view: QListView):
        super().__init__(view)
        self._model, self._thumbnails, self._view = model, thumbnails, view

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """Qt: the same for all."""
        return self._view.gridSize()

    def initStyleOption(self, option: Any, index: Index) -> None:
        """Qt: picture and text."""
        super().initStyleOption(option, index)
        picture: Picture = self._model.data(index, Qt.ItemDataRole.UserRole)
        metrics, size = option.fontMetrics, self._view.gridSize()
        caption = self._model.caption(picture).replace("\n", " ") or "no caption"
        middle, right = Qt.TextElideMode.ElideMiddle, Qt.TextElideMode.ElideRight
        lines = ((picture.name.split("/")[-1], middle), (caption, right), (picture.sizes(), right))
        option.text = "\u2028".join(metrics.elidedText(text, mode, size.width() - 4 * PAD) for text, mode in lines)
        option.decorationSize = size - QSize(2 * PAD, LINES * metrics.height() + 3 * PAD)
        pixmap = self._pixmap(picture, option.decorationSize)
        option.icon = QIcon(pixmap)
        option.icon.addPixmap(pixmap, QIcon.Mode.Selected)  # not in the selection's colour
        option.features |= option.ViewItemFeature.HasDecoration

    def _pixmap(self, picture: Picture, size: QSize) -> QPixmap:
        """The thumbnail, or why there is none, with the picture's marks."""
        thumbnail, colors, ratio = self._thumbnails.get(picture.path), theme.colors(), self._view.devicePixelRatioF()
        pixmap = QPixmap(size * ratio)
        pixmap.setDevicePixelRatio(ratio)
        pixmap.fill(Qt.GlobalColor.transparent)
        painter, frame, middle = QPainter(pixmap), QRect(QPoint(), size), Qt.AlignmentFlag.AlignCenter
        painter.setFont(self._view.font())
        if thumbnail is not None and not thumbnail.isNull():
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            shape = thumbnail.size().scaled(size, Qt.AspectRatioMode.KeepAspectRatio)
            painter.drawPixmap(QStyle.alignedRect(Qt.LayoutDirection.LeftToRight, middle, shape, frame), thumbnail)
        else:
            painter.fillRect(frame, colors.window)
            painter.setPen(colors.muted)
            waiting = thumbnail is None and picture.width
            painter.drawText(frame, middle, "…" if waiting else "no preview")
        unsaved = [("not saved", "modified")] if self._model.is_edited(picture) else []
        self._mark(painter, frame, [*picture.marks(), *unsaved])
        painter.end()
        return pixmap

    def _mark(self, painter: QPainter, frame: QRect, marks: list[tuple[str, str]]) -> None:
        """Words on coloured ground, from the lower left corner upwards."""
        colors, metrics = theme.colors(), painter.fontMetrics()
        painter.setPen(colors.surface)
        height = metrics.height() + 2
        for row, (text, ground) in enumerate(marks, 1):
            width = min(metrics.horizontalAdvance(text) + metrics.height(), frame.width())
            pill = QRect(0, frame.height() - row * (height + 2), width, height)
            painter.fillRect(pill, vars(colors)[ground])
            painter.drawText(pill, Qt.AlignmentFlag.AlignCenter, text)
