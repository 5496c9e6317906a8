"""List items of two lines: a text with a badge at its right, and a muted line below."""

from collections.abc import Mapping

from PySide6.QtCore import QModelIndex, QObject, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QFontMetrics, QPainter
from PySide6.QtWidgets import QApplication, QComboBox, QStyle, QStyledItemDelegate, QStyleOptionViewItem

from ui.widgets import theme

DETAIL = Qt.ItemDataRole.UserRole + 1
"""The line below."""
BADGE = Qt.ItemDataRole.UserRole + 2
"""A word at the right."""
BAD = Qt.ItemDataRole.UserRole + 3
"""Whether the line below is a problem."""
FAINT = Qt.ItemDataRole.UserRole + 4
"""Whether the text is muted, too."""

COLOR = Qt.ItemDataRole.UserRole + 5
"""The badge's colour, where it is not that of the list."""

PADDING = 5
Index = QModelIndex | QPersistentModelIndex


class TwoLines(QStyledItemDelegate):
    """Draws them; an item without the second line takes one."""

    def __init__(self, parent: QObject, badge: str = "accent"):
        """`badge`: which of the theme's colours badges have."""
        super().__init__(parent)
        self.badge = badge

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """As high as its lines."""
        lines = 2 if index.data(DETAIL) else 1
        return QSize(0, QFontMetrics(option.font).lineSpacing() * lines + 2 * PADDING)  # pyright: ignore

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw the background as the style does, then the lines."""
        styled = QStyleOptionViewItem(option)
        self.initStyleOption(styled, index)
        text, styled.text = styled.text, ""  # pyright: ignore
        widget = styled.widget  # pyright: ignore
        style = widget.style() if widget else QApplication.style()
        style.drawControl(QStyle.ControlElement.CE_ItemViewItem, styled, painter, widget)
        colors, metrics = theme.colors(), QFontMetrics(styled.font)  # pyright: ignore
        rect = style.subElementRect(QStyle.SubElement.SE_ItemViewItemText, styled, widget)
        rect.adjust(PADDING, 0, -PADDING, 0)
        rect.setTop(rect.center().y() - metrics.lineSpacing() * (2 if index.data(DETAIL) else 1) // 2)
        line = QRect(rect.left(), rect.top(), rect.width(), metrics.lineSpacing())
        painter.save()
        painter.setFont(styled.font)  # pyright: ignore
        badge = index.data(BADGE)
        if badge:
            painter.setPen(vars(colors)[index.data(COLOR) or self.badge])
            painter.drawText(line, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, badge)
            line.setRight(line.right() - metrics.horizontalAdvance(badge) - 2 * PADDING)
        painter.setPen(colors.muted if index.data(FAINT) else colors.text)
        self._draw_line(painter, metrics, line, text)
        if index.data(DETAIL):
            painter.setPen(colors.bad if index.data(BAD) else colors.muted)
            below = QRect(rect.left(), rect.top() + metrics.lineSpacing(), rect.width(), metrics.lineSpacing())
            self._draw_line(painter, metrics, below, index.data(DETAIL))
        painter.restore()

    def _draw_line(self, painter: QPainter, metrics: QFontMetrics, rect: QRect, text: str) -> None:
        elided = metrics.elidedText(text.replace("\n", " "), Qt.TextElideMode.ElideRight, rect.width())
        painter.drawText(rect, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, elided)


def describe(box: QComboBox, meanings: Mapping[str, str]) -> None:
    """Show in the list of `box`, below its words, what they mean; nothing where no word has a meaning."""
    if not meanings:
        return
    for row in range(box.count()):
        box.setItemData(row, meanings.get(box.itemText(row), ""), DETAIL)
    box.setItemDelegate(TwoLines(box))
    box.setMaxVisibleItems(box.count())
    widest = max(map(box.fontMetrics().horizontalAdvance, meanings.values()))
    box.view().setMinimumWidth(widest + 6 * PADDING)
