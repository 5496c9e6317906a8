"""What lists are edited with: texts one below the other, files, folders; `Rows` is what these and tables have alike."""

from typing import Any

from PySide6.QtCore import QPoint, QSignalBlocker, Qt, Signal
from PySide6.QtGui import QFocusEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QAbstractItemView, QListWidget, QListWidgetItem, QTableWidget

from ui.core import words
from ui.core.preset import entries
from ui.core.preset.field import MIXED, Field
from ui.core.settings import Settings
from ui.form.inputs import Input
from ui.form.paths import Finder, ask_file, ask_folder
from ui.widgets import theme
from ui.widgets.drops import Drops
from ui.widgets.making import action, button, down, dressed

LINES = (4, 10)
"""Least and most lines of a list that are shown at once."""

EDITABLE = Qt.ItemFlag.ItemIsEditable | Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable


class Rows(Input):
    """A list or a table, and buttons for the chosen row. What subclasses show are `values`."""

    shape: type = object
    """Of what is in the list."""

    def __init__(self, field: Field, settings: Settings, view: QListWidget | QTableWidget, adds: str):
        super().__init__(field, settings)
        self.values: list[Any] = []
        self.other: Any = None
        """A value that is no list of the right things."""
        self.view = view
        self.view.setTabKeyNavigation(False)
        self.take(view, 1)
        self.actions_of_rows = (
            action(view, adds, self.on_add, "add", tip=adds),
            action(view, "Remove", self.on_remove, "remove", "Del", "Remove"),
            action(view, "Move up", lambda: self.on_moving(-1), "up", "Ctrl+Up", "Move up"),
            action(view, "Move down", lambda: self.on_moving(1), "down", "Ctrl+Down", "Move down"),
        )
        self.tools = [button(one, "flat", f"{field.label}: {one.text().lower()}") for one in self.actions_of_rows]
        buttons = down(*self.tools, None)
        buttons.setSpacing(0)
        self.line.addLayout(buttons)
        view.selectionModel().currentChanged.connect(self.on_current_changed)
        view.itemChanged.connect(self.on_item_changed)

    def show_value(self, value: Any) -> None:
        shown = self.field.understood(value)
        right = isinstance(shown, list) and all(isinstance(one, self.shape) for one in shown)
        self.values, self.other = (shown, None) if right else ([], value)
        self.fill(self.view.currentRow())

    def read(self) -> Any:
        return self.values if self.other is None else self.other

    def on_add(self) -> None:
        """A new row, open for typing."""
        raise NotImplementedError

    def on_item_changed(self, item: Any) -> None:
        """What stands in a row was edited."""
        raise NotImplementedError

    def on_remove(self) -> None:
        """Remove the chosen row."""
        row = self.view.currentRow()
        if row >= 0:
            self.change(self.values[:row] + self.values[row + 1 :], row)

    def on_moving(self, by: int) -> None:
        """Move the chosen row."""
        row = self.view.currentRow()
        if row >= 0 and 0 <= row + by < len(self.values):
            values = list(self.values)
            values.insert(row + by, values.pop(row))
            self.change(values, row + by)

    def on_current_changed(self) -> None:
        """Offer only what can be done."""
        row, last = self.view.currentRow(), len(self.values) - 1
        for one, possible in zip(self.actions_of_rows[1:], (row >= 0, row > 0, 0 <= row < last), strict=True):
            one.setEnabled(possible)

    def change(self, values: list[Any], row: int) -> None:
        """Other rows, of which this one is chosen: an undo step of its own, and the end of texts that are no values."""
        self.values = values
        self.fill(row)
        self.refused.emit("")
        self.hand_on(values)

    def hand_on(self, values: list[Any]) -> None:
        """Say what there is now."""
        self.values, self.other = values, None
        self.edited.emit(values)
        self.left.emit()

    def fill(self, row: int) -> None:
        """Show `values`, with this row chosen."""
        column = max(0, self.view.currentIndex().column())
        with QSignalBlocker(self.view):
            self.show_rows()
            self.view.setCurrentIndex(self.view.model().index(min(row, len(self.values) - 1), column))
        self.on_current_changed()

    def show_rows(self) -> None:
        """Put `values` into the view, and give it their height."""
        raise NotImplementedError


class Keys:
    """Of the view of `Rows`: a row as soon as it has the focus, and a text where there is no row."""

    rows: Rows
    empty: str

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)  # pyright: ignore[reportAttributeAccessIssue]
        if self.rows.view.currentRow() < 0:
            self.rows.view.setCurrentIndex(self.rows.view.model().index(0, 0))

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)  # pyright: ignore[reportAttributeAccessIssue]
        view = self.rows.view
        if not view.model().rowCount():
            painter = QPainter(view.viewport())
            painter.setPen(theme.colors().muted)
            painter.drawText(QPoint(8, 6 + painter.fontMetrics().ascent()), self.empty)


class List(Drops, Keys, QListWidget):
    """Lines, edited in place."""

    dropped = Signal(list)

    def __init__(self, rows: Rows, empty: str):
        super().__init__()
        self.rows, self.empty = rows, empty
        dressed(self, wordWrap=True, spacing=2, acceptDrops=True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        triggers = QAbstractItemView.EditTrigger
        self.setEditTriggers(triggers.DoubleClicked | triggers.EditKeyPressed)


class Texts(Rows):
    """Texts, one a line: edited in place, added, removed, moved."""

    empty = "Empty list"
    adds = "Add a line"

    def __init__(self, field: Field, settings: Settings):
        self.list = List(self, self.empty)
        super().__init__(field, settings, self.list, self.adds)
        self.list.itemDelegate().closeEditor.connect(self.on_close_editor)

    def put(self, texts: list[str]) -> None:
        """Add lines at the end, but for those that are there."""
        values = list(dict.fromkeys([*self.values, *texts]))
        self.change(values, len(values) - 1)

    def on_add(self) -> None:
        """A new line, open for typing; if nothing is typed it goes again."""
        with QSignalBlocker(self.list):
            item = self._append("")
            self.list.setCurrentItem(item)
        self._fit()
        self.list.editItem(item)

    def on_close_editor(self) -> None:
        """Drop a line that was left empty."""
        item = self.list.currentItem()
        if item and not item.text():
            self.change([one for row, one in enumerate(self.shown()) if row != self.list.row(item)], -1)

    def on_item_changed(self, item: QListWidgetItem) -> None:
        if item.text():
            self.hand_on(self.shown())
            self.on_current_changed()

    def show_rows(self) -> None:
        self.list.clear()
        for one in self.values:
            self.add(one)
        self._fit()

    def add(self, one: Any) -> None:
        """Show a value in a line at the end."""
        self._append(one if isinstance(one, str) else words.value(one))

    def shown(self) -> list[Any]:
        """What stands in the lines."""
        return [self.list.item(row).text() for row in range(self.list.count())]

    def _append(self, text: str) -> QListWidgetItem:
        item = QListWidgetItem(text)
        item.setFlags(EDITABLE)
        self.list.addItem(item)
        return item

    def _fit(self) -> None:
        least, most = LINES
        line = self.fontMetrics().height() + 5
        self.list.setFixedHeight(line * max(least, min(self.list.count(), most)) + 8)


class Paths(Texts):
    """Files or folders: chosen, dropped, or typed."""

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.finder = Finder(self)
        self.list.dropped.connect(self.on_dropped)
        self.edited.connect(self.on_edited)

    def show_value(self, value: Any) -> None:
        super().show_value(value)
        self.on_edited()

    def on_edited(self) -> None:
        """Look whether they are there."""
        self.finder.look([entries.path(one) for one in self.shown()])

    def on_dropped(self, paths: list[str]) -> None:
        """Add what was dropped; what is of the other kind is then said to be so."""
        self.put(paths)


class Files(Paths):
    """Files."""

    empty = "No files: drop or add them here"
    adds = "Add a file…"

    def on_add(self) -> None:
        """Ask for a file."""
        if file := ask_file(self, self.field.label, ""):
            self.put([file])


class Mixed(Texts):
    """Texts, and objects with settings of their own: these are shown with them, and are kept as they are."""

    def add(self, one: Any) -> None:
        """A line; one with settings cannot be typed over."""
        if not isinstance(one, dict):
            super().add(one)
            return
        item = self._append(entries.words(one, MIXED[self.field.kind]))
        item.setData(Qt.ItemDataRole.UserRole, one)
        item.setFlags(EDITABLE & ~Qt.ItemFlag.ItemIsEditable)

    def shown(self) -> list[Any]:
        items = [self.list.item(row) for row in range(self.list.count())]
        return [item.data(Qt.ItemDataRole.UserRole) or item.text() for item in items]


class Folders(Mixed, Paths):
    """Folders."""

    empty = "No folders: drop or add them here"
    adds = "Add a folder…"

    def put(self, texts: list[str]) -> None:
        """Add folders at the end, but for those that are there."""
        values = [*self.values, *(text for text in dict.fromkeys(texts) if text not in self.values)]
        self.change(values, len(values) - 1)

    def on_add(self) -> None:
        """Ask for a folder."""
        if folder := ask_folder(self, self.field.label, "", self.settings):
            self.put([folder])

    def on_dropped(self, paths: list[str]) -> None:
        for path in paths:
            self.settings.remember_folder(path)
        super().on_dropped(paths)
