"""The window's icons, drawn in the theme's text colour."""

from functools import cache

from PySide6.QtCore import QByteArray, QSize, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from ui.widgets import theme
from ui.widgets.shapes import sheet

SIZES = (16, 20, 24, 32, 48)


def icon(name: str, color: QColor | None = None) -> QIcon:
    """The icon of this name in the theme's text colour, or in `color`."""
    return _drawn(name, (color or theme.colors().text).name(), theme.colors().muted.name())


@cache
def _drawn(name: str, color: str, disabled: str) -> QIcon:
    icon = QIcon()
    for ink, mode in ((color, QIcon.Mode.Normal), (color, QIcon.Mode.Selected), (disabled, QIcon.Mode.Disabled)):
        for side in SIZES:
            icon.addPixmap(_pixmap(name, ink, side, 0.45 if mode == QIcon.Mode.Disabled else 1), mode)
    return icon


def _pixmap(name: str, ink: str, side: int, opacity: float) -> QPixmap:
    pixmap = QPixmap(QSize(side, side))
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setOpacity(opacity)
    QSvgRenderer(QByteArray(sheet(name, ink).encode())).render(painter)
    painter.end()
    return pixmap
