"""The list of pages at the left of the window, with what is changed or wrong on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import QListWidget, QListWidgetItem

from ui.core import words
from ui.widgets import icons, theme
from ui.widgets.making import dressed
from ui.widgets.two_lines import BADGE, COLOR, FAINT, TwoLines

KEY = Qt.ItemDataRole.UserRole


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
    def badge(self) -> tuple[str, str]:
        """The same as a word, and its colour."""
        if self.problems:
            return str(self.problems), "bad"
        return (self.text, "muted") if self.text or not self.changed else ("●", "modified")

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
        dressed(self, "navigation", "Pages")
        self.setFrameShape(QListWidget.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        side = self.fontMetrics().height() + 2
        self.setIconSize(QSize(side, side))
        self.setItemDelegate(TwoLines(self))
        self.places = list(places)
        heading = self.font()
        heading.setPointSizeF(heading.pointSizeF() * 0.8)
        heading.setBold(True)
        for place in places:
            item = QListWidgetItem(place.title.upper() if place.key is None else place.title, self)
            item.setData(KEY, place.key)
            if place.key is None:
                item.setFlags(Qt.ItemFlag.NoItemFlags)
                item.setData(FAINT, True)
                item.setFont(heading)
        letter = self.fontMetrics().averageCharWidth()
        widest = max(self.fontMetrics().horizontalAdvance(place.title) for place in places)
        self.setFixedWidth(widest + side + letter * 10)
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
            if place.key is not None:
                text, color = mark.badge
                item.setData(BADGE, text)
                item.setData(COLOR, color)
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
