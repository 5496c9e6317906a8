"""The grid of thumbnails: each with name, caption, sizes and marks in words."""

from PySide6.QtCore import QEvent, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPaintEvent, QPixmap, QResizeEvent
from PySide6.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from ui.pages.pictures.data_set import Picture, PictureModel
from ui.pages.pictures.thumbnails import Thumbnails
from ui.widgets import theme

WIDEST = "1024×1024 → 1024×1024"
"""The sizes a cell has room for; longer ones are elided."""

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
        self.setAccessibleName("Pictures")
        self.setViewMode(QListView.ViewMode.IconMode)
        self.setMovement(QListView.Movement.Static)
        self.setResizeMode(QListView.ResizeMode.Adjust)
        self.setLayoutMode(QListView.LayoutMode.Batched)
        self.setBatchSize(200)
        self.setUniformItemSizes(True)
        self.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMouseTracking(True)
        self.setModel(model)
        self.cell = Cell(model, thumbnails, self)
        self.setItemDelegate(self.cell)
        self._soon = QTimer(self, singleShot=True, interval=30)
        self._soon.timeout.connect(self.on_settled)
        self._share_width()
        self.verticalScrollBar().valueChanged.connect(self.on_moved)
        model.modelReset.connect(self.on_moved)
        thumbnails.ready.connect(self.on_ready)
        self.selectionModel().currentChanged.connect(self.on_current_changed)

    def select(self, path: str) -> None:
        """Select a picture, or none when it is not shown; without a word to the outside if it stays the same."""
        row = self.pictures.row_of(path)
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
        cell, room = self.cell.size(), self.width() - 2 * self.frameWidth() - bar - 1
        cell.setWidth(max(cell.width(), room // max(1, room // cell.width())))
        if cell != self.gridSize():
            self.setGridSize(cell)


class Cell(QStyledItemDelegate):
    """Paints one picture of the grid."""

    def __init__(self, model: PictureModel, thumbnails: Thumbnails, view: QListView):
        super().__init__(view)
        self._model, self._thumbnails, self._view = model, thumbnails, view

    def size(self) -> QSize:
        """The smallest, with the gap to the next."""
        small = QFontMetrics(self._small())
        pad = small.height() // 2
        width = small.horizontalAdvance(WIDEST) + 4 * pad
        return QSize(width, round(width * 0.72) + self._view.fontMetrics().height() + 2 * small.height() + 4 * pad)

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """Qt: the same for all."""
        return self._view.gridSize()

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Qt: thumbnail with marks, name, caption, sizes."""
        picture: Picture = self._model.data(index, Qt.ItemDataRole.UserRole)
        colors, small, normal = theme.colors(), self._small(), self._view.font()
        pad = QFontMetrics(small).height() // 2
        card = option.rect.adjusted(pad // 2, pad // 2, -pad // 2, -pad // 2)  # type: ignore[attr-defined]
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self._card(painter, card, option.state)  # type: ignore[attr-defined]
        inside = card.adjusted(pad // 2, pad // 2, -pad // 2, -pad // 2)
        lines = QFontMetrics(normal).height() + 2 * QFontMetrics(small).height()
        frame = inside.adjusted(0, 0, 0, -lines - pad // 2)
        self._thumbnail(painter, frame, picture, small)
        y, unsaved = frame.bottom() + pad // 2 + 1, self._model.is_edited(picture)
        name, caption = picture.name.split("/")[-1], self._model.caption(picture).replace("\n", " ")
        for text, font, color in (
            (name, normal, colors.text),
            (caption or "no caption", small, colors.text if caption else colors.muted),
            (picture.sizes(), small, colors.muted),
        ):
            metrics = QFontMetrics(font)
            line = QRect(inside.left(), y, inside.width(), metrics.height())
            painter.setFont(font)
            painter.setPen(color)
            mode = Qt.TextElideMode.ElideMiddle if text == name else Qt.TextElideMode.ElideRight
            painter.drawText(line, Qt.AlignmentFlag.AlignVCenter, metrics.elidedText(text, mode, line.width()))
            y += metrics.height()
        marks = [*picture.marks(), *([("not saved", "modified")] if unsaved else [])]
        self._marks(painter, frame, marks, small)
        painter.restore()

    def _card(self, painter: QPainter, card: QRect, state: QStyle.StateFlag) -> None:
        """The background: marked when selected, and when the mouse is over it."""
        colors = theme.colors()
        selected = bool(state & QStyle.StateFlag.State_Selected)
        fill = QColor(colors.accent)
        fill.setAlphaF(0.16 if selected else 0.06 if state & QStyle.StateFlag.State_MouseOver else 0)
        painter.setBrush(fill)
        painter.setPen(colors.accent if selected else Qt.PenStyle.NoPen)
        painter.drawRoundedRect(card, 5, 5)

    def _thumbnail(self, painter: QPainter, frame: QRect, picture: Picture, font: QFont) -> None:
        pixmap = self._thumbnails.get(picture.path)
        if pixmap is not None and not pixmap.isNull():
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawPixmap(_centred(pixmap, frame), pixmap)
            return
        colors = theme.colors()
        painter.setPen(colors.border)
        painter.setBrush(colors.window)
        painter.drawRoundedRect(frame.adjusted(0, 0, -1, -1), 3, 3)
        painter.setFont(font)
        painter.setPen(colors.muted)
        waiting = pixmap is None and picture.width
        painter.drawText(frame, Qt.AlignmentFlag.AlignCenter, "…" if waiting else "no preview")

    def _marks(self, painter: QPainter, frame: QRect, marks: list[tuple[str, str]], font: QFont) -> None:
        """Words on coloured ground, from the thumbnail's lower left corner upwards."""
        colors, metrics = theme.colors(), QFontMetrics(font)
        grounds = {"bad": colors.bad, "warning": colors.warning, "modified": colors.modified}
        painter.setFont(font)
        y = frame.bottom() - 2
        for text, ground in marks:
            width, height = metrics.horizontalAdvance(text) + metrics.height() // 2 * 2, metrics.height() + 2
            pill = QRect(frame.left() + 3, y - height, min(width, frame.width() - 6), height)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(grounds[ground])
            painter.drawRoundedRect(pill, 4, 4)
            painter.setPen(colors.surface)
            painter.drawText(pill, Qt.AlignmentFlag.AlignCenter, text)
            y -= height + 2

    def _small(self) -> QFont:
        font = QFont(self._view.font())
        font.setPointSizeF(font.pointSizeF() * 0.88 if font.pointSizeF() > 0 else 9)
        return font


def _centred(pixmap: QPixmap, frame: QRect) -> QRect:
    """The largest rectangle of the pixmap's shape inside the frame, in its middle."""
    size = pixmap.size().scaled(frame.size(), Qt.AspectRatioMode.KeepAspectRatio)
    rect = QRect(0, 0, size.width(), size.height())
    rect.moveCenter(frame.center())
    return rect
