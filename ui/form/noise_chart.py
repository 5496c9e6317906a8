"""How often a training draws each noise level, as a histogram that follows what is typed."""

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QPointF, QRectF, QSize, Qt, QTimer
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QPolygonF, QShowEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from ui.core.look import Look
from ui.core.preset.document import Document
from ui.form.inputs import label
from ui.widgets import theme
from ui.widgets.making import across, down, dressed

MATTERS = ("family", "base", "objective", "data.resolution", "data.resolutions", "training.seed")
"""Options that change the noise levels."""

NOISE = "noise"
"""The question to scripts/look.py."""

LINES = 7
"""Height of the bars, in lines of text."""


class NoiseChart(QWidget):
    """The histogram with its sentences. It asks when it is seen, and again a moment after each change."""

    def __init__(self, document: Document, look: Look):
        super().__init__()
        self._document, self._look, self._stale = document, look, True
        self.bars = Bars()
        self.heading, self.words = label("Noise levels", "heading"), label("", "muted")
        self.heading.setContentsMargins(0, 6, 0, 2)
        ends = across(label("0: the picture", "muted"), None, label("1: pure noise", "muted"))
        column = down(self.heading, self.bars, ends, self.words, of=self, margins=(12, 0, 12, 6))
        column.setSpacing(2)
        self.soon = QTimer(self, singleShot=True, interval=200)
        self.soon.timeout.connect(self.ask)
        document.changed.connect(self.on_changed)
        look.answered.connect(self.on_answered)
        look.refused.connect(self.on_refused)

    def ask(self) -> None:
        """Ask the trainer, if somebody looks."""
        if self.isVisible():
            self._stale = False
            if not self.bars.levels:
                self._say("Drawing noise levels…")
            self._look.ask(NOISE, {"preset": self._document.values})

    def on_changed(self, path: str) -> None:
        """A value of the preset has changed."""
        if any(path == one or path.startswith(one + ".") or one.startswith(path + ".") for one in ("", *MATTERS)):
            self._stale = True
            self.soon.start()

    def on_answered(self, kind: str, answer: dict[str, Any]) -> None:
        """An answer has come."""
        if kind == NOISE:
            self.bars.show_levels(answer["levels"], answer["draws"])
            self._say(sentences(answer))

    def on_refused(self, kind: str, sentence: str) -> None:
        """There is no answer; the bars would be of other values."""
        if kind == NOISE:
            self.bars.show_levels([], 1)
            self._say(sentence)

    def showEvent(self, event: QShowEvent) -> None:
        """Qt: ask if something has changed since."""
        super().showEvent(event)
        if self._stale and not event.spontaneous():
            self.soon.start()

    def _say(self, text: str) -> None:
        self.words.setText(text)
        self.bars.setAccessibleDescription(text)


class Bars(QWidget):
    """Bars of the first levels, and the outline of every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[Mapping[str, Any]] = []
        self.draws = 1
        dressed(self, name="Noise levels")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        theme.notifier().changed.connect(self.update)

    def show_levels(self, levels: list[Mapping[str, Any]], draws: int) -> None:
        """Show these, as scripts/look.py gives them."""
        self.levels, self.draws = levels, draws
        self.update()

    def sizeHint(self) -> QSize:
        """Qt: the height of some lines."""
        return QSize(200, LINES * self.fontMetrics().height())

    def outline(self, number: int) -> QPolygonF:
        """The steps of a histogram, from the left bottom to the right bottom."""
        most = max((max(one["counts"]) for one in self.levels), default=1) or 1
        counts, high = self.levels[number]["counts"], self.height() - 1.0
        wide = self.width() / len(counts)
        points = [QPointF(0, high)]
        for place, count in enumerate(counts):
            top = high - count / most * (high - 2)
            points += [QPointF(place * wide, top), QPointF((place + 1) * wide, top)]
        return QPolygonF([*points, QPointF(self.width(), high)])

    def paintEvent(self, event: QPaintEvent) -> None:
        """Qt: the ground, the bars, the outlines."""
        painter, colors = QPainter(self), theme.colors()
        painter.fillRect(QRectF(self.rect()), colors.surface)
        for number in range(len(self.levels)):
            color = colors.series[number % len(colors.series)]
            painter.setPen(QPen(color, 2) if number else Qt.PenStyle.NoPen)
            painter.setBrush(Qt.BrushStyle.NoBrush if number else color)
            if number:
                painter.drawPolyline(self.outline(number))
            else:
                painter.drawPolygon(self.outline(number))
        for number, one in enumerate(self.levels if len(self.levels) > 1 else ()):
            text, line = named(one), self.fontMetrics().height()
            box = QRectF(4, 2 + number * line, self.fontMetrics().horizontalAdvance(text) + 4, line)
            painter.fillRect(box, colors.surface)
            painter.setPen(colors.series[number % len(colors.series)])
            painter.drawText(box, text)
        painter.setPen(colors.border)
        painter.drawLine(0, self.height() - 1, self.width(), self.height() - 1)


def named(level: Mapping[str, Any]) -> str:
    """The resolutions of one of the levels."""
    return ", ".join(f"{size} px" for size in level["resolutions"])


def sentences(answer: Mapping[str, Any]) -> str:
    """What the histogram shows, in words."""
    found, levels = [f"{answer['draws']} draws, {answer['density']}."], answer["levels"]
    for number, one in enumerate(levels):
        shift = "" if one["shift"] is None else f"shift {one['shift']:.3g}, "
        shown = "" if len(levels) == 1 else " (bars)" if number == 0 else " (line)"
        found.append(f"{named(one)}{shown}: {shift}mean {one['mean']:.2f}.")
    return " ".join(found)
