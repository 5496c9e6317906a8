"""The histogram of noise levels on the page of the objective: what it asks, and that it shows the answer."""

import sys
from pathlib import Path

import pytest

from ui.core.look import Look
from ui.form.noise_chart import NoiseChart
from ui.widgets import theme

FAKE = [sys.executable, str(Path(__file__).with_name("fake_look.py"))]


@pytest.fixture
def chart(qtbot, document):
    """Shown, with its first answer."""
    look = Look(command=FAKE)
    made = NoiseChart(document, look)
    qtbot.addWidget(made)
    made.resize(500, 200)
    with qtbot.waitSignal(look.answered):
        made.show()
    yield made
    look.close()


def filled(chart: NoiseChart, color: object) -> list[int]:
    """The tenths of the levels in which there is this colour near the top of the bars."""
    image = chart.bars.grab().toImage()
    found = set()
    for x in range(image.width()):
        if image.pixelColor(x, image.height() // 3) == color:
            found.add(min(9, int(10 * x / image.width())))
    return sorted(found)


def changed(qtbot, chart: NoiseChart, **values) -> None:
    """Change options, and wait for the answer to the last of it."""
    look = chart._look
    for path, value in values.items():
        chart._document.set(path.replace("__", "."), value)
    qtbot.waitUntil(lambda: not chart.soon.isActive() and not look.is_busy("noise"), timeout=20000)


def test_it_follows_what_is_typed(chart, qtbot):
    assert filled(chart, theme.colors().series[0]) == [0] and "mean 0.05" in chart.words.text()
    changed(qtbot, chart, objective__min_noise=0.5, objective__density="sigmoid")
    assert filled(chart, theme.colors().series[0]) == [5]
    assert chart.words.text() == "100 draws, sigmoid. 64 px: shift 1, mean 0.55."
    assert chart.bars.accessibleDescription() == chart.words.text()
    changed(qtbot, chart, objective__max_noise=0.4)
    assert filled(chart, theme.colors().series[0]) == [] and chart.words.text() == "objective.min_noise: not below"


def test_every_resolution_with_a_shift_of_its_own_is_seen(chart, qtbot):
    changed(qtbot, chart, data__resolutions=[64, 128])
    assert filled(chart, theme.colors().series[0]) == [0]
    assert {1} <= set(filled(chart, theme.colors().series[1])) <= {0, 1, 2}, "the outline's sides"
    assert "64 px (bars): shift 1, mean 0.05. 128 px (line): shift 2, mean 0.15." in chart.words.text()


def test_it_asks_only_where_it_matters_and_while_it_is_seen(chart, qtbot):
    chart._document.set("training.steps", 7)
    assert not chart.soon.isActive()
    chart.hide()
    changed(qtbot, chart, objective__min_noise=0.5)
    assert "mean 0.05" in chart.words.text()
    with qtbot.waitSignal(chart._look.answered):
        chart.show()
    assert "mean 0.55" in chart.words.text()


def test_the_window_has_it_on_the_page_of_the_objective(open_window, monkeypatch):
    asked = []
    monkeypatch.setattr("ui.core.look.Look.ask", lambda self, kind, question: asked.append((kind, question)))
    window = open_window()
    window.show_page("objective")
    chart = window.page("objective").findChild(NoiseChart)
    chart.soon.timeout.emit()
    assert asked == [("noise", {"preset": window.document.values})]
    assert window.page("page pictures").look is window.look, "one process answers both"
