"""What lists are edited with: texts one below the other, and folders."""

from typing import Any

from PySide6.QtCore import QPoint, Qt, Signal
from PySide6.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent, QFocusEvent, QKeyEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QAbstractItemView, QListWidget, QListWidgetItem, QPushButton, QVBoxLayout

from ui.core import words
from ui.core.preset.field import Field
from ui.core.settings import Settings
from ui.form.inputs import Input
from ui.form.paths import Finder, ask_folder, dropped
from ui.widgets import icons, theme

LINES = (4, 10)
"""Least and most lines of a list that are shown at once."""

EDITABLE = Qt.ItemFlag.ItemIsEditable | Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable


class Texts(Input):
    """Texts, one a line: edited in place, added, removed, moved."""

    empty = "Nothing listed"
    adds = "Add a line"

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.list = List(self.empty)
        self.other: Any = None
        self.take(self.list, 1)
        self.buttons = QVBoxLayout()
        self.buttons.setSpacing(0)
        self.line.addLayout(self.buttons)
        self.tools = [
            self._button("add", self.adds, self.on_add),
            self._button("remove", "Remove (Delete)", self.on_remove),
            self._button("up", "Move up (Ctrl+Up)", self.on_up),
            self._button("down", "Move down (Ctrl+Down)", self.on_down),
        ]
        self.buttons.addStretch(1)
        self.list.removing.connect(self.on_remove)
        self.list.moving.connect(self.on_moving)
        self.list.currentRowChanged.connect(self.on_current_row_changed)
        self.list.itemDelegate().closeEditor.connect(self.on_close_editor)
        self.list.itemChanged.connect(self.on_item_changed)
        theme.notifier().changed.connect(self.on_theme_changed)

    def show_value(self, value: Any) -> None:
        shown = self.field.understood(value)
        self.other = None if isinstance(shown, list) else value
        texts = shown if isinstance(shown, list) else []
        row = self.list.currentRow()
        self.list.blockSignals(True)
        self.list.clear()
        for text in texts:
            self._append(text if isinstance(text, str) else words.value(text))
        self.list.setCurrentRow(min(row, len(texts) - 1))
        self.list.blockSignals(False)
        self._fit()

    def read(self) -> Any:
        texts = [self.list.item(row).text() for row in range(self.list.count())]
        return self.other if not texts and self.other is not None else texts

    def put(self, texts: list[str]) -> None:
        """Add lines at the end, but for those that are there."""
        for text in dict.fromkeys(texts):
            if not self.list.findItems(text, Qt.MatchFlag.MatchExactly):
                self._append(text)
        self.list.setCurrentRow(self.list.count() - 1)
        self._hand_on()

    def on_add(self) -> None:
        """A new line, open for typing; if nothing is typed it goes again."""
        self.list.blockSignals(True)
        item = self._append("")
        self.list.setCurrentItem(item)
        self.list.blockSignals(False)
        self._fit()
        self.list.editItem(item)

    def on_close_editor(self) -> None:
        """Drop a line that was left empty."""
        item = self.list.currentItem()
        if item and not item.text():
            self.list.takeItem(self.list.row(item))
            self._hand_on()

    def on_item_changed(self, item: QListWidgetItem) -> None:
        """A line was edited."""
        if item.text():
            self._hand_on()

    def on_remove(self) -> None:
        """Remove the chosen line."""
        if self.list.takeItem(self.list.currentRow()):
            self._hand_on()

    def on_up(self) -> None:
        """Move the chosen line up."""
        self.on_moving(-1)

    def on_down(self) -> None:
        """Move the chosen line down."""
        self.on_moving(1)

    def on_moving(self, by: int) -> None:
        """Move the chosen line."""
        row = self.list.currentRow()
        if row >= 0 and 0 <= row + by < self.list.count():
            self.list.blockSignals(True)
            self.list.insertItem(row + by, self.list.takeItem(row))
            self.list.setCurrentRow(row + by)
            self.list.blockSignals(False)
            self._hand_on()

    def on_current_row_changed(self) -> None:
        """Offer only what can be done."""
        row, last = self.list.currentRow(), self.list.count() - 1
        for button, possible in zip(self.tools[1:], (row >= 0, row > 0, 0 <= row < last), strict=True):
            button.setEnabled(possible)

    def on_theme_changed(self) -> None:
        """Draw the icons in the new colours."""
        for button in self.tools:
            button.setIcon(icons.icon(button.objectName()))

    def _append(self, text: str) -> QListWidgetItem:
        item = QListWidgetItem(text)
        item.setFlags(EDITABLE)
        self.list.addItem(item)
        return item

    def _hand_on(self) -> None:
        self.other = None
        self._fit()
        self.edited.emit(self.read())
        self.left.emit()

    def _fit(self) -> None:
        self.on_current_row_changed()
        least, most = LINES
        line = self.fontMetrics().height() + 5
        self.list.setFixedHeight(line * max(least, min(self.list.count(), most)) + 8)

    def _button(self, icon: str, says: str, slot: Any) -> QPushButton:
        button = QPushButton(icons.icon(icon), "")
        button.setProperty("role", "flat")
        button.setObjectName(icon)
        button.setToolTip(says)
        button.setAccessibleName(f"{self.field.label}: {says.partition(' (')[0].lower()}")
        button.clicked.connect(slot)
        self.buttons.addWidget(button)
        return button


class Folders(Texts):
    """Folders: chosen, dropped, or typed."""

    empty = "No folder yet: drop folders here, or add them"
    adds = "Add a folder…"

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.finder = Finder(field, self)
        self.finder.found.connect(self.found)
        self.list.dropped.connect(self.on_dropped)

    def show_value(self, value: Any) -> None:
        super().show_value(value)
        self.finder.look(self.read())

    def on_add(self) -> None:
        """Ask for a folder."""
        if folder := ask_folder(self, self.field.label, "", self.settings):
            self.put([folder])

    def on_dropped(self, paths: list[str]) -> None:
        """Add what was dropped; a file among it is then said to be one."""
        for path in paths:
            self.settings.remember_folder(path)
        self.put(paths)

    def _hand_on(self) -> None:
        super()._hand_on()
        self.finder.look(self.read())


class List(QListWidget):
    """A list of lines that says in words that it is empty."""

    removing = Signal()
    moving = Signal(int)
    dropped = Signal(list)

    def __init__(self, empty: str):
        super().__init__()
        self.empty = empty
        self.setWordWrap(True)
        self.setSpacing(2)
        self.setTabKeyNavigation(False)
        self.setAcceptDrops(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        triggers = QAbstractItemView.EditTrigger
        self.setEditTriggers(triggers.DoubleClicked | triggers.EditKeyPressed)

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)
        if self.currentRow() < 0:
            self.setCurrentRow(0)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        step = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1}.get(Qt.Key(event.key()))
        if event.key() == Qt.Key.Key_Delete:
            self.removing.emit()
        elif step and event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            self.moving.emit(step)
        else:
            super().keyPressEvent(event)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        event.setAccepted(bool(dropped(event.mimeData())))

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:
        event.setAccepted(bool(dropped(event.mimeData())))

    def dropEvent(self, event: QDropEvent) -> None:
        event.acceptProposedAction()
        self.dropped.emit(dropped(event.mimeData()))

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        if not self.count():
            painter = QPainter(self.viewport())
            painter.setPen(theme.colors().muted)
            space = self.viewport().rect().adjusted(8, 0, -8, 0)
            painter.drawText(QPoint(space.left(), 6 + painter.fontMetrics().ascent()), self.empty)
