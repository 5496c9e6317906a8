"""Two pictures in one place, with a line between them that can be dragged."""

from PySide6.QtCore import QPointF, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QPixmap, QResizeEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from ui.widgets import theme
from ui.widgets.making import dressed

CENTER = Qt.AlignmentFlag.AlignCenter
STEP, LONG_STEP = 0.02, 0.1
"""How far an arrow key moves the line; with Shift."""


class BeforeAfter(QWidget):
    """The first picture left of the line, the second right of it."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.position = 0.5
        """The line's place: 0 at the left edge of the pictures, 1 at the right."""
        self.labels = ("", "")
        self.message = ""
        self._images = (QImage(), QImage())
        self._scaled: dict[int, QPixmap] = {}
        dressed(self, name="Before and after", focusPolicy=Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumHeight(self.fontMetrics().height() * 8)
        self.setCursor(Qt.CursorShape.SplitHCursor)
        self._describe()

    def set_pictures(self, before: QImage, after: QImage, labels: tuple[str, str]) -> None:
        """Show these two; an empty picture leaves its side empty."""
        self._images, self.labels, self.message = (before, after), labels, ""
        self._scaled.clear()
        self._describe()
        self.update()

    def set_message(self, sentence: str) -> None:
        """Show a sentence instead of pictures."""
        self.set_pictures(QImage(), QImage(), ("", ""))
        self.message = sentence

    def set_position(self, position: float) -> None:
        """Put the line there, as far as the pictures go."""
        self.position = min(1.0, max(0.0, position))
        self._describe()
        self.update()

    def area(self) -> QRect:
        """Where the pictures are: as large as fits, in the middle; the second's shape, in which the first stands."""
        image = self._images[1] if self._images[0].isNull() or not self._images[1].isNull() else self._images[0]
        if image.isNull():
            return self.rect()
        ratio = self.devicePixelRatioF()
        size = image.size().scaled(self.size() * ratio, Qt.AspectRatioMode.KeepAspectRatio) / ratio
        return QRect((self.width() - size.width()) // 2, (self.height() - size.height()) // 2, *size.toTuple())  # pyright: ignore

    def paintEvent(self, event: QPaintEvent) -> None:
        """Both pictures, each up to the line, and the line."""
        painter = QPainter(self)
        area = self.area()
        if self._images[0].isNull() and self._images[1].isNull():
            painter.setPen(theme.colors().muted)
            painter.drawText(self.rect(), CENTER | Qt.TextFlag.TextWordWrap, self.message)
            return
        line = area.left() + round(self.position * area.width())
        left = QRect(area.topLeft(), QSize(line - area.left(), area.height()))
        right = QRect(line, area.top(), area.left() + area.width() - line, area.height())
        for index, part in enumerate((left, right)):
            painter.setClipRect(part)
            pixmap = self._pixmap(index, area.size())
            place = QRectF(QPointF(), pixmap.deviceIndependentSize())
            place.moveCenter(QRectF(area).center())
            painter.drawPixmap(place.topLeft(), pixmap)
        painter.setClipping(False)
        self._paint_line(painter, line, area)
        self._paint_labels(painter, line, area)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Bring the line to the mouse."""
        if event.button() == Qt.MouseButton.LeftButton:
            self.set_position(self._at(event.position()))

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Drag the line."""
        if event.buttons() & Qt.MouseButton.LeftButton:
            self.set_position(self._at(event.position()))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Left and right move the line; Home and End show one picture only."""
        far = LONG_STEP if event.modifiers() & Qt.KeyboardModifier.ShiftModifier else STEP
        places = {
            Qt.Key.Key_Left: self.position - far,
            Qt.Key.Key_Right: self.position + far,
            Qt.Key.Key_Home: 0.0,
            Qt.Key.Key_End: 1.0,
        }
        if event.key() in places:
            self.set_position(places[Qt.Key(event.key())])
        else:
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """The scaled pictures are no longer right."""
        self._scaled.clear()

    def _at(self, point: QPointF) -> float:
        area = self.area()
        return (point.x() - area.left()) / max(1, area.width())

    def _describe(self) -> None:
        shown = f"{self.position:.0%} {self.labels[0] or 'before'}, the rest {self.labels[1] or 'after'}"
        self.setAccessibleDescription(f"{shown}; left and right move the line")

    def _pixmap(self, index: int, size: QSize) -> QPixmap:
        """A picture in the size it is painted; single pixels stay visible when it is much enlarged."""
        if index not in self._scaled:
            image, ratio = self._images[index], self.devicePixelRatioF()
            if image.isNull():
                return QPixmap()
            fast = size.width() * ratio > 6 * image.width()
            how = Qt.TransformationMode.FastTransformation if fast else Qt.TransformationMode.SmoothTransformation
            pixmap = QPixmap.fromImage(image.scaled(size * ratio, Qt.AspectRatioMode.KeepAspectRatio, how))
            pixmap.setDevicePixelRatio(ratio)
            self._scaled[index] = pixmap
        return self._scaled[index]

    def _paint_line(self, painter: QPainter, line: int, area: QRect) -> None:
        """A light line in a dark one, to be seen on every picture, and a handle."""
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for color, width in ((QColor(0, 0, 0, 150), 4), (QColor(255, 255, 255), 2)):
            painter.setPen(QPen(color, width))
            painter.drawLine(line, area.top(), line, area.bottom())
        radius = self.fontMetrics().height() * 0.8
        center = QPointF(line, area.center().y())
        painter.setPen(QPen(theme.colors().accent if self.hasFocus() else QColor(0, 0, 0, 150), 2))
        painter.setBrush(QColor(255, 255, 255))
        painter.drawEllipse(center, radius, radius)
        painter.setPen(QColor(40, 40, 40))
        painter.drawText(QRectF(center, center).adjusted(-radius, -radius, radius, radius), CENTER, "↔")

    def _paint_labels(self, painter: QPainter, line: int, area: QRect) -> None:
        """What is left and right, in the lower corners, as long as the line leaves room."""
        metrics = self.fontMetrics()
        margin = metrics.height() * 0.5
        for index, label in enumerate(self.labels):
            width = metrics.horizontalAdvance(label) + 2 * margin
            room = line - area.left() if index == 0 else area.right() - line
            if not label or width + 2 * margin > room:
                continue
            left = area.left() + margin if index == 0 else area.right() - margin - width
            box = QRectF(left, area.bottom() - margin - metrics.height() * 1.4, width, metrics.height() * 1.4)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(0, 0, 0, 160))
            painter.drawRoundedRect(box, 4, 4)
            painter.setPen(QColor(255, 255, 255))
            painter.drawText(box, CENTER, label)
