"""The page of differences: the edited preset beside itself as opened, the defaults, another preset or a past run."""

from itertools import groupby
from pathlib import Path
from typing import Any

from PySide6.QtCore import QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication, QHideEvent, QShowEvent
from PySide6.QtWidgets import (
    QComboBox,
    QHeaderView,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QWidget,
)

from ui.core import words, workers
from ui.core.preset import files
from ui.core.preset.comparison import Row, as_text, defaults, rows
from ui.core.preset.document import Document
from ui.core.preset.files import Entry, Opened
from ui.core.runs.library import Library
from ui.widgets import icons, theme
from ui.widgets.making import across, action, down, dressed, say
from ui.widgets.two_lines import DETAIL, TwoLines

OPENED, DEFAULTS = "opened", "defaults"
ROW = Qt.ItemDataRole.UserRole + 10
HINT = "Changes are listed here, compared with the saved preset, the defaults, another preset or a run."
LINES = 6
"""How many lines of a long value are shown; the rest is in its tooltip."""


class ChangesPage(QWidget):
    """A table of what differs; each setting can be set back."""

    show_field = Signal(str)

    def __init__(self, document: Document, library: Library, parent: QWidget | None = None):
        super().__init__(parent)
        self._document, self._library = document, library
        self._entries: list[Entry] = []
        self._read: Opened | None = None
        """The chosen preset or run."""
        self._listing: workers.Task | None = None
        self._reading: workers.Task | None = None
        self.rows: list[Row] = []
        self.title, self.sentence = dressed(QLabel(), "title"), QLabel(wordWrap=True)
        self.against = dressed(QComboBox(maxVisibleItems=24, minimumContentsLength=36), name="Compared with")
        self.copy = QPushButton("&Copy as text")
        self.table = dressed(QTableWidget(0, 4), name="Settings that differ", showGrid=False, tabKeyNavigation=False)
        self._soon = QTimer(self, singleShot=True, interval=0)
        self._soon.timeout.connect(self.on_soon)
        self._set_up_table()
        self._lay_out()
        self._fill_against()
        self.against.currentIndexChanged.connect(self.on_against_changed)
        self.copy.clicked.connect(self.on_copy)
        for signal in (document.changed, document.structure_changed, document.origin_changed):
            signal.connect(lambda: self._soon.start())
        document.origin_changed.connect(self._fill_against)
        library.changed.connect(self._fill_against)
        theme.notifier().changed.connect(self._soon.start)

    # -- what the user does --------------------------------------------------------------------------------------------

    def compare_with(self, thing: str) -> None:
        """Compare with OPENED, DEFAULTS, or the preset or run at this path."""
        self.against.setCurrentIndex(max(0, self.against.findData(thing)))

    def on_against_changed(self) -> None:
        """Read what is compared with."""
        if self._reading:
            self._reading.cancel()
        self._read, thing = None, self.against.currentData()
        if thing not in (OPENED, DEFAULTS):
            self._fill([], "Reading…", "muted")
            failed = lambda sentence: self._fill([], sentence, "problem")  # noqa: E731
            self._reading = workers.run(
                files.read, Path(thing), self._document.schema, done=self._on_read, failed=failed
            )
        self._soon.start()

    def on_copy(self) -> None:
        """Put the differences on the clipboard."""
        name = self._document.origin.name or "New preset"
        QGuiApplication.clipboard().setText(as_text(f"{name}, compared with {self._other_name()}", self.rows))

    def on_reset(self) -> None:
        """Set the chosen setting back."""
        row = self._current()
        if row and not row.locked:
            self._reset(row)

    def on_activated(self) -> None:
        """Show the chosen setting in the form."""
        row = self._current()
        if row and row.here:
            self.show_field.emit(row.path)

    def on_soon(self) -> None:
        """Compare anew, if anybody looks."""
        if self.isVisible():
            self._show()

    def showEvent(self, event: QShowEvent) -> None:
        """Compare anew; presets may have come meanwhile."""
        super().showEvent(event)
        self.on_against_changed()
        self._listing = workers.run(files.listing, done=self._on_listed, failed=self.sentence.setText)

    def hideEvent(self, event: QHideEvent) -> None:
        """Nobody looks any more, or the window is about to go."""
        super().hideEvent(event)
        for task in (self._listing, self._reading):
            if task:
                task.cancel()

    # -- what is compared with -----------------------------------------------------------------------------------------

    def _on_listed(self, entries: list[Entry]) -> None:
        self._entries = entries
        self._fill_against()

    def _on_read(self, opened: Opened) -> None:
        self._read = opened
        self._show()

    def _fill_against(self) -> None:
        """Offer what there is, keeping the choice; an open list is left alone."""
        name = self._document.origin.name or "the new preset"
        presets = [(f"Preset {entry.name}", str(entry.path)) for entry in self._entries]
        started = {one.folder: f", {words.when(one.started)}" if one.started else "" for one in self._library.glances}
        runs = [(f"Run {one.name}{started[one.folder]}", str(one.folder)) for one in self._library.glances]
        wanted = [("This preset", ""), (f"{name} as opened or saved", OPENED), ("The defaults", DEFAULTS)]
        wanted += [("Presets", ""), *presets] if presets else []
        wanted += [("Runs", ""), *runs] if runs else []
        box = self.against
        there = [(box.itemText(index), box.itemData(index)) for index in range(box.count())]
        if wanted == there or box.view().isVisible():
            return
        chosen = box.currentData() or OPENED
        with QSignalBlocker(box):
            box.clear()
            for text, data in wanted:
                box.addItem(text, data)
                if not data:
                    self._make_heading(box.count() - 1)
            self.compare_with(chosen if box.findData(chosen) >= 0 else OPENED)
        if box.currentData() != chosen:
            self.on_against_changed()

    def _make_heading(self, index: int) -> None:
        model, font = self.against.model(), self.against.font()
        font.setBold(True)
        model.setData(model.index(index, 0), font, Qt.ItemDataRole.FontRole)
        model.setData(model.index(index, 0), 0, Qt.ItemDataRole.UserRole - 1)  # no flags: cannot be chosen

    def _other(self) -> dict[str, Any] | None:
        """The values compared with; None while they are read."""
        thing = self.against.currentData()
        if thing == OPENED:
            return self._document.baseline
        if thing == DEFAULTS:
            return defaults(self._document)
        return self._read.values if self._read else None

    def _other_name(self) -> str:
        text = self.against.currentText()
        return text[0].lower() + text[1:] if self.against.currentData() != OPENED else text

    # -- showing -------------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        other = self._other()
        if other is None:
            return
        problems = self._read.problems if self._read else ()
        changed = rows(self._document, other)
        if problems:
            self._fill(changed, f"Problems in {self._other_name()}: {'; '.join(problems)}", "note")
        else:
            self._fill(changed, "" if changed else f"No differences from {self._other_name()}. {HINT}", "muted")

    def _fill(self, changed: list[Row], sentence: str, role: str) -> None:
        before, scrolled = self._current(), self.table.verticalScrollBar().value()
        self.rows = changed
        self.title.setText(f"What changed: {words.plural(len(changed), 'setting')}" if changed else "What changed")
        say(self.sentence, sentence, role)
        self.copy.setEnabled(bool(changed))
        self.table.setVisible(bool(changed))
        self.table.setRowCount(0)
        self.table.clearSpans()
        for section, inside in groupby(changed, key=lambda row: row.section):
            self._add_heading(section)
            for row in inside:
                self._add(row)
                if before and before.path == row.path:
                    self.table.setCurrentCell(self.table.rowCount() - 1, 0)
        self.table.resizeRowsToContents()
        self.table.verticalScrollBar().setValue(scrolled)

    def _add_heading(self, section: str) -> None:
        item = QTableWidgetItem(section)
        item.setFlags(Qt.ItemFlag.NoItemFlags)
        item.setForeground(theme.colors().text)
        font = item.font()
        font.setBold(True)
        item.setFont(font)
        line = self.table.rowCount()
        self.table.insertRow(line)
        self.table.setItem(line, 0, item)
        self.table.setSpan(line, 0, 1, 4)

    def _add(self, row: Row) -> None:
        line = self.table.rowCount()
        self.table.insertRow(line)
        setting, before, now = (QTableWidgetItem(text) for text in (row.label, row.before, row.now))
        setting.setData(DETAIL, row.path)
        before.setForeground(theme.colors().muted)
        for column, item in enumerate((setting, before, now)):
            item.setData(ROW, row)
            item.setToolTip(item.text() if column else row.path)
            self.table.setItem(line, column, item)
        tip = row.locked or f"Reset to {row.before}"
        button = dressed(QToolButton(), "flat", f"Reset {row.label}", tip, enabled=not row.locked)
        button.setIcon(icons.icon("reset"))
        button.clicked.connect(lambda: self._reset(row))
        self.table.setCellWidget(line, 3, button)

    def _current(self) -> Row | None:
        item = self.table.item(self.table.currentRow(), 0)
        return item.data(ROW) if item else None

    def _reset(self, row: Row) -> None:
        self._document.seal()
        if self.against.currentData() == OPENED:
            self._document.reset(row.path)  # with a method, its settings come back too
        else:
            self._document.set(row.path, row.other)
        self._document.seal()

    # -- making --------------------------------------------------------------------------------------------------------

    def _set_up_table(self) -> None:
        table, width = self.table, self.fontMetrics().averageCharWidth()
        table.setHorizontalHeaderLabels(["Setting", "Before", "Now", ""])
        table.setItemDelegateForColumn(0, TwoLines(table))
        table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        table.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
        table.setSelectionMode(QTableWidget.SelectionMode.SingleSelection)
        table.setVerticalScrollMode(QTableWidget.ScrollMode.ScrollPerPixel)
        table.verticalHeader().hide()
        table.verticalHeader().setMaximumSectionSize(self.fontMetrics().lineSpacing() * LINES + 12)
        header = table.horizontalHeader()
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.resizeSection(0, width * 36)
        for column in (1, 2):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(3, QHeaderView.ResizeMode.ResizeToContents)
        header.sectionResized.connect(lambda: QTimer.singleShot(0, table.resizeRowsToContents))
        table.itemActivated.connect(self.on_activated)
        table.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        action(table, "&Show setting", self.on_activated)
        action(table, "&Reset", self.on_reset, keys="Del")

    def _lay_out(self) -> None:
        label = QLabel("Compared &with")
        label.setBuddy(self.against)
        self.against.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        top = across(label, self.against, None, self.copy)
        down(self.title, top, self.sentence, (self.table, 1), of=self).addStretch(0)
