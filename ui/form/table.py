"""What a list of objects is edited with: a table with a row for each, and a cell for each of its fields."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QFrame, QGridLayout, QPushButton, QScrollArea, QWidget

from ui.core import words
from ui.core.preset.field import Field
from ui.core.settings import Settings
from ui.form.inputs import Choice, Flag, Input, Number, Text, bounds, label
from ui.widgets import icons, theme

PLACE = re.compile(r"number (\d+)(?:, (\w+))?:", re.IGNORECASE)
"""Which row and cell a problem is about."""

NARROW = 12
"""Characters that fit into the cell of a number."""


class NumberCell(Number):
    """A number; where it may be none, an empty cell is none."""

    def short(self) -> int:
        return self.fontMetrics().averageCharWidth() * NARROW

    def say_bounds(self, text: str) -> None:
        self.edit.setToolTip(text)
        self.edit.setPlaceholderText(words.NONE if self.field.nullable else "")

    def read(self) -> Any:
        return None if self.field.nullable and not self.edit.text().strip() else super().read()

    def on_step(self, direction: int) -> None:
        """One up or down, where there is a number."""
        if self.edit.text().strip():
            super().on_step(direction)


CELLS: dict[str, type[Input]] = {
    "boolean": Flag,
    "integer": NumberCell,
    "number": NumberCell,
    "text": Text,
    "choice": Choice,
}
"""What each kind of field is edited with in a table."""


class Entry:
    """The widgets of one row, which always shows the entry of the same number."""

    def __init__(self, table: "Table", row: int):
        self.number = label(f"{row + 1}", "muted")
        self.number.setWordWrap(False)
        self.cells = {column.path: self._cell(table, column, row) for column in table.field.columns}
        self.up = table.button("up", "Move up (Ctrl+Up)", row)
        self.down = table.button("down", "Move down (Ctrl+Down)", row)
        self.remove = table.button("remove", "Remove", row)
        self.up.clicked.connect(lambda: table.move(row, -1, "up"))
        self.down.clicked.connect(lambda: table.move(row, 1, "down"))
        self.remove.clicked.connect(lambda: table.on_remove(row))

    @property
    def tools(self) -> tuple[QPushButton, QPushButton, QPushButton]:
        """The buttons at the end of the row."""
        return self.up, self.down, self.remove

    @property
    def stops(self) -> list[QWidget]:
        """Where the tab key stops, in order."""
        return [*(cell.editor for cell in self.cells.values()), *self.tools]

    @property
    def widgets(self) -> list[QWidget]:
        """What stands in the grid, from left to right."""
        return [self.number, *self.cells.values(), *self.tools]

    def show_entry(self, entry: Mapping[str, Any]) -> None:
        """Show these values; a required value that is missing is empty."""
        for name, cell in self.cells.items():
            cell.show_value(entry.get(name, "" if cell.field.required else cell.field.default))

    def _cell(self, table: "Table", column: Field, row: int) -> Input:
        cell = CELLS[column.kind](column, table.settings)
        cell.editor.setAccessibleName(f"{table.field.label} {row + 1}: {column.label}")
        cell.edited.connect(partial(table.on_cell_edited, row, column.path))
        cell.refused.connect(partial(table.on_cell_refused, row, column.path))
        cell.left.connect(table.on_cell_left)
        cell.offer(table.offers)
        return cell


class Table(Input):
    """Objects, one a row: cells edited in place, rows added, removed, moved."""

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.values: list[dict[str, Any]] = []
        self.held = self.values
        """The values from before the user began to type."""
        self.other: Any = None
        """A value that is no list of objects."""
        self.stray: dict[tuple[int, str], str] = {}
        """Why what stands in a cell is no value, by row and column."""
        self.rows: list[Entry] = []
        self.offers: list[str] = []
        """Texts to complete from, in cells for free text."""
        self.frame = QFrame()
        self.frame.setProperty("role", "table")
        self.take(self.frame, 1)
        self.grid = QGridLayout(self.frame)
        self.grid.setContentsMargins(8, 4, 4, 6)
        self.grid.setHorizontalSpacing(6)
        self.grid.setVerticalSpacing(4)
        self.headings = [self._heading(number, column) for number, column in enumerate(field.columns, start=1)]
        self.empty = label(f"No {field.entry} yet", "muted")
        self.grid.addWidget(self.empty, 0, 0, 1, len(field.columns) + 1)
        self.add = self._tool("add", f"Add a {field.entry}")
        self.add.setAccessibleName(f"{field.label}: add a {field.entry}")
        self.add.clicked.connect(self.on_add)
        self.grid.addWidget(self.add, 0, len(field.columns) + 3)
        for keys, by in (("Ctrl+Up", -1), ("Ctrl+Down", 1)):
            shortcut = QShortcut(QKeySequence(keys), self, context=Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(partial(self.on_moving, by))
        theme.notifier().changed.connect(self.on_theme_changed)
        self._show()

    def show_value(self, value: Any) -> None:
        shown = self.field.understood(value)
        right = isinstance(shown, list) and all(isinstance(one, dict) for one in shown)
        self.other = None if right else value
        self.values = self.held = shown if right else []
        self._show()

    def read(self) -> Any:
        return self.values if self.other is None else self.other

    def focus(self) -> None:
        (self.rows[0].stops[0] if self.rows else self.add).setFocus()

    def kept(self, value: Any) -> str:
        row, name = next(iter(self.stray))
        return words.value(value[row].get(name))

    def offer(self, texts: list[str]) -> None:
        self.offers = texts
        for row in self.rows:
            for cell in row.cells.values():
                cell.offer(texts)

    def mark(self, problems: Sequence[str]) -> None:
        super().mark(problems)
        wrong = {(int(found[1]) - 1, found[2]) for problem in problems if (found := PLACE.match(problem))}
        for number, row in enumerate(self.rows):
            for name, cell in row.cells.items():
                cell.set_invalid(bool(wrong & {(number, name), (number, None)}))

    def on_cell_edited(self, row: int, name: str, value: Any) -> None:
        """Hand the list on with this value in it."""
        self.values = [{**one, name: value} if number == row else one for number, one in enumerate(self.values)]
        self.edited.emit(self.values)
        if self.stray:  # in another cell: what was typed here holds nevertheless
            self.on_cell_left()
            self._refuse()

    def on_cell_refused(self, row: int, name: str, why: str) -> None:
        """Say which cell holds no value; what was there before holds."""
        self.stray.pop((row, name), None)
        if why:
            self.stray[row, name] = why
            self.values = self.held
        self._refuse()

    def on_cell_left(self) -> None:
        """What was entered holds now."""
        self.held = self.values
        self.left.emit()

    def on_add(self) -> None:
        """A new entry at the end, to be filled in."""
        self._change([*self.values, {column.path: first(column) for column in self.field.columns}])
        self._go_to(self.rows[-1].stops[0])

    def on_remove(self, row: int) -> None:
        """Remove an entry."""
        self._change([one for number, one in enumerate(self.values) if number != row])
        self._go_to(self.rows[min(row, len(self.rows) - 1)].remove if self.rows else self.add)

    def on_moving(self, by: int) -> None:
        """Move the entry that has the focus."""
        for number, row in enumerate(self.rows):
            for place, stop in enumerate(row.stops):
                if stop.hasFocus() and self._swap(number, by):
                    self._go_to(self.rows[number + by].stops[place])
                    return

    def move(self, row: int, by: int, tool: str) -> None:
        """Move an entry with one of its buttons, which keeps the focus for the next click."""
        if self._swap(row, by):
            moved = self.rows[row + by]
            button = moved.up if tool == "up" else moved.down
            self._go_to(button if button.isEnabled() else moved.stops[0])

    def on_theme_changed(self) -> None:
        """Draw the icons in the new colours."""
        for button in (self.add, *(tool for row in self.rows for tool in row.tools)):
            button.setIcon(icons.icon(button.objectName()))

    def button(self, icon: str, says: str, row: int) -> QPushButton:
        """A button for what can be done with an entry."""
        button = self._tool(icon, says)
        button.setAccessibleName(f"{self.field.label} {row + 1}: {says.partition(' (')[0].lower()}")
        return button

    def _swap(self, row: int, by: int) -> bool:
        """Move an entry; whether there was a place to move it to."""
        if not 0 <= row + by < len(self.values):
            return False
        values = list(self.values)
        values.insert(row + by, values.pop(row))
        self._change(values)
        return True

    def _change(self, values: list[dict[str, Any]]) -> None:
        """Other entries: an undo step of its own, and the end of texts that are no values."""
        self.on_cell_left()
        self.values, self.other = values, None
        self._show()
        self.refused.emit("")
        self.edited.emit(self.values)
        self.on_cell_left()

    def _refuse(self) -> None:
        (row, name), why = next(iter(self.stray.items()), ((0, ""), ""))
        self.refused.emit(f"number {row + 1}, {name}: {why}" if why else "")

    def _show(self) -> None:
        """A row for each entry, and what can be done with it."""
        self.stray = {}
        while len(self.rows) > len(self.values):
            for widget in self.rows.pop().widgets:
                self.grid.removeWidget(widget)
                widget.hide()
                widget.setParent(None)  # it is no stop of the tab key any more
                widget.deleteLater()
        while len(self.rows) < len(self.values):
            self._append()
        for number, (row, entry) in enumerate(zip(self.rows, self.values, strict=True)):
            row.show_entry(entry)
            row.up.setEnabled(number > 0)
            row.down.setEnabled(number < len(self.values) - 1)
        self.empty.setVisible(not self.values)
        for heading in self.headings:
            heading.setVisible(bool(self.values))

    def _append(self) -> None:
        row, before = Entry(self, len(self.rows)), self.rows[-1].stops[-1] if self.rows else self.add
        for column, widget in enumerate(row.widgets):
            self.grid.addWidget(widget, len(self.rows) + 1, column)
        for stop in row.stops:  # from left to right, row by row
            QWidget.setTabOrder(before, stop)
            before = stop
        self.rows.append(row)

    def _heading(self, number: int, column: Field) -> QWidget:
        heading = label(column.label, "muted")
        heading.setWordWrap(False)
        heading.setToolTip(f"{column.description}\n{bounds(column)}".strip())
        self.grid.addWidget(heading, 0, number)
        self.grid.setColumnStretch(number, 1 if column.kind == "text" else 0)
        return heading

    def _tool(self, icon: str, says: str) -> QPushButton:
        button = QPushButton(icons.icon(icon), "")
        button.setProperty("role", "flat")
        button.setObjectName(icon)
        button.setToolTip(says)
        return button

    def _go_to(self, widget: QWidget) -> None:
        """Give the focus, and scroll there once the page has its new height."""
        widget.setFocus()
        area = self.parentWidget()
        while area is not None and not isinstance(area, QScrollArea):
            area = area.parentWidget()
        if area is not None:
            QTimer.singleShot(0, widget, partial(area.ensureWidgetVisible, widget))


def first(column: Field) -> Any:
    """What a new entry has in a column."""
    if not column.required:
        return column.default
    if column.choices:
        return column.choices[0]
    return {"text": "", "boolean": False}.get(column.kind, column.minimum or 0)
