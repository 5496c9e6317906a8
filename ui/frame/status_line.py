"""The line at the window's foot: what the trainer thinks of the preset, and what it is doing."""

from PySide6.QtCore import Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QPushButton, QWidget

from ui.core import words
from ui.core.check import Check, Findings
from ui.core.runs.library import Library
from ui.widgets import icons, theme
from ui.widgets.making import across, dressed

MOST = 110
"""Letters of each button; a longer one would make the window wider."""


class StatusLine(QWidget):
    """Two buttons: the left one leads to the first problem or the layers, the right one to the run."""

    problems_wanted = Signal()
    layers_wanted = Signal()
    run_wanted = Signal()

    def __init__(self, check: Check, library: Library):
        super().__init__()
        self.check, self.library = check, library
        self.left = dressed(QPushButton(), "flat", "Check of the preset")
        self.right = dressed(QPushButton(), "flat", "Training under way")
        across(self.left, None, self.right, of=self, margins=(8, 2, 8, 2))
        self.number = 0
        self.left.clicked.connect(self.on_left)
        self.right.clicked.connect(self.run_wanted)
        for signal in (check.started, check.finished, library.changed, theme.notifier().changed):
            signal.connect(self.refresh)
        self.refresh()

    def set_problems(self, number: int) -> None:
        """How many problems the whole window knows of, the form's own included."""
        self.number = number
        self.refresh()

    def on_left(self) -> None:
        """Lead to what the line is about."""
        (self.problems_wanted if self.number else self.layers_wanted).emit()

    def refresh(self) -> None:
        """Say it anew."""
        icon, color, text = self._about_preset(self.check.findings)
        self.left.setIcon(icons.icon(icon, color))
        self.left.setText(words.shortened(text, MOST))
        self.left.setToolTip(text if len(text) > MOST else "")
        alive = [one for one in self.library.glances if one.status.state.alive]
        self.right.setVisible(bool(alive))
        if alive:
            run = alive[0]
            share = f" {run.step / run.steps:.0%}" if run.steps else ""
            left = f", {words.duration(run.seconds_left)} left" if run.seconds_left else ""
            self.right.setIcon(icons.icon("play", theme.colors().good))
            self.right.setText(f"{words.shortened(run.name, MOST // 3)}: {run.status.state.value}{share}{left}")

    def _about_preset(self, findings: Findings | None) -> tuple[str, QColor, str]:
        c = theme.colors()
        if self.number:
            return "error", c.bad, f"{words.plural(self.number, 'problem')} – show"
        if findings is None:
            looking = self.check.running
            return "clock", c.muted, "Checking preset…" if looking else "Not checked"
        if findings.failed:
            return "warning", c.warning, f"Check failed: {findings.failed}"
        facts = [
            words.plural(len(findings.layers), "layer"),
            words.plural(findings.parameters, "parameter"),
            words.plural(findings.pictures, "picture"),
            words.plural(findings.steps, "step"),
            f"file about {words.size(findings.file_bytes)}",
        ]
        notes = [words.plural(len(findings.notes), "note")] if findings.notes else []
        return "ok", c.good, " · ".join([*facts, *notes])
