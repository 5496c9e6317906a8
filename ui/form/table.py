"""What a list of objects is edited with: a table with a row for each, and a column for each of its fields."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QSignalBlocker, Qt
from PySide6.QtWidgets import (
    QComboBox,
    QHeaderView,
    QSizePolicy,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from ui.core import words
from ui.core.preset.field import Field
from ui.core.settings import Settings
from ui.form.inputs import Line, bounds, parsed, stepped, written
from ui.form.lists import Keys, Rows
from ui.widgets import theme

PLACE = re.compile(r"number (\d+)(?:, (\w+))?:", re.IGNORECASE)
"""Which row and cell a problem is about."""

TICK = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsUserCheckable


class Grid(Keys, QTableWidget):
    """Cells that any key opens for typing."""

    def __init__(self, rows: "Table", empty: str):
        super().__init__()
        self.rows, self.empty = rows, empty
        self.setSizeAdjustPolicy(QTableWidget.SizeAdjustPolicy.AdjustToContents)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)


class Cells(QStyledItemDelegate):
    """Opens a cell: a choice as a list, and a line that offers texts or steps through numbers."""

    def __init__(self, table: "Table"):
        super().__init__(table)
        self.table = table

    def createEditor(
        self, parent: QWidget, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> QWidget:
        column = self.table.field.columns[index.column()]
        if column.choices:
            box = QComboBox(parent)
            box.addItems(column.choices)
            return box
        line = Line(parent)
        line.stray = True  # until it is left, undo is the line's own
        line.setPlaceholderText(words.NONE if column.nullable else "")
        if column.kind == "text":
            line.offer(self.table.offers)
        else:
            line.stepped.connect(partial(_step, line, column))
        return line


class Table(Rows):
    """Objects, one a row: cells edited in place, rows added, removed, moved."""

    shape = dict

    def __init__(self, field: Field, settings: Settings):
        self.stray: dict[tuple[int, str], str] = {}
        """Why what stands in a cell is no value, by row and column."""
        self.offers: list[str] = []
        """Texts to complete from, in cells for free text."""
        self.grid = Grid(self, f"No {field.entry}s")
        super().__init__(field, settings, self.grid, f"Add a {field.entry}")
        self.grid.setColumnCount(len(field.columns))
        self.grid.setItemDelegate(Cells(self))
        for number, column in enumerate(field.columns):
            heading = QTableWidgetItem(column.label)
            heading.setToolTip(f"{column.description}\n{bounds(column)}".strip())
            self.grid.setHorizontalHeaderItem(number, heading)
            mode = QHeaderView.ResizeMode.Stretch if column.kind == "text" else QHeaderView.ResizeMode.ResizeToContents
            self.grid.horizontalHeader().setSectionResizeMode(number, mode)
        self.fill(-1)

    def kept(self, value: Any) -> str:
        row, name = next(iter(self.stray))
        return words.value(value[row].get(name))

    def offer(self, texts: list[str]) -> None:
        self.offers = texts

    def mark(self, problems: Sequence[str]) -> None:
        super().mark(problems)
        wrong = {(int(found[1]) - 1, found[2]) for problem in problems if (found := PLACE.match(problem))}
        color = theme.mixed(theme.colors().surface, theme.colors().bad, 0.3)
        with QSignalBlocker(self.grid):
            for row, number in product(range(len(self.values)), range(len(self.field.columns))):
                is_wrong = bool(wrong & {(row, self.field.columns[number].path), (row, None)})
                self._item(row, number).setData(Qt.ItemDataRole.BackgroundRole, color if is_wrong else None)

    def on_add(self) -> None:
        """A new entry at the end, to be filled in."""
        self.change([*self.values, {column.path: first(column) for column in self.field.columns}], len(self.values))
        self.grid.setFocus()
        self.grid.setCurrentCell(len(self.values) - 1, 0)
        self.grid.editItem(self.grid.currentItem())

    def on_item_changed(self, item: QTableWidgetItem) -> None:
        """Hand the list on with what was entered in it, or say why that is no value; what was there before holds."""
        column, row = self.field.columns[item.column()], item.row()
        self.stray.pop((row, column.path), None)
        try:
            value = _read(item, column)
        except ValueError as error:
            self.stray[row, column.path] = str(error)
        else:
            self.hand_on(self.values[:row] + [{**self.values[row], column.path: value}] + self.values[row + 1 :])
            self._show_cell(row, item.column())  # in its usual way, so that one sees how it was read
        (row, name), why = next(iter(self.stray.items()), ((0, ""), ""))
        self.refused.emit(f"number {row + 1}, {name}: {why}" if why else "")

    def show_rows(self) -> None:
        self.stray = {}
        self.grid.setRowCount(len(self.values))
        for row, number in product(range(len(self.values)), range(len(self.field.columns))):
            self.grid.setItem(row, number, QTableWidgetItem())
            self._show_cell(row, number)
        self.grid.horizontalHeader().setVisible(bool(self.values))

    def _item(self, row: int, number: int) -> QTableWidgetItem:
        item = self.grid.item(row, number)
        assert item is not None  # show_rows has filled the table
        return item

    def _show_cell(self, row: int, number: int) -> None:
        """A required value that is missing is empty."""
        item, column = self._item(row, number), self.field.columns[number]
        value = self.values[row].get(column.path, "" if column.required else column.default)
        with QSignalBlocker(self.grid):
            if column.kind == "boolean":
                item.setFlags(TICK)
                item.setCheckState(Qt.CheckState.Checked if value else Qt.CheckState.Unchecked)
            else:
                item.setText(written(value))
                item.setToolTip(written(value))  # long ones are cut off


def first(column: Field) -> Any:
    """What a new entry has in a column."""
    if not column.required:
        return column.default
    if column.choices:
        return column.choices[0]
    return {"text": "", "boolean": False}.get(column.kind, column.minimum or 0)


def _read(item: QTableWidgetItem, column: Field) -> Any:
    """The value in a cell, where an empty one may be none; ValueError with a sentence if it is no value."""
    if column.kind == "boolean":
        return item.checkState() == Qt.CheckState.Checked
    if column.nullable and not item.text().strip():
        return None
    return item.text() if column.kind in ("text", "choice") else parsed(item.text(), column.kind == "integer")


def _step(line: Line, column: Field, direction: int) -> None:
    """One up or down, where there is a number."""
    with suppress(ValueError):
        line.setText(written(stepped(parsed(line.text(), column.kind == "integer"), direction, column)))
