"""Curves of one run or several: the loss above, one of the other numbers below.

This file imports numpy and pyqtgraph, which takes over half a second: import it when curves are wanted, not before.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QSignalBlocker, Qt, Signal
from PySide6.QtGui import QColor, QKeySequence, QShortcut
from PySide6.QtWidgets import QCheckBox, QComboBox, QLabel, QSlider, QToolTip, QWidget

from ui.core.runs.history import Curve
from ui.pages.runs.axis import Axis
from ui.pages.runs.readout import readout, short
from ui.widgets import theme
from ui.widgets.making import across, down, dressed, panel, split

SPANS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Steps that the smoothing slider averages over."""

NAMES = {
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "seconds_per_step": "Seconds per step",
    "memory_mb": "Memory (MiB)",
}
"""Curves that every run has, in the order of the choice."""

MEASURED = ("loss", "validation")
"""The curves whose steps the cross-hair finds; the second where a run has only begun."""

ADAPTER = "adapter/"
PER_PIXEL = 1.5
"""Points of a long line that are drawn, in pairs of the highest and the lowest; thick lines of more are slow."""

LONG = 60_000
"""Milliseconds that the values stay while the mouse rests."""

FAINT = 90
"""Opacity of the loss of single steps, of 255."""


class Shown(NamedTuple):
    """A run in the plots."""

    name: str
    curves: Mapping[str, Curve]
    color: int
    """Which of the theme's curve colours."""


class Curves(QWidget):
    """Two plots, one above the other, with one axis of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[Path, Shown] = {}
        self.lines: dict[tuple[Path, str], pg.PlotDataItem] = {}
        self._smooth: dict[Path, Sequence[float]] = {}
        self._drawn: dict[tuple[Path, str], tuple] = {}
        self.loss_plot, self.other_plot = _plot("Loss by step"), _plot("The chosen curve by step")
        self.other_plot.setXLink(self.loss_plot)
        faint = "Show the loss of each step behind the smoothed loss"
        self.each = dressed(QCheckBox("Each step"), tip=faint, checked=True)
        self.smoothing = QSlider(Qt.Orientation.Horizontal)
        dressed(self.smoothing, name="Smoothing", maximum=len(SPANS) - 1, value=SPANS.index(20), pageStep=2)
        self.smoothing.setFixedWidth(self.fontMetrics().averageCharWidth() * 10)
        self.span, self.legend = dressed(QLabel(), "muted"), QLabel(textFormat=Qt.TextFormat.RichText)
        self.log_loss = dressed(QCheckBox("Log scale"), name="Logarithmic scale of the loss")
        self.log_other = dressed(QCheckBox("Log scale"), name="Logarithmic scale of the lower curve")
        self.choice = dressed(QComboBox(), name="Lower curve")
        self.choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.marks = tuple(_mark(plot) for plot in (self.loss_plot, self.other_plot))
        self._offer(())
        self._lay_out()
        self._connect()
        self.on_smoothing_changed()
        self.on_theme_changed()

    def show_runs(self, runs: Mapping[Path, Shown]) -> None:
        """Show these runs; the cross-hair finds the steps of the first that has some."""
        self.runs = dict(runs)
        self._offer(sorted({name for run in runs.values() for name in run.curves if name.startswith(ADAPTER)}))
        self.draw()

    def draw(self) -> None:
        """Bring every line up to date; untouched ones cost nothing."""
        wanted: set[tuple[Path, str]] = set()
        alone, span, name = len(self.runs) == 1, SPANS[self.smoothing.value()], self.choice.currentData()
        first = next(iter(self.runs), None)
        for key, run in self.runs.items():
            color = theme.colors().series[run.color]
            if "loss" in run.curves and self.each.isChecked() and key == first:  # of several they hide each other
                wanted.add(self._line(key, "raw", run.curves["loss"], color, 1))
            if "loss" in run.curves:
                wanted.add(self._line(key, "loss", run.curves["loss"], color, span))
            if "validation" in run.curves:
                other = theme.colors().series[1] if alone else color
                wanted.add(self._line(key, "validation", run.curves["validation"], other, 1))
            if name in run.curves:
                wanted.add(self._line(key, f"other {name}", run.curves[name], color, 1))
        label = "smoothed" if alone else self.runs[first].name if first else ""
        self.legend.setText(_legend(label, alone, any(kind == "validation" for _, kind in wanted)))
        for key in self.lines.keys() - wanted:
            self._plot_of(key[1]).removeItem(self.lines.pop(key))
            self._drawn.pop(key)

    def values_at(self, key: Path, step: float) -> list[tuple[str, float]]:
        """The name and value of every curve of a run at a step: the last one measured until there, or nan if the run
        has not come so far."""
        run = self.runs[key]
        if step > max((curve.steps[-1] for curve in run.curves.values() if curve.steps), default=0):
            step = nan
        names = {"loss": "Loss", "validation": "Validation", **NAMES}
        names |= {name: _adapter_name(name) for name in run.curves if name.startswith(ADAPTER)}
        found = []
        for name, label in names.items():
            if name in run.curves:
                curve = run.curves[name]
                found.append((label, _at(curve.steps, curve.values, step)))
            if name == "loss" and name in run.curves:
                found.append(("Smoothed", _at(run.curves[name].steps, self._smooth[key], step)))
        return found

    def on_smoothing_changed(self) -> None:
        """Average over another number of steps."""
        span = SPANS[self.smoothing.value()]
        self.span.setText(f"{span:,} steps" if span > 1 else "none")
        self.draw()

    def on_choice_changed(self) -> None:
        """Another curve below."""
        self.draw()
        self.other_plot.enableAutoRange(y=True)

    def reset_view(self) -> None:
        """Show everything again, and what is still to come."""
        for plot in (self.loss_plot, self.other_plot):
            plot.enableAutoRange()

    def on_theme_changed(self) -> None:
        """All colours anew."""
        colors = theme.colors()
        for plot, mark in zip((self.loss_plot, self.other_plot), self.marks, strict=True):
            plot.setBackground(colors.surface)
            for side in ("left", "bottom"):
                plot.getAxis(side).setPen(colors.border)
                plot.getAxis(side).setTextPen(colors.muted)
            mark.setPen(colors.muted)
        self._drawn.clear()
        self.draw()

    def on_mouse_moved(self, plot: "_Plot", point: QPointF) -> None:
        """The cross-hair and the values at its step."""
        measured = [run.curves.get(name, Curve()).steps for name in MEASURED for run in self.runs.values()]
        steps = next((steps for steps in measured if steps), ())
        box = plot.getViewBox()
        if not len(steps) or not box.sceneBoundingRect().contains(point):
            self.on_mouse_left()
            return
        step = _nearest(steps, box.mapSceneToView(point).x())
        for mark in self.marks:
            mark.setPos(step)
            mark.show()
        series = theme.colors().series
        table = [(run.name, series[run.color], self.values_at(key, step)) for key, run in self.runs.items()]
        mouse = plot.viewport().mapToGlobal(plot.mapFromScene(point))
        values = readout(f"Step {step:,.0f}", table, self.choice.currentText())
        QToolTip.showText(mouse, values, plot, msecShowTime=LONG)

    def on_mouse_left(self) -> None:
        """No cross-hair."""
        QToolTip.hideText()
        for mark in self.marks:
            mark.hide()

    def _line(self, key: Path, kind: str, curve: Curve, color: QColor, span: int) -> tuple[Path, str]:
        """Draw one line, if it is not drawn like that already."""
        line = (key, kind)
        state = (id(curve), len(curve.steps), *curve.steps[-1:], *curve.values[-1:], span, color.name())
        if self._drawn.get(line) == state:
            return line
        steps = np.array(curve.steps, dtype=float)
        values = np.array(curve.values, dtype=float)
        if kind == "loss":
            self._smooth[key] = smoothed(curve.values, span)
            values = np.array(self._smooth[key], dtype=float)
        if line not in self.lines:
            self.lines[line] = item = pg.PlotDataItem(autoDownsampleFactor=PER_PIXEL)
            item.setZValue({"raw": 0, "validation": 2}.get(kind, 1))
            self._plot_of(kind).addItem(item)
            if kind == "loss":  # averaged already: its peaks say nothing, and cost time to draw
                item.setDownsampling(auto=True, method="mean")
        item = self.lines[line]
        item.opts |= _style(kind, color, few=len(steps) < 2)
        item.setData(steps, values)
        self._drawn[line] = state
        return line

    def _plot_of(self, kind: str) -> "_Plot":
        return self.other_plot if kind.startswith("other") else self.loss_plot

    def _offer(self, adapter: Sequence[str]) -> None:
        """The choice of the lower curve."""
        entries = {**NAMES, **{name: _adapter_name(name) for name in adapter}}
        if [self.choice.itemData(i) for i in range(self.choice.count())] == list(entries):
            return
        kept = self.choice.currentData()
        with QSignalBlocker(self.choice):
            self.choice.clear()
            for name, label in entries.items():
                self.choice.addItem(label, name)
            self.choice.setCurrentIndex(max(0, self.choice.findData(kept)))

    def _lay_out(self) -> None:
        smoothing = QLabel("Smoothing")
        smoothing.setBuddy(self.smoothing)
        self.span.setMinimumWidth(self.span.fontMetrics().horizontalAdvance("5,000 steps"))
        smoothed = (smoothing, self.smoothing, self.span)
        top_bar = across(dressed(QLabel("Loss"), "heading"), self.each, self.log_loss, *smoothed, None)
        self.bottom_bar = across(self.choice, self.log_other, None)
        self.legend.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        down(across(None, self.legend), None, of=self.loss_plot)
        upper, lower = (
            panel(bar, (plot, 1), margins=(0, 6, 0, 4))
            for bar, plot in ((top_bar, self.loss_plot), (self.bottom_bar, self.other_plot))
        )
        down(split((upper, 3), (lower, 2), way=Qt.Orientation.Vertical), of=self, margins=(0, 0, 0, 0))

    def _connect(self) -> None:
        self.each.toggled.connect(self.draw)
        self.smoothing.valueChanged.connect(self.on_smoothing_changed)
        self.choice.currentIndexChanged.connect(self.on_choice_changed)
        self.log_loss.toggled.connect(lambda on: self.loss_plot.setLogMode(y=on))
        self.log_other.toggled.connect(lambda on: self.other_plot.setLogMode(y=on))
        theme.notifier().changed.connect(self.on_theme_changed)
        for plot in (self.loss_plot, self.other_plot):
            # The plot's own signal of this kind is silent unless the whole scene is moved by the mouse.
            scene = plot.getViewBox().scene()
            scene.sigMouseMoved.connect(lambda point, plot=plot: self.on_mouse_moved(plot, point))
            plot.left.connect(self.on_mouse_left)
        within = Qt.ShortcutContext.WidgetWithChildrenShortcut
        QShortcut(QKeySequence("Ctrl+0"), self, self.reset_view, context=within)
        for keys, factor in (("Ctrl++", 0.7), ("Ctrl+=", 0.7), ("Ctrl+-", 1 / 0.7)):
            zoom = partial(self.loss_plot.getViewBox().scaleBy, x=factor)
            QShortcut(QKeySequence(keys), self, zoom, context=within)


def smoothed(values: Sequence[float], span: int) -> Sequence[float]:
    """The running average over about `span` steps; the first values are not drawn to zero, gaps keep the last one."""
    if span <= 1:
        return values
    keep, total, weight, result = 1 - 1 / span, 0.0, 0.0, []
    for value in values:
        if value == value:  # a number
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        result.append(total / weight if weight else nan)
    return result


class _Plot(pg.PlotWidget):
    """A plot that says when the mouse leaves it."""

    left = Signal()

    def leaveEvent(self, event) -> None:
        super().leaveEvent(event)
        self.left.emit()


def _plot(name: str) -> _Plot:
    plot = dressed(_Plot(axisItems={"left": Axis()}), name=name)
    plot.setDownsampling(auto=True, mode="peak")  # before lines are added: they take it over
    plot.setClipToView(True)
    plot.setMenuEnabled(False)
    plot.hideButtons()
    plot.showGrid(x=True, y=True, alpha=0.25)
    left = plot.getAxis("left")
    left.setWidth(plot.fontMetrics().horizontalAdvance("0.000000"))
    left.enableAutoSIPrefix(False)
    plot.getAxis("bottom").enableAutoSIPrefix(False)
    plot.setMinimumHeight(plot.fontMetrics().height() * 6)
    return plot


def _mark(plot: "_Plot") -> pg.InfiniteLine:
    mark = pg.InfiniteLine(angle=90, movable=False)
    mark.hide()
    plot.getViewBox().addItem(mark, ignoreBounds=True)
    return mark


def _style(kind: str, color: QColor, few: bool) -> dict:
    """Options of a line: single steps faint, validation as diamonds; a single point is shown as a dot."""
    color = QColor(color)
    if kind == "raw":
        color.setAlpha(FAINT)
        return {"pen": pg.mkPen(color, width=1)}
    if kind == "validation" or few:
        shape = "d" if kind == "validation" else "o"
        dots = {"symbol": shape, "symbolSize": 9, "symbolBrush": color, "symbolPen": theme.colors().surface}
        return {"pen": pg.mkPen(color, width=1, style=Qt.PenStyle.DashLine), **dots}
    return {"pen": pg.mkPen(color, width=2), "symbol": None, "antialias": True}


def _legend(label: str, alone: bool, validation: bool) -> str:
    """What the lines of the upper plot are; the colours of the other runs are in the list of runs."""
    line, dots = (color.name() for color in theme.colors().series[:2])
    smooth = f"<span style='color:{line}'>━</span> {escape(short(label))}&nbsp;&nbsp;"
    mark = f"<span style='color:{dots}'>◆</span>" if alone else "◆"
    return smooth + (f"{mark} validation" if validation else "")


def _adapter_name(name: str) -> str:
    return "Adapter: " + name.removeprefix(ADAPTER).replace("_", " ")


def _nearest(steps: Sequence[float], x: float) -> float:
    """The step closest to a place on the axis."""
    right = min(bisect_right(steps, x), len(steps) - 1)
    left = max(0, right - 1)
    return min(steps[left], steps[right], key=lambda step: abs(step - x))


def _at(steps: Sequence[float], values: Sequence[float], step: float) -> float:
    """The last value until a step."""
    index = bisect_right(steps, step) - 1 if step == step else -1
    return values[index] if 0 <= index < len(values) else nan
