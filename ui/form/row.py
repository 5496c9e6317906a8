"""One option on a page: its name, what it is edited with, its help, and what is wrong with it."""

import re
from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import Qt, QVariantAnimation, Signal
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QGridLayout, QPushButton, QWidget

from ui.core import words
from ui.core.preset.document import Document
from ui.core.preset.field import Field
from ui.core.preset.schema import holds
from ui.core.settings import Settings
from ui.form.inputs import Choice, Flag, Input, Nullable, Number, Numbers, Text, label
from ui.form.lists import Files, Folders, Mixed, Texts
from ui.form.paths import PathInput
from ui.form.table import Table
from ui.widgets import theme
from ui.widgets.making import dressed, say, with_icon

KINDS: dict[str, type[Input]] = {
    "boolean": Flag,
    "integer": Number,
    "number": Number,
    "text": Text,
    "choice": Choice,
    "tag": Choice,
    "texts": Texts,
    "numbers": Numbers,
    "file": PathInput,
    "folder": PathInput,
    "model": PathInput,
    "files": Files,
    "folders": Folders,
    "prompts": Mixed,
    "entries": Table,
}
"""What each kind of value is edited with."""

MARK = 3
"""Width of the mark of what is modified, in pixels."""

FLASH = 1400
"""Milliseconds for which a row that was looked for stands out."""


def make(field: Field, settings: Settings) -> Input:
    """What a field is edited with."""
    inner = KINDS[field.kind](field, settings)
    return Nullable(inner) if field.nullable else inner


class Row(QWidget):
    """One option. What is typed but is no value stays here with its sentence; the document keeps the value before."""

    said = Signal()
    """Modified, a problem, or no longer."""

    def __init__(self, field: Field, document: Document, settings: Settings, label_width: int):
        super().__init__()
        self.field, self.document = field, document
        self.shown: Any = self  # no value of a preset
        self.held: Any = None
        """The value from before the user began to type."""
        self.unread = ""
        """Why what stands in the input is no value."""
        self.modified = False
        self._looked = ("", "")
        self._deep: tuple[str, ...] = ()
        self.glow = QVariantAnimation(self, startValue=0.30, endValue=0.0, duration=FLASH)
        self.glow.valueChanged.connect(self.update)
        self.input = make(field, settings)
        self.reset = self._reset_button()
        self.name = label(field.label, "")
        self.help = label("", "muted")
        self.problem = label("", "problem")
        self.note = label("", "note")
        self._lay_out(label_width)
        self.input.edited.connect(self.on_edited)
        self.input.refused.connect(self.on_refused)
        self.input.found.connect(self.on_found)
        self.input.left.connect(self.on_left)
        theme.notifier().changed.connect(self.update)
        self.refresh()

    def refresh(self) -> None:
        """Show the document's value; what the user is typing is left alone when it says the same."""
        value = self.document.value(self.field.path)
        if not same(value, self.shown):
            self.shown, self.held, self.unread = value, value, ""
            self.input.show_value(value)
            self.help.setText(help_text(self.field, value))
        self._say()

    def set_deep(self, problems: Sequence[str]) -> None:
        """What the trainer's own check says about this option."""
        stripped = tuple(one.removeprefix(f"{self.field.path}:").strip() for one in problems)
        if stripped != self._deep:
            self._deep = stripped
            self._say()

    def problems(self) -> list[str]:
        """All that is wrong, most urgent first."""
        own = self.field.problem(self.shown).splitlines()
        found = self._deep or self._looked[:1]  # the trainer has looked for the files, too
        return list(dict.fromkeys(sentence(one) for one in (self.unread, *own, *found) if one))

    def stops(self) -> list[QWidget]:
        """Where the tab key stops, in order."""
        inside = [one for one in self.findChildren(QWidget) if one.window() is self.window()]
        return [one for one in inside if one.focusPolicy() & Qt.FocusPolicy.TabFocus]

    def flash(self) -> None:
        """Stand out for a moment."""
        self.glow.stop()
        self.glow.start()

    def on_edited(self, value: Any) -> None:
        """Hand a value on to the document."""
        self.shown, self.unread = value, ""
        self.document.set(self.field.path, value)
        if self.field.kind == "tag":
            self.help.setText(help_text(self.field, value))
        self._say()

    def on_refused(self, why: str) -> None:
        """Say why what stands in the input is not taken, and what holds instead.

        That is the value from before: on the way to 1e-5 stands 1, which nobody meant.
        """
        self.unread = f"{why}; {self.input.kept(self.held)} is kept" if why else ""
        if why and not same(self.shown, self.held):
            self.shown = self.held
            self.document.set(self.field.path, self.held)
        self._say()

    def on_left(self) -> None:
        """What was entered holds now, and is an undo step."""
        self.held = self.shown
        self.document.seal()

    def on_found(self, problem: str, note: str) -> None:
        """What a look at the disk has shown."""
        self._looked = (problem, note)
        self._say()

    def on_reset(self) -> None:
        """Back to the preset's value, and away with what is no value."""
        self.document.seal()
        self.document.reset(self.field.path)
        self.document.seal()
        self.shown = self
        self.refresh()
        self.input.focus()

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter, colors = QPainter(self), theme.colors()
        if self.modified:
            painter.fillRect(0, 0, MARK, self.height(), colors.modified)
        if self.glow.state() == QVariantAnimation.State.Running:
            painter.setOpacity(self.glow.currentValue())
            painter.fillRect(self.rect(), colors.accent)

    def _say(self) -> None:
        problems = self.problems()
        self.modified = self.document.is_modified(self.field.path)
        self.reset.setVisible(bool(self.unread) or (self.modified and self._has_way_back()))
        say(self.problem, "\n".join(problems))
        say(self.note, self._looked[1])
        self.input.mark(problems)
        self.update()
        self.said.emit()

    def _has_way_back(self) -> bool:
        """Not for what only another variant brought in, and stands at its default."""
        return holds(self.document.baseline, self.field.path) or self.shown != self.field.default

    def _reset_button(self) -> QPushButton:
        name = f"Reset {self.field.label}"
        button = with_icon(dressed(QPushButton(), "flat", name, f"{name} to the preset's value"), "reset")
        policy = button.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        button.setSizePolicy(policy)
        button.clicked.connect(self.on_reset)
        return button

    def _lay_out(self, label_width: int) -> None:
        line = self.fontMetrics().height() + 10  # of an input; names stand at the height of its text
        self.name.setFixedWidth(label_width)
        self.name.setMinimumHeight(line)
        self.reset.setMaximumHeight(line)
        grid = QGridLayout(self)
        grid.setContentsMargins(MARK + 9, 5, 0, 5)
        grid.setHorizontalSpacing(12)
        grid.setVerticalSpacing(3)
        grid.setColumnStretch(1, 1)
        top = Qt.AlignmentFlag.AlignTop
        grid.addWidget(self.name, 0, 0, top)
        grid.addWidget(self.input, 0, 1)
        grid.addWidget(self.reset, 0, 2, top)
        for row, text in enumerate((self.help, self.problem, self.note), start=1):
            grid.addWidget(text, row, 1)


def same(a: Any, b: Any) -> bool:
    """Whether two values are one; in JSON, true is not 1."""
    return a is b or (isinstance(a, bool) == isinstance(b, bool) and a == b)


def help_text(field: Field, value: Any) -> str:
    """The description, what the option has an effect with, what a chosen variant is, and the reason for the default."""
    text = _about(field)
    if field.kind == "tag" and isinstance(value, str) and field.descriptions.get(value):
        text = field.descriptions[value] if field.required else f"{text.rstrip('.')}. {field.descriptions[value]}"
    lines = [" ".join(filter(None, (_with_none(text) if field.nullable else text, _default(field))))]
    if field.kind in ("entries", "prompts"):
        lines += [f"{column.label}: {_with_none(_about(column))}" for column in field.columns]
    if field.kind == "folders" and field.columns:
        lines.append("The settings of a folder are edited on the page Pictures.")
    return "\n".join(lines)


def _about(field: Field) -> str:
    return " ".join(filter(None, (field.description, field.only_with)))


def _with_none(text: str) -> str:
    """The text with the window's word for null, which stands beside the input."""
    return re.sub(r"\bnull\b", "none", re.sub(r"(^|[.] )null\b", r"\1None", text))


def sentence(text: str) -> str:
    """The text with a capital at its beginning if that is a plain word."""
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text


def _default(field: Field) -> str:
    why = "" if field.why == "none" else field.why.removeprefix("none: ")
    if field.required:
        return "" if field.kind == "tag" else "Required."
    if why.endswith("to be given"):
        return f"{sentence(why)}."
    if isinstance(field.default, str) and field.default.strip() and not any(map(str.isalnum, field.default)):
        return f"Default: '{field.default}' ({why})."
    shown = {"": "empty", None: "none", (): "none"}.get(
        tuple(field.default) if isinstance(field.default, list) else field.default, words.value(field.default)
    )
    shown = field.none.lower() if field.default is None else shown
    return f"Default: {shown} ({why})." if why else f"Default: {shown}."
