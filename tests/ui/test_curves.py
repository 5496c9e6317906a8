"""Curves: what is drawn of which run, values under the mouse, and that long runs are quick."""

from array import array
from itertools import pairwise
from math import isnan, log10, nan
from pathlib import Path

import pytest
from PySide6.QtCore import QEvent, QPointF, Qt
from PySide6.QtGui import QMouseEvent
from PySide6.QtWidgets import QApplication, QToolTip

from ui.core.runs.history import Curve
from ui.pages.runs.axis import marks
from ui.pages.runs.plots import FAINT, SPANS, Curves, Shown, smoothed
from ui.widgets import theme

A, B = Path("a"), Path("b")


def curve(steps, values) -> Curve:
    return Curve(array("d", steps), array("d", values))


def made_up(steps: int, adapter: bool = True) -> dict[str, Curve]:
    """Curves of a run of so many steps."""
    numbers = range(1, steps + 1)
    curves = {
        "loss": curve(numbers, (0.1 + (step * 7919 % 97) / 970 for step in numbers)),
        "validation": curve(range(0, steps + 1, 10), (0.2 - step / steps / 10 for step in range(0, steps + 1, 10))),
        "learning_rate": curve(numbers, (1e-3 / step for step in numbers)),
    }
    return curves | ({"adapter/alpha": curve(range(10, steps + 1, 10), [1.5] * (steps // 10))} if adapter else {})


@pytest.fixture
def curves(qtbot):
    curves = Curves()
    qtbot.addWidget(curves)
    curves.resize(620, 400)
    curves.show()
    return curves


def test_smoothing_averages_without_leaving_the_data():
    assert smoothed([3, 1, 2], 1) == [3, 1, 2]
    assert smoothed([0.25] * 50, 20) == pytest.approx([0.25] * 50)
    noisy = [float(step % 7) for step in range(400)]
    smooth = smoothed(noisy, 50)
    assert smooth[0] == noisy[0] and all(0 <= value <= 6 for value in smooth)
    assert max(smooth[200:]) - min(smooth[200:]) < 0.5 and smooth[-1] == pytest.approx(3, abs=0.2)


def test_smoothing_keeps_its_value_where_the_loss_was_no_number():
    smooth = smoothed([nan, 2, 2, nan, 2], 10)
    assert isnan(smooth[0]) and smooth[1:] == pytest.approx([2] * 4)


def test_one_run_shows_loss_smoothed_loss_validation_and_the_chosen_curve(curves):
    curves.show_runs({A: Shown("a", made_up(100), 0)})
    assert {kind for _, kind in curves.lines} == {"raw", "loss", "validation", "other learning_rate"}
    raw, smooth = (curves.lines[A, kind].getOriginalDataset() for kind in ("raw", "loss"))
    assert list(raw[1]) == list(made_up(100)["loss"].values)
    assert smooth[1].max() - smooth[1].min() < raw[1].max() - raw[1].min()
    assert curves.lines[A, "raw"].opts["pen"].color().alpha() == FAINT
    curves.each.setChecked(False)
    assert (A, "raw") not in curves.lines
    curves.smoothing.setValue(0)
    assert curves.span.text() == "none"
    assert list(curves.lines[A, "loss"].getOriginalDataset()[1]) == list(raw[1])


def test_adapter_curves_are_offered_where_a_run_has_them(curves):
    curves.show_runs({A: Shown("a", made_up(100, adapter=False), 0)})
    assert curves.choice.findText("Adapter: alpha") == -1
    curves.show_runs({A: Shown("a", made_up(100), 0)})
    curves.choice.setCurrentIndex(curves.choice.findText("Adapter: alpha"))
    steps, values = curves.lines[A, "other adapter/alpha"].getOriginalDataset()
    assert list(steps) == list(range(10, 101, 10)) and set(values) == {1.5}


def test_runs_have_colours_of_their_own_and_leave_no_lines_behind(curves):
    both = {A: Shown("a", made_up(100), 0), B: Shown("b", made_up(50), 3)}
    curves.show_runs(both)
    series = theme.colors().series
    assert curves.lines[A, "loss"].opts["pen"].color() == series[0]
    assert curves.lines[B, "loss"].opts["pen"].color() == series[3]
    assert (A, "raw") in curves.lines and (B, "raw") not in curves.lines, "single steps of several hide each other"
    assert series[0].name() in curves.legend.text() and "a&nbsp;" in curves.legend.text()
    curves.show_runs({A: both[A]})
    assert {key for key, _ in curves.lines} == {A}
    drawn = curves.loss_plot.listDataItems()
    assert sorted(map(id, drawn)) == sorted(id(curves.lines[A, kind]) for kind in ("raw", "loss", "validation"))


def test_a_resumed_run_is_drawn_anew(curves):
    run = made_up(100)
    curves.show_runs({A: Shown("a", run, 0)})
    run["loss"] = curve(range(1, 101), [0.5] * 100)
    curves.show_runs({A: Shown("a", run, 0)})
    assert set(curves.lines[A, "raw"].getOriginalDataset()[1]) == {0.5}


def test_both_plots_share_their_steps_and_can_be_logarithmic(curves):
    curves.show_runs({A: Shown("a", made_up(100), 0)})
    curves.loss_plot.setXRange(20, 40, padding=0)
    assert curves.other_plot.viewRange()[0] == pytest.approx([20, 40])
    curves.log_loss.setChecked(True)
    low, high = curves.lines[A, "raw"].getData()[1].min(), curves.lines[A, "raw"].getData()[1].max()
    assert -1.1 < low < high < 0
    curves.reset_view()
    QApplication.processEvents()
    assert curves.loss_plot.viewRange()[0][0] <= 1 and curves.loss_plot.viewRange()[0][1] >= 100


def test_the_mouse_shows_the_values_of_all_curves_at_its_step(curves, qtbot):
    run = made_up(100)
    curves.show_runs({A: Shown("a", run, 0)})
    QApplication.processEvents()
    box = curves.loss_plot.getViewBox()
    curves.on_mouse_moved(curves.loss_plot, box.mapViewToScene(QPointF(57.3, 0.15)))
    text = QToolTip.text()
    assert QToolTip.isVisible() and "Step 57" in text
    values = dict(curves.values_at(A, 57))
    assert values["Loss"] == run["loss"].values[56] and f"{values['Loss']:.4g}" in text
    assert values["Validation"] == run["validation"].values[5] and values["Adapter: alpha"] == 1.5
    assert set(values) == {"Loss", "Smoothed", "Validation", "Learning rate", "Adapter: alpha"}
    assert all(mark.isVisible() and mark.value() == 57 for mark in curves.marks)
    curves.on_mouse_left()
    qtbot.waitUntil(lambda: not QToolTip.isVisible())
    assert not curves.marks[1].isVisible()


def test_the_mouse_compares_runs_line_by_line(curves):
    curves.show_runs({A: Shown("first", made_up(100), 0), B: Shown("<second>", made_up(40), 1)})
    QApplication.processEvents()
    point = curves.loss_plot.getViewBox().mapViewToScene(QPointF(80, 0.15))
    curves.on_mouse_moved(curves.loss_plot, point)
    text = QToolTip.text()
    assert "first" in text and "&lt;second&gt;" in text and "Learning rate" in text


def test_another_theme_paints_everything_anew(curves, qapp):
    curves.show_runs({A: Shown("a", made_up(20), 0)})
    try:
        for mode in ("dark", "light"):
            theme.apply(qapp, mode)
            assert curves.lines[A, "loss"].opts["pen"].color() == theme.colors().series[0]
            assert curves.loss_plot.backgroundBrush().color() == theme.colors().surface
    finally:
        theme.apply(qapp, "light")


def test_of_a_hundred_thousand_steps_few_points_are_drawn(curves):
    run = {A: Shown("a", made_up(100_000), 0)}
    curves.show_runs(run)
    curves.grab()
    for left in range(0, 50_000, 10_000):
        curves.loss_plot.setXRange(left, left + 20_000)
        curves.grab()
        assert all(len(line.getData()[0]) < 5_000 for line in curves.lines.values())
    drawn = curves.lines[A, "raw"].getData()[0]
    assert len(drawn) < 10_000, "peaks are drawn, not every point"
    for name in ("loss", "learning_rate"):
        run[A].curves[name].steps.append(100_001)
        run[A].curves[name].values.append(0.1)
    curves.show_runs(run)
    assert curves.lines[A, "raw"].getOriginalDataset()[0][-1] == 100_001
    assert SPANS[curves.smoothing.value()] > 1


def test_a_moved_mouse_shows_the_values(curves, qtbot):
    curves.show_runs({A: Shown("a", made_up(100), 0), B: Shown("b", made_up(50), 3)})
    QApplication.processEvents()
    view, box = curves.loss_plot, curves.loss_plot.getViewBox()
    place = view.mapFromScene(box.mapViewToScene(QPointF(80, 0.15)))
    move = QMouseEvent(
        QEvent.Type.MouseMove,
        QPointF(place),
        QPointF(view.viewport().mapToGlobal(place)),
        Qt.MouseButton.NoButton,
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
    )
    QApplication.sendEvent(view.viewport(), move)
    assert QToolTip.isVisible() and "Step 80" in QToolTip.text()
    curves.show_runs({A: Shown("a", made_up(100), 0)})
    QApplication.processEvents()
    box = curves.other_plot.getViewBox()
    curves.on_mouse_moved(curves.other_plot, box.mapViewToScene(box.viewRect().center()))
    assert QToolTip.isVisible() and "Step 80" not in QToolTip.text()
    shown = next(one for one in QApplication.topLevelWidgets() if one.inherits("QTipLabel") and one.isVisible())
    assert shown.screen().geometry().contains(shown.geometry()), "nothing of it is cut off"
    curves.show_runs({A: Shown("a", made_up(100), 0), B: Shown("b", made_up(50), 3)})
    values = dict(curves.values_at(B, 80))
    assert all(isnan(value) for value in values.values()), "this run has not come so far"


def test_the_mouse_finds_a_run_that_has_only_its_first_validation(curves):
    curves.show_runs({A: Shown("a", {"validation": curve([0], [0.2])}, 0)})
    QApplication.processEvents()
    curves.on_mouse_moved(curves.loss_plot, curves.loss_plot.getViewBox().mapViewToScene(QPointF(0, 0.2)))
    assert "Step 0" in QToolTip.text() and "0.2" in QToolTip.text()


@pytest.mark.parametrize("low, high", [(0.97, 1.0), (0.03, 0.3), (1e-6, 1e-3), (1e-9, 2.0), (0.5, 0.8), (3.0, 3.1)])
@pytest.mark.parametrize("room", [3, 6, 15])
def test_logarithmic_labels_are_there_and_have_room(low, high, room):
    places = marks(log10(low), log10(high), room)
    assert len(places) >= 1 and all(log10(low) - 1e-9 <= place <= log10(high) + 1e-9 for place in places)
    gaps = [after - before for before, after in pairwise(places)]
    assert all(gap * room >= 0.5 * (log10(high) - log10(low)) for gap in gaps)


def test_a_logarithmic_axis_says_the_values(curves):
    curves.show_runs({A: Shown("a", made_up(100), 0)})
    curves.log_loss.setChecked(True)
    axis = curves.loss_plot.getAxis("left")
    assert axis.tickStrings([log10(0.98), log10(2e-5)], 1, None) == ["0.98", "2e-05"]
