"""What one preset sets, in words, and whether what it needs is on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QGridLayout, QLabel, QScrollArea

from ui.core.preset import entries, files
from ui.core.preset.comparison import value_text
from ui.core.preset.files import Entry, Opened
from ui.core.preset.schema import Schema, at, flatten
from ui.form import paths
from ui.widgets.making import Part, dressed, panel, plain

NEEDED = ("base.path", "base.config", "data.folders")
"""Options that name what has to be on this machine."""
TITLES = ("name", "description")
"""Options that are not settings."""


@dataclass(frozen=True)
class Looked:
    """A preset as it was read, in words."""

    opened: Opened
    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """Title, and label and value of each setting that differs from the default."""
    needed: tuple[tuple[str, str], ...]
    """Role and sentence about each thing that it needs."""


def look(path: Path, schema: Schema) -> Looked:
    """Read a preset. Raises ValueError with a sentence."""
    opened = files.read(path, schema)
    given = flatten(schema.minimal(opened.values))
    sections = []
    for section in schema.sections(opened.values):
        fields = [field for field in section.fields if field.path in given and field.path not in TITLES]
        rows = tuple((field.label, value_text(given[field.path], field)) for field in fields)
        sections += [(section.title, rows)] if rows else []
    return Looked(opened, tuple(sections), tuple(_needed(opened.values, schema)))


class PresetDetails(QScrollArea):
    """Shows them."""

    def __init__(self) -> None:
        super().__init__(widgetResizable=True)
        dressed(self, name="Settings of the preset", frameShape=QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.show_text("Select a preset to see its settings.")

    def show_text(self, text: str, role: str = "muted") -> None:
        """A sentence instead of a preset."""
        self._fill(_label(text, role))

    def show_preset(self, entry: Entry, looked: Looked) -> None:
        """A preset that was read."""
        problems = [("problem", text) for text in (entry.problem, *looked.opened.problems) if text]
        said = [*problems, *(("note", text) for text in looked.opened.notes), *looked.needed]
        grid = QGridLayout()
        grid.setHorizontalSpacing(self.fontMetrics().averageCharWidth() * 2)
        grid.setColumnMinimumWidth(0, self.fontMetrics().averageCharWidth() * 24)
        grid.setColumnStretch(1, 1)
        for title, rows in looked.sections:
            _add_section(grid, title, rows)
        sets = _label("Changed from defaults" if looked.sections else "All settings have their defaults", "muted")
        self._fill(*(_label(text, role) for role, text in said), self.fontMetrics().height() // 2, sets, grid)

    def _fill(self, *parts: Part) -> None:
        self.setWidget(panel(*parts, None, margins=(0, 0, self.fontMetrics().averageCharWidth(), 0)))


def _add_section(grid: QGridLayout, title: str, rows: tuple[tuple[str, str], ...]) -> None:
    top = Qt.AlignmentFlag.AlignTop
    heading = _label(title, "heading")
    heading.setContentsMargins(0, heading.fontMetrics().height() // 2, 0, 0)
    grid.addWidget(heading, grid.rowCount(), 0, 1, 2)
    for label, value in rows:
        row = grid.rowCount()
        grid.addWidget(_label(label, "muted"), row, 0, top)
        grid.addWidget(_label(value), row, 1, top)


def _label(text: str, role: str = "") -> QLabel:
    return dressed(plain(text), role)


def _needed(values: dict[str, Any], schema: Schema) -> list[tuple[str, str]]:
    found = []
    for section in schema.sections(values):
        for field in (field for field in section.fields if field.path in NEEDED):
            value, subject = at(values, field.path), f"{section.title} {field.label.lower()}"
            texts = [entries.path(one) for one in (value if isinstance(value, list) else [value])]
            found += [_whereabouts(subject, field.kind, text) for text in texts if isinstance(text, str) and text]
    return found


def _whereabouts(subject: str, kind: str, text: str) -> tuple[str, str]:
    problem, remark = paths.remark(kind, text)
    sentence = problem or remark
    if not sentence:
        return "good", f"{subject} found: {text}"
    whole = sentence if text in sentence else f"{text} is {sentence[0].lower()}{sentence[1:]}"
    return "muted" if remark and kind == "model" else "note", f"{subject}: {whole}"
