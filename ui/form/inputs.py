"""What one value is edited with: check box, number, text, choice.

An input shows the value it is told and says what the user enters; it never writes anywhere. A text that is no value
(`abc` for a number) stays in the input, is not handed on, and is `refused` with a sentence.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from math import isfinite
from typing import Any

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent, QKeySequence, QWheelEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QCompleter, QLabel, QLineEdit, QWidget

from ui.core import words
from ui.core.preset.field import Field
from ui.core.settings import Settings
from ui.widgets import theme
from ui.widgets.making import across, dressed
from ui.widgets.two_lines import describe

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SHORT = 20
"""Characters that fit into the input of a number, and at least into a choice."""


class Input(QWidget):
    """What a value is edited with. `show_value` is from outside, the signals are the user's doing."""

    edited = Signal(object)
    """The user has entered this value."""
    refused = Signal(str)
    """Why what stands here is no value; empty: it is one again."""
    found = Signal(str, str)
    """What was found out about the value: a problem, a remark. Either may be empty."""
    left = Signal()
    """The user is done with this value."""

    def __init__(self, field: Field, settings: Settings):
        super().__init__()
        self.field, self.settings = field, settings
        self.line = across(of=self, margins=(0, 0, 0, 0))
        self.editor: QWidget = self

    def take(self, editor: QWidget, stretch: int = 0) -> None:
        """Edit with this widget; it is what gets the focus and the frame of a wrong value."""
        self.editor = editor
        dressed(editor, name=self.field.label, accessibleDescription=self.field.description)
        self.line.addWidget(editor, stretch)

    def focus(self) -> None:
        """Give the editor the focus. A focus proxy would be a second stop of the tab key, out of order."""
        self.editor.setFocus()

    def short(self) -> int:
        """Width of an input for a number or a word."""
        return self.fontMetrics().averageCharWidth() * SHORT

    def mark(self, problems: Sequence[str]) -> None:
        """Frame what the problems are about."""
        theme.set_look(self.editor, "invalid", bool(problems))

    def kept(self, value: Any) -> str:
        """In words, what of `value` holds while what stands here is no value."""
        return words.value(value)

    def offer(self, texts: list[str]) -> None:
        """Texts to complete from, where a text is asked for."""

    def show_value(self, value: Any) -> None:
        """Show a value, whatever was entered here before; also one that the schema refuses."""
        raise NotImplementedError

    def read(self) -> Any:
        """The value that is shown; ValueError with a sentence if it is none."""
        raise NotImplementedError


class Flag(Input):
    """On or off."""

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.box = QCheckBox("On")
        self.other: Any = False
        self.take(self.box)
        self.line.addStretch(1)
        self.box.clicked.connect(self.on_clicked)

    def show_value(self, value: Any) -> None:
        self.other = value
        state = Qt.CheckState.Checked if value else Qt.CheckState.Unchecked
        self.box.setCheckState(state if isinstance(value, bool) else Qt.CheckState.PartiallyChecked)

    def read(self) -> Any:
        partly = self.box.checkState() == Qt.CheckState.PartiallyChecked
        return self.other if partly else self.box.isChecked()

    def on_clicked(self) -> None:
        """A click decides, even where there was neither on nor off."""
        self.box.setTristate(False)
        self.edited.emit(self.box.isChecked())
        self.left.emit()


class Line(QLineEdit):
    """A line of text whose undo is the window's, and whose arrow keys say so."""

    stepped = Signal(int)
    entered = Signal()
    stray = False
    """Whether the text stands only here, because it is no value."""

    def event(self, event: QEvent) -> bool:
        """Leave undo and redo to the window, but for a text that stands only here."""
        if event.type() == QEvent.Type.ShortcutOverride and not self.stray:
            assert isinstance(event, QKeyEvent)
            if event.matches(QKeySequence.StandardKey.Undo) or event.matches(QKeySequence.StandardKey.Redo):
                event.ignore()
                return False
        return super().event(event)

    def focusInEvent(self, event: QFocusEvent) -> None:
        self.entered.emit()
        super().focusInEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        step = {Qt.Key.Key_Up: 1, Qt.Key.Key_Down: -1}.get(Qt.Key(event.key()))
        if step is None:
            super().keyPressEvent(event)
        elif completer := self.completer():
            completer.setCompletionPrefix("")
            completer.complete()
        else:
            self.stepped.emit(step)

    def replace(self, text: str) -> None:
        """Show another text, with the cursor where it was."""
        self.stray = False
        position = self.cursorPosition()
        self.setText(text)
        self.setCursorPosition(min(position, len(text)) if self.hasFocus() else 0)

    def offer(self, texts: list[str]) -> None:
        """Texts to complete from; the arrow keys show them all. Call it anew when there are others."""
        if completer := self.completer():  # kept: it closes its popup, which comes here, while it is at work
            completer.model().setStringList(texts)  # pyright: ignore[reportAttributeAccessIssue]
        elif texts:
            completer = QCompleter(texts, self)
            completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
            completer.setFilterMode(Qt.MatchFlag.MatchContains)
            self.setCompleter(completer)
            completer.activated.connect(self.textEdited)


class Text(Input):
    """Any text on one line."""

    def __init__(self, field: Field, settings: Settings, line: Line | None = None):
        """`line`: what the text is typed into."""
        super().__init__(field, settings)
        self.edit = line or Line()
        self.take(self.edit, 1)
        self.edit.textEdited.connect(self.edited.emit)
        self.edit.textChanged.connect(self.edit.setToolTip)  # long ones are cut off in the line
        self.edit.editingFinished.connect(self.left)

    def show_value(self, value: Any) -> None:
        self.edit.replace(value if isinstance(value, str) else words.value(value))

    def read(self) -> Any:
        return self.edit.text()

    def offer(self, texts: list[str]) -> None:
        self.edit.offer(texts)


class Number(Input):
    """A number, in any notation; the arrow keys change its first digit (whole numbers: by one)."""

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.edit = Line()
        self.edit.setFixedWidth(self.short())
        self.take(self.edit)
        hint = label(" · ".join(part for part in (field.unit, bounds(field)) if part), "muted")
        hint.setWordWrap(False)
        self.line.addWidget(hint)
        self.line.addStretch(1)
        self.edit.textEdited.connect(self.on_text)
        self.edit.stepped.connect(self.on_step)
        self.edit.editingFinished.connect(self.on_finished)

    def show_value(self, value: Any) -> None:
        self.edit.replace(self.text(value))

    def text(self, value: Any) -> str:
        """The value as it is typed."""
        return written(value)

    def read(self) -> Any:
        return parsed(self.edit.text(), self.field.kind == "integer")

    def on_text(self) -> None:
        """Hand on what is a number."""
        try:
            value = self.read()
        except ValueError as error:
            self.edit.stray = True
            self.refused.emit(str(error))
            return
        self.edit.stray = False
        self.refused.emit("")
        self.edited.emit(value)

    def on_step(self, direction: int) -> None:
        """One up or down."""
        with suppress(ValueError):  # nothing to step from; on_text has said so
            value = stepped(self.read(), direction, self.field)
            self.edit.replace(self.text(value))
            self.edited.emit(value)

    def on_finished(self) -> None:
        """Write the number in its usual way, so that one sees how it was read."""
        with suppress(ValueError):  # on_text has said so, and the text stays
            self.edit.replace(self.text(self.read()))
            self.left.emit()


class Numbers(Number):
    """Several numbers on one line, with spaces or commas between them."""

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.edit.setFixedWidth(2 * self.short())

    def text(self, value: Any) -> str:
        return ", ".join(written(one) for one in value) if isinstance(value, list) else words.value(value)

    def read(self) -> Any:
        parts = re.split(r"[,;\s]+", self.edit.text().strip())
        return [parsed(part, self.field.columns[0].kind == "integer") for part in parts if part]

    def on_step(self, direction: int) -> None:
        """Nothing: it would not be clear which of them."""


class Combo(QComboBox):
    """A choice that the wheel scrolls past: turning it over a page must not change the preset."""

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class Choice(Input):
    """One of a few words."""

    def __init__(self, field: Field, settings: Settings):
        super().__init__(field, settings)
        self.box = Combo()
        self.box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.box.setMinimumWidth(self.short())
        self.box.addItems(field.choices)
        describe(self.box, field.descriptions)
        self.other: Any = None
        self.take(self.box)
        self.line.addStretch(1)
        self.box.activated.connect(self.on_activated)

    def show_value(self, value: Any) -> None:
        self.other = value
        self.box.setPlaceholderText(words.value(value))
        self.box.setCurrentIndex(self.field.choices.index(value) if value in self.field.choices else -1)

    def read(self) -> Any:
        index = self.box.currentIndex()
        return self.other if index < 0 else self.field.choices[index]

    def on_activated(self) -> None:
        """Hand on what was picked."""
        self.edited.emit(self.read())
        self.left.emit()


class Nullable(Input):
    """Another input, and a box that says none."""

    def __init__(self, inner: Input):
        super().__init__(inner.field, inner.settings)
        self.inner, self.last = inner, inner.field.instead if inner.field.default is None else inner.field.default
        self.editor = inner.editor
        self.line.addWidget(inner)
        self.none = dressed(QCheckBox(self.field.none), name=f"{inner.field.label}: {self.field.none.lower()}")
        self.line.addSpacing(8)
        self.line.addWidget(self.none)
        self.line.addStretch(1)
        self.none.clicked.connect(self.on_none)
        inner.edited.connect(self.on_edited)
        inner.refused.connect(self.refused)
        inner.found.connect(self.found)
        inner.left.connect(self.left)

    def show_value(self, value: Any) -> None:
        self.last = self.last if value is None else value
        self.none.setChecked(value is None)
        self.inner.setEnabled(value is not None)
        self.inner.show_value(self.field.instead if value is None else value)

    def read(self) -> Any:
        return None if self.none.isChecked() else self.inner.read()

    def focus(self) -> None:
        (self.none if self.none.isChecked() else self.inner.editor).setFocus()

    def on_edited(self, value: Any) -> None:
        """Remember it for when none is ticked and unticked."""
        self.last = value
        self.edited.emit(value)

    def on_none(self, none: bool) -> None:
        """None, or the value from before; where there was never one, it has to be given."""
        if not none and self.last is None:
            self.inner.setEnabled(True)
            self.inner.focus()
            self.refused.emit(f"enter a value, or tick {self.field.none}")
            return
        self.refused.emit("")
        self.show_value(None if none else self.last)
        self.edited.emit(None if none else self.last)
        self.left.emit()


def parsed(text: str, whole: bool) -> int | float:
    """The number that a text means; ValueError with a sentence if none."""
    plain = text.strip().replace("−", "-")
    if not plain:
        raise ValueError("enter a number")
    if "," in plain and NUMBER.fullmatch(plain.replace(",", ".", 1)):
        raise ValueError(f"'{text}' has a comma; use a decimal point and no thousands separators")
    if not NUMBER.fullmatch(plain):
        raise ValueError(f"'{text}' is not a number")
    if not isfinite(float(plain)):
        raise ValueError(f"'{text}' is too large")
    if not whole:
        return float(plain)
    exact = Decimal(plain)
    if exact != exact.to_integral_value():
        raise ValueError(f"'{text}' is not a whole number")
    return int(exact)


def stepped(value: float, direction: int, field: Field) -> int | float:
    """The next number up (1) or down (-1): by one, or by one in the first digit. It stays within the bounds."""
    exact = Decimal(repr(value))
    first = -2 if field.maximum is not None and field.maximum <= 1 else 0
    unit = Decimal(1).scaleb(exact.adjusted() if exact else first)
    if exact == -direction * unit:  # below 0.001 comes 0.0009
        unit /= 10
    step = direction * (field.multiple_of or 1)
    for finer in (1,) if field.kind == "integer" else (1, 10, 100, 1000, 10000):
        after = value + step if field.kind == "integer" else float(exact + direction * unit / finer)
        if not field.problem(after) or field.problem(value):
            return after
    return value


def bounds(field: Field) -> str:
    """The values that a number may have, in words."""
    least, most, above, below = field.minimum, field.maximum, field.exclusive_minimum, field.exclusive_maximum
    if field.kind == "integer":
        least, above = (least if above is None else above + 1), None
        most, below = (most if below is None else below - 1), None
    if least is not None and most is not None:
        return f"{words.number(least)} to {words.number(most)}"
    limits = (("at least", least), ("above", above), ("at most", most), ("below", below))
    return ", ".join(f"{word} {words.number(limit)}" for word, limit in limits if limit is not None)


def label(text: str, role: str) -> QLabel:
    """A label that wraps; for `role` see the style sheet in ui/widgets/theme.py."""
    return dressed(QLabel(text, wordWrap=True, textFormat=Qt.TextFormat.PlainText), role)


def written(value: Any) -> str:
    """A number as it is typed, nothing for none; anything else as it is."""
    if value is None:
        return ""
    if isinstance(value, float) and isfinite(value):
        return words.number(value)
    return str(value)
