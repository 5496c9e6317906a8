"""What a run had to say besides its numbers: warnings, errors, files it saved, and what this window does not know."""

from itertools import takewhile
from operator import eq

from PySide6.QtCore import QLocale, Qt
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QApplication,
    QHeaderView,
    QLabel,
    QPlainTextEdit,
    QTreeWidget,
    QTreeWidgetItem,
    QWidget,
)

from ui.core import words
from ui.core.runs.history import History, Message, Saved
from ui.widgets import icons, theme
from ui.widgets.making import down, dressed, split

EMPTY = "No messages. Warnings, errors and saved files of the run appear here."
NOUNS = {
    "state": "training state",
    "export": "exported file",
    "adapter": "Gimbal's own adapter file",
    "best": "training state of the best adapter",
}
DETAIL = Qt.ItemDataRole.UserRole
KIND = Qt.ItemDataRole.UserRole + 1


class Messages(QWidget):
    """A list in the order of time, and below it all of the chosen entry."""

    def __init__(self) -> None:
        super().__init__()
        self.list = dressed(QTreeWidget(), name="Messages of the run", rootIsDecorated=False, uniformRowHeights=True)
        self.list.setHeaderLabels(["Time", "Message"])
        self.list.header().setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        self.list.currentItemChanged.connect(self.on_current_changed)
        QShortcut(QKeySequence.StandardKey.Copy, self.list, self.copy, context=Qt.ShortcutContext.WidgetShortcut)
        self.detail = dressed(QPlainTextEdit(readOnly=True), "mono", "All of the chosen message")
        self.empty = dressed(QLabel(EMPTY, margin=40, alignment=Qt.AlignmentFlag.AlignCenter), "muted")
        self.split = split((self.list, 1), (self.detail, 0), way=Qt.Orientation.Vertical)
        down(self.empty, self.split, of=self, margins=(0, 8, 0, 0))
        self._shown: list[tuple[str, str, str, str]] = []
        self.split.hide()
        theme.notifier().changed.connect(self.on_theme_changed)

    def show_history(self, history: History) -> None:
        """Show what a run has said until now. What is shown already stays, so that reading is not disturbed."""
        said = sorted([*history.messages, *history.saved], key=lambda entry: entry.time)
        entries = [*map(_entry, said), *(("", "warning", sentence, sentence) for sentence in _oddities(history))]
        same = len([*takewhile(bool, map(eq, self._shown, entries))])
        while self.list.topLevelItemCount() > same:
            self.list.takeTopLevelItem(self.list.topLevelItemCount() - 1)
        for entry in entries[same:]:
            self._add(*entry)
        self._shown = entries
        self.empty.setVisible(not entries)
        self.split.setVisible(bool(entries))
        self.detail.setVisible(self.list.currentItem() is not None)

    def problems(self) -> int:
        """How many entries are warnings or errors."""
        return sum(item.data(0, KIND) != "save" for item in self._items())

    def copy(self) -> None:
        """Copy the chosen entry with its detail."""
        QApplication.clipboard().setText(self.detail.toPlainText())

    def on_current_changed(self, item: QTreeWidgetItem | None) -> None:
        """Show all of an entry."""
        self.detail.setVisible(item is not None)
        self.detail.setPlainText(item.data(0, DETAIL) if item else "")

    def on_theme_changed(self) -> None:
        """Icons in the theme's colours."""
        for item in self._items():
            _paint(item)

    def _items(self) -> list[QTreeWidgetItem]:
        return [item for row in range(self.list.topLevelItemCount()) if (item := self.list.topLevelItem(row))]

    def _add(self, time: str, kind: str, text: str, detail: str) -> None:
        item = QTreeWidgetItem([words.when(time) if time else "", " ".join(text.split())])
        item.setData(0, KIND, kind)
        item.setData(0, DETAIL, detail)
        item.setToolTip(1, text)
        _paint(item)
        self.list.addTopLevelItem(item)


def _entry(entry: Message | Saved) -> tuple[str, str, str, str]:
    """Time, kind, one line and all of it."""
    if isinstance(entry, Saved):
        what = NOUNS.get(entry.what, entry.what)
        text = f"Saved {entry.path}: {what}, {words.size(entry.bytes)}, after step {words.count(entry.step)}"
        exact = QLocale.c().toString(entry.bytes)
        return entry.time, "save", text, f"{text}\n{exact} bytes"
    return entry.time, entry.kind, entry.message, "\n\n".join(filter(None, (entry.message, entry.detail)))


def _oddities(history: History) -> list[str]:
    """Sentences about what this window could not make sense of."""
    sentences = [
        f"{words.plural(number, 'event')} of the kind “{kind}” in events.jsonl: unknown to this version of "
        "Gimbal, not shown."
        for kind, number in history.unknown.items()
    ]
    if history.broken_lines:
        lines = words.plural(history.broken_lines, "line")
        sentences.append(f"{lines} of events.jsonl cannot be read: the file is damaged.")
    return sentences


def _paint(item: QTreeWidgetItem) -> None:
    kind, colors = item.data(0, KIND), theme.colors()
    color = {"error": colors.bad, "warning": colors.warning}.get(kind, colors.muted)
    item.setIcon(1, icons.icon(kind, color))
