"""Choices whose list says beside each word what it means."""

from collections.abc import Mapping

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QComboBox, QStyledItemDelegate, QStyleOptionViewItem

from ui.widgets import theme

MEANING = Qt.ItemDataRole.ToolTipRole
GAP = 18
"""Pixels between the words and their meanings, and behind these."""
PADDING = 3
"""Pixels above and below."""

Index = QModelIndex | QPersistentModelIndex


class Described(QStyledItemDelegate):
    """Draws a word as ever, and its meaning in a column of its own."""

    def __init__(self, box: QComboBox):
        super().__init__(box)
        self.box = box

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """Wide enough for both."""
        size = super().sizeHint(option, index)
        meaning = self.box.fontMetrics().horizontalAdvance(index.data(MEANING))
        return QSize(self._column() + meaning + GAP, size.height() + 2 * PADDING)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """The word as the style draws it, then the meaning."""
        super().paint(painter, option, index)
        rect: QRect = option.rect.adjusted(self._column(), 0, 0, 0)  # pyright: ignore
        painter.save()
        painter.setPen(theme.colors().muted)
        painter.drawText(rect, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, index.data(MEANING))
        painter.restore()

    def _column(self) -> int:
        """Where the meanings begin."""
        words = (self.box.itemText(row) for row in range(self.box.count()))
        return max(map(self.box.fontMetrics().horizontalAdvance, words)) + 2 * GAP


def describe(box: QComboBox, meanings: Mapping[str, str]) -> None:
    """Show in the list of `box` what its words mean; nothing where no word has a meaning."""
    if not meanings:
        return
    for row in range(box.count()):
        box.setItemData(row, meanings.get(box.itemText(row), ""), MEANING)
    box.setItemDelegate(Described(box))
    box.setMaxVisibleItems(box.count())
    box.view().setMinimumWidth(box.view().sizeHintForColumn(0) + 2 * box.view().frameWidth())
