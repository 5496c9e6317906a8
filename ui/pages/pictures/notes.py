"""Sentences of the trainer: problems first, then notes."""

import re
from collections.abc import Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QWidget

from ui.widgets import theme
from ui.widgets.icons import icon
from ui.widgets.making import dressed, scrolled


class NotesList(QListWidget):
    """One sentence a row, whole; problems are red, notes amber."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        dressed(scrolled(self), name="Problems and notes", wordWrap=True, textElideMode=Qt.TextElideMode.ElideNone)
        self.setResizeMode(QListWidget.ResizeMode.Adjust)  # rows that were laid out unseen have another width
        self._problems: list[str] = []
        self._notes: list[str] = []
        theme.notifier().changed.connect(self.on_theme_changed)

    def set_sentences(self, problems: Sequence[str], notes: Sequence[str]) -> None:
        """Show these."""
        self._problems, self._notes = list(problems), list(notes)
        self.on_theme_changed()

    def on_theme_changed(self) -> None:
        """Write everything in the theme's colours."""
        colors = theme.colors()
        self.clear()
        for sentences, name, color in ((self._problems, "error", colors.bad), (self._notes, "warning", colors.warning)):
            for sentence in sentences:
                item = QListWidgetItem(icon(name, color), breakable(sentence), self)
                item.setToolTip(sentence)
                item.setForeground(color if name == "error" else colors.text)
        if not self.count():
            item = QListWidgetItem("No problems or notes", self)
            item.setFlags(Qt.ItemFlag.NoItemFlags)


def breakable(sentence: str) -> str:
    """The sentence with places, unseen, where the long names of files may go on in the next line."""
    return re.sub(r"([/_\\])", "\\1\u200b", sentence)
