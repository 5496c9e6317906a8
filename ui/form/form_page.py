"""A page of settings, built from one section of the schema."""

from collections.abc import Mapping, Sequence

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtWidgets import QFrame, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from ui.core import words
from ui.core.preset.document import Document
from ui.core.preset.field import Field
from ui.core.settings import Settings
from ui.form.inputs import label
from ui.form.row import Row, sentence
from ui.widgets import icons, theme
from ui.widgets.making import across, down, dressed, say

WIDTH = 128
"""Widest a page gets, in characters: longer lines are hard to read."""

BASIC = "Basic"
"""The group that stands first and needs no heading."""


class FormPage(QScrollArea):
    """One section: basic options first, group by group, and the advanced ones folded below."""

    unread_changed = Signal()
    """A field holds a text that is no value, or no longer; see `unread`."""

    def __init__(self, document: Document, section_path: str, settings: Settings):
        super().__init__()
        self.document, self.section_path, self.settings = document, section_path, settings
        self.rows: dict[str, Row] = {}
        self.headings: list[QLabel] = []
        self._problems: Mapping[str, Sequence[str]] = {}
        self._unread: dict[str, str] = {}
        self.title, self.about = label("", "title"), label("", "muted")
        self.problem = label("", "problem")
        self.fold = dressed(QPushButton(), "flat", checkable=True)
        self.basic, self.advanced = QWidget(), QWidget()
        self._lay_out()
        self.build()
        self.fold.toggled.connect(self.on_fold_toggled)
        self.fold.setChecked(settings.flag(self._fold_key()))
        self.on_fold_toggled(self.fold.isChecked())
        document.structure_changed.connect(self.on_structure_changed)
        document.changed.connect(self.on_changed)
        document.origin_changed.connect(self.refresh)
        theme.notifier().changed.connect(self._say)

    def build(self) -> None:
        """Rows for the fields that the section has now; rows of unchanged fields stay, with what is typed there."""
        sections = self.document.schema.sections(self.document.values)
        section = next(one for one in sections if one.path == self.section_path)
        self.title.setText(section.title)
        say(self.about, section.description)
        width = self._label_width()
        old, self.rows = self.rows, {}
        for field in in_order(section.fields):
            kept = field.path in old and old[field.path].field == field
            self.rows[field.path] = old.pop(field.path) if kept else self._row(field, width)
        for gone in (*old.values(), *self.headings):
            gone.hide()
            gone.deleteLater()
        self.headings = []
        for place, advanced in ((self.basic, False), (self.advanced, True)):
            self._fill(place, [row for row in self.rows.values() if row.field.advanced == advanced])
        self._set_tab_order()
        self.set_problems(self._problems)
        self._say()

    def add_above(self, widget: QWidget) -> None:
        """Put a widget between the section's description and its options."""
        self.column.insertWidget(self.column.indexOf(self.basic), widget)

    def reveal(self, path: str) -> None:
        """Unfold, scroll to and flash an option; one that another variant has: the choice between the variants.

        The section's own path leads to its top.
        """
        if path not in self.rows:
            path = next((tag for tag in self.document.schema.owners(path) if tag in self.rows), path)
        row = self.rows.get(path)
        if row is None:  # the section itself: what is wrong with it stands at the top
            self.setFocus()
            self.verticalScrollBar().setValue(0)
            return
        if row.field.advanced:
            self.fold.setChecked(True)
        row.input.focus()
        row.flash()
        QTimer.singleShot(0, row, lambda: self.ensureWidgetVisible(row, 0, self.fontMetrics().height() * 3))

    def set_problems(self, problems: Mapping[str, Sequence[str]]) -> None:
        """Show what the trainer's check says, each at its field; what is about the section stands at the top."""
        self._problems = problems
        for path, row in self.rows.items():
            row.set_deep(problems.get(path, ()))
        own = [path for path in problems if path not in self.rows and self._is_inside(path)]
        say(self.problem, "\n".join(sentence(one) for path in own for one in problems[path]))

    def set_choices(self, path: str, choices: list[str]) -> None:
        """Offer texts to complete from, in a field for free text."""
        if path in self.rows:
            self.rows[path].input.offer(choices)

    def unread(self) -> dict[str, str]:
        """The fields that hold a text that is no value, with the sentence that stands there."""
        return {path: sentence(row.unread) for path, row in self.rows.items() if row.unread}

    def refresh(self) -> None:
        """Show everything anew."""
        for row in self.rows.values():
            row.refresh()

    def on_structure_changed(self, section: str) -> None:
        """Another variant was chosen somewhere."""
        if section == "" or self._is_inside(section):
            self.build()
            self.refresh()

    def on_changed(self, path: str) -> None:
        """A value has changed, by the user, by undo, or by opening another preset."""
        if path in self.rows:
            self.rows[path].refresh()
        elif path == "":
            self.build()
            self.refresh()
        elif self._is_inside(path):
            self.refresh()

    def on_fold_toggled(self, open_: bool) -> None:
        """Unfold or fold the advanced options, and remember it."""
        self.advanced.setVisible(open_)
        self.settings.keep(self._fold_key(), open_)
        self._say()

    def _say(self) -> None:
        """How many advanced options there are, and what one would miss by not looking."""
        rows = [row for row in self.rows.values() if row.field.advanced]
        changed = sum(row.modified for row in rows)
        wrong = sum(bool(row.problems()) for row in rows)
        facts = [str(len(rows))] + [f"{changed} changed"] * bool(changed)
        facts += [words.plural(wrong, "problem")] * bool(wrong)
        self.fold.setText(f"Advanced ({', '.join(facts)})")
        self.fold.setIcon(icons.icon("down" if self.fold.isChecked() else "right"))
        self.fold.setVisible(bool(rows))
        if (unread := self.unread()) != self._unread:
            self._unread = unread
            self.unread_changed.emit()

    def _row(self, field: Field, label_width: int) -> Row:
        row = Row(field, self.document, self.settings, label_width)
        row.said.connect(self._say)
        return row

    def _fill(self, place: QWidget, rows: list[Row]) -> None:
        """Put rows below the headings of their groups."""
        column = place.layout()
        assert isinstance(column, QVBoxLayout)
        # takeAt would leave the item alive, which then keeps an old height for the row
        while (item := column.itemAt(0)) and (widget := item.widget()):
            column.removeWidget(widget)
        group = BASIC
        for row in rows:
            if row.field.group != group:
                group = row.field.group
                self.headings.append(label(group, "heading"))
                self.headings[-1].setContentsMargins(12, 14, 0, 2)
                column.addWidget(self.headings[-1])
            column.addWidget(row)

    def _set_tab_order(self) -> None:
        """From top to bottom, with the advanced ones behind the button that unfolds them."""
        stops: list[QWidget] = []
        for row in self.rows.values():
            if row.field.advanced and self.fold not in stops:
                stops.append(self.fold)
            stops += row.stops()
        for before, after in zip(stops, stops[1:], strict=False):
            QWidget.setTabOrder(before, after)

    def _lay_out(self) -> None:
        dressed(self, focusPolicy=Qt.FocusPolicy.ClickFocus, frameShape=QFrame.Shape.NoFrame, widgetResizable=True)
        for text in (self.title, self.about, self.problem):
            text.setContentsMargins(12, 0, 0, 6)
        for place in (self.basic, self.advanced):
            down(of=place, margins=(0, 0, 0, 0)).setSpacing(2)
        fold = across(self.fold, None, margins=(8, 14, 0, 4))
        content = QWidget()
        content.setMaximumWidth(self.fontMetrics().averageCharWidth() * WIDTH)
        options = (self.basic, fold, self.advanced, None)
        above = (self.title, self.about, self.problem, 6)
        self.column = down(*above, *options, of=content, margins=(12, 20, 20, 24))
        self.column.setSpacing(0)
        body = QWidget()
        across((content, 1000), None, of=body, margins=(0, 0, 0, 0))
        self.setWidget(body)

    def _label_width(self) -> int:
        """One width for the names on all pages, whatever variant is chosen."""
        every = self.document.schema.everything().values()
        return max(self.fontMetrics().horizontalAdvance(field.label) for fields in every for field in fields) + 4

    def _fold_key(self) -> str:
        return f"advanced/{self.section_path or 'general'}"

    def _is_inside(self, path: str) -> bool:
        """Whether a path is of this section; top-level options are the section ""."""
        return path.partition(".")[0] == self.section_path if self.section_path else path == ""


def in_order(fields: Sequence[Field]) -> list[Field]:
    """Basic options before advanced ones; within these, the basic group, then the others as they come."""
    groups = list(dict.fromkeys(field.group for field in fields))
    return sorted(fields, key=lambda field: (field.advanced, field.group != BASIC, groups.index(field.group)))
