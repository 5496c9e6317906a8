"""A picture with what a training makes of it: its mask, and the part that is trained on."""

from pathlib import Path

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QImage, QPainter, QPainterPath, QPaintEvent, QPen, QTransform
from PySide6.QtWidgets import QSizePolicy, QWidget

from ui.widgets import theme
from ui.widgets.images import read_as_is, read_scaled

TINT = 0.55
"""Opacity of the colour over what a mask leaves out."""


class Preview(QWidget):
    """A picture, its mask, and the part of it that is trained on."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.crop: QRectF | None = None
        """In the picture's own pixels; None: no part is marked."""
        self.angle = 0.0
        """Degrees by which the crop is turned around its middle, clockwise."""
        self.mirrored = False
        self._image, self._mask, self._words, self._own = QImage(), QImage(), "", QSize()
        self.setAccessibleName("Preview")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumSize(QSize(8, 6) * self.fontMetrics().height())

    def set_image(self, image: QImage, own: QSize, words: str = "") -> None:
        """Show a picture whose own size is `own`, or `words` when there is none."""
        self._image, self._own, self._words = image, own, words
        self.update()

    def set_mask(self, mask: QImage) -> None:
        """Tint what the mask, in grey, leaves out; a null one leaves out nothing."""
        self._mask = mask
        self.update()

    def set_crop(self, crop: QRectF | None, mirrored: bool = False, angle: float = 0.0) -> None:
        """Mark what is trained on."""
        self.crop, self.mirrored, self.angle = crop, mirrored, angle
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Qt: the picture in the middle, what is cut off in the window's colour."""
        painter, colors = QPainter(self), theme.colors()
        if self._image.isNull():
            painter.setPen(colors.muted)
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap, self._words)
            return
        painter.setRenderHints(QPainter.RenderHint.SmoothPixmapTransform | QPainter.RenderHint.Antialiasing)
        size = self._image.size().scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio)
        area = QRectF(0, 0, size.width(), size.height())
        area.moveCenter(QRectF(self.rect()).center())
        mirrored = QTransform().scale(-1 if self.mirrored else 1, 1)
        painter.drawImage(area, self._image.transformed(mirrored))
        if not self._mask.isNull():
            painter.drawImage(area, tinted(self._mask).transformed(mirrored))
        if self.crop is not None and not self._own.isEmpty():
            self._draw_crop(painter, area, self.crop)

    def _draw_crop(self, painter: QPainter, area: QRectF, crop: QRectF) -> None:
        scale, colors = area.width() / self._own.width(), theme.colors()
        left = self._own.width() - crop.right() if self.mirrored else crop.left()
        seen = QRectF(QPointF(left, crop.top()) * scale + area.topLeft(), crop.size() * scale)
        middle, angle = seen.center(), -self.angle if self.mirrored else self.angle
        turned = QTransform().translate(middle.x(), middle.y()).rotate(angle).translate(-middle.x(), -middle.y())
        everything, kept = QPainterPath(), QPainterPath()
        everything.addRect(area)
        kept.addRect(seen)
        shade = QColor(colors.window)
        shade.setAlphaF(0.75)
        painter.fillPath(everything.subtracted(turned.map(kept)), shade)
        painter.setTransform(turned)
        painter.setPen(QPen(colors.accent, 2))
        painter.drawRect(seen.adjusted(1, 1, -1, -1))


def tinted(mask: QImage) -> QImage:
    """A colour over what the mask, in grey, leaves out: where it is black, half transparent; where white, nothing."""
    image = QImage(mask.size(), QImage.Format.Format_ARGB32)
    image.fill(theme.colors().bad)
    left_out = mask.convertToFormat(QImage.Format.Format_Grayscale8)
    left_out.invertPixels()
    image.setAlphaChannel(left_out)
    faint = QImage(image.size(), QImage.Format.Format_ARGB32_Premultiplied)
    faint.fill(Qt.GlobalColor.transparent)
    painter = QPainter(faint)
    painter.setOpacity(TINT)
    painter.drawImage(0, 0, image)
    painter.end()
    return faint


def read_both(path: str, mask: str, side: int) -> tuple[QImage, QImage]:
    """A picture, and its mask in grey, which may be its own transparency; a null image where there is none."""
    image = read_scaled(Path(path), side)
    if not mask:
        return image, QImage()
    given = read_as_is(Path(mask), side)
    if mask != path:
        return image, given.convertToFormat(QImage.Format.Format_Grayscale8)
    opacity = given.convertToFormat(QImage.Format.Format_Alpha8)
    opacity.reinterpretAsFormat(QImage.Format.Format_Grayscale8)  # the same bytes, called otherwise
    return image, opacity
