"""The list of pages at the left of the window, with what is changed or wrong on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRect, QSize, Qt, Signal
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QStyledItemDelegate, QStyleOptionViewItem

from ui.core import words
from ui.widgets import icons, theme

KEY = Qt.ItemDataRole.UserRole
MARK = Qt.ItemDataRole.UserRole + 1


@dataclass(frozen=True)
class Place:
    """A page as the list shows it; without a key (None) it is a heading."""

    key: str | None
    title: str
    icon: str = ""


@dataclass(frozen=True)
class Mark:
    """What stands at the right of a page's name."""

    changed: int = 0
    """Settings that differ from the preset."""
    problems: int = 0
    text: str = ""

    @property
    def sentence(self) -> str:
        """The same for a tooltip and a screen reader."""
        parts = [words.plural(self.problems, "problem")] if self.problems else []
        parts += [f"{words.plural(self.changed, 'setting')} changed"] if self.changed else []
        return ", ".join([*parts, *([self.text] if self.text else [])])


class Navigation(QListWidget):
    """Shows the pages; `chosen` says which one the user wants."""

    chosen = Signal(str)

    def __init__(self, places: Sequence[Place]):
        super().__init__()
        self.setProperty("role", "navigation")
        self.setAccessibleName("Pages")
        self.setFrameShape(QListWidget.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        side = self.fontMetrics().height() + 2
        self.setIconSize(QSize(side, side))
        self.setItemDelegate(Delegate(self))
        self.places = list(places)
        for place in places:
            item = QListWidgetItem(place.title.upper() if place.key is None else place.title, self)
            item.setData(KEY, place.key)
            if place.key is None:
                item.setFlags(Qt.ItemFlag.NoItemFlags)
        self.setFixedWidth(self.sizeHintForColumn(0) + self.fontMetrics().averageCharWidth() * 6)
        self.on_theme_changed()
        self.currentItemChanged.connect(self.on_current_item_changed)
        theme.notifier().changed.connect(self.on_theme_changed)

    def show_page(self, key: str) -> None:
        """Mark a page as the one that is shown."""
        for row, place in enumerate(self.places):
            if place.key == key:
                self.setCurrentRow(row)

    def step(self, by: int) -> None:
        """To the next page, or the one before."""
        pages = [row for row, place in enumerate(self.places) if place.key is not None]
        self.setCurrentRow(pages[(pages.index(self.currentRow()) + by) % len(pages)])

    def set_marks(self, marks: Mapping[str, Mark]) -> None:
        """Show what is changed or wrong, by page."""
        for row, place in enumerate(self.places):
            mark, item = marks.get(place.key or "", Mark()), self.item(row)
            if place.key is not None and item.data(MARK) != mark:
                item.setData(MARK, mark)
                item.setToolTip(mark.sentence)
                item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{place.title} {mark.sentence}".strip())

    def on_current_item_changed(self, item: QListWidgetItem | None) -> None:
        """Ask for the page."""
        if item is not None:
            self.chosen.emit(item.data(KEY))

    def on_theme_changed(self) -> None:
        """Draw the icons in the new colours."""
        for row, place in enumerate(self.places):
            if place.icon:
                self.item(row).setIcon(icons.icon(place.icon))


class Delegate(QStyledItemDelegate):
    """Draws the marks, and headings smaller."""

    def initStyleOption(self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> None:
        """Headings are small and muted."""
        super().initStyleOption(option, index)
        if index.data(KEY) is None:
            font = option.font  # pyright: ignore[reportAttributeAccessIssue]
            font.setPointSizeF(font.pointSizeF() * 0.8)
            font.setBold(True)
            option.font = font  # pyright: ignore[reportAttributeAccessIssue]

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        """A row of the list; headings have some space above."""
        size = super().sizeHint(option, index)
        return QSize(size.width(), size.height() + (4 if index.data(KEY) is None and index.row() else 0))

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        """The row, and its mark at the right."""
        super().paint(painter, option, index)
        mark = index.data(MARK)
        if mark is None:
            return
        rect: QRect = option.rect.adjusted(0, 0, -16, 0)  # pyright: ignore[reportAttributeAccessIssue]
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        color = theme.colors().bad if mark.problems else theme.colors().muted
        text = str(mark.problems) if mark.problems else mark.text
        painter.setPen(color)
        if text:
            painter.drawText(rect, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, text)
        elif mark.changed:
            painter.setBrush(theme.colors().modified)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.drawEllipse(rect.right() - 6, rect.center().y() - 3, 7, 7)
        painter.restore()
