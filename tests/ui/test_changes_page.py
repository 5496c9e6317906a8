"""The page of differences: what it lists, against what, and what its buttons do."""

import json
from pathlib import Path

import pytest
from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QToolButton

from ui.core import places
from ui.core.preset.comparison import NO_SUCH, rows, value_text
from ui.core.preset.schema import ABSENT
from ui.core.runs.states import Glance, State, Status
from ui.pages.changes.changes_page import DEFAULTS, OPENED, ChangesPage


class Runs(QObject):
    """A library of one run."""

    changed = Signal()

    def __init__(self, folder: Path):
        super().__init__()
        self.glances = [Glance(folder, folder.name, Status(State.FINISHED, "Finished."), started="2026-11-20T09:30:00")]


@pytest.fixture
def run(document, tmp_path):
    """The folder of a past run, of another rank."""
    folder = tmp_path / "past_run"
    folder.mkdir()
    adapter = {**document.values["adapter"], "rank": 3}
    (folder / "preset.json").write_text(json.dumps({**document.values, "adapter": adapter}))
    return folder


@pytest.fixture
def page(qtbot, document, run):
    page = ChangesPage(document, Runs(run))
    qtbot.addWidget(page)
    page.show()
    qtbot.waitUntil(lambda: page.against.findText("Preset lora_demo") > 0)
    return page


def wait_for(qtbot, page, paths):
    qtbot.waitUntil(lambda: [row.path for row in page.rows] == list(paths))


def button(page, path):
    """The reset button of a setting."""
    lines = [page.table.item(line, 0) for line in range(page.table.rowCount())]
    line = next(item.row() for item in lines if item.toolTip() == path)
    found = page.table.cellWidget(line, 3)
    assert isinstance(found, QToolButton)
    return found


def test_nothing_changed_is_said(qtbot, page):
    wait_for(qtbot, page, [])
    assert "No differences from wora_demo" in page.sentence.text() and page.table.isHidden()
    assert page.title.text() == "What changed" and not page.copy.isEnabled()


def test_changes_appear_while_editing_and_go_with_undo(qtbot, page, document):
    document.set("training.learning_rate", 3e-4)
    document.set("adapter.rank", 4)
    wait_for(qtbot, page, ["adapter.rank", "training.learning_rate"])
    assert page.title.text() == "What changed: 2 settings"
    first = {section.title: 0 for section in document.schema.sections(document.values)}
    shown = [[page.table.item(line, column) for column in range(3)] for line in range(page.table.rowCount())]
    assert [line[0].text() for line in shown if line[1] is None] == [
        name for name in first if name in ("Adapter", "Training")
    ]
    assert [[item.text() for item in line[1:]] for line in shown if line[1]] == [["8", "4"], ["0.0007", "0.0003"]]
    document.undo.undo()
    wait_for(qtbot, page, ["training.learning_rate"])


def test_reset_sets_one_setting_back_and_can_be_undone(qtbot, page, document):
    document.set("training.learning_rate", 3e-4)
    document.set("adapter.rank", 4)
    wait_for(qtbot, page, ["adapter.rank", "training.learning_rate"])
    button(page, "adapter.rank").click()
    wait_for(qtbot, page, ["training.learning_rate"])
    assert document.value("adapter.rank") == 8 and document.value("training.learning_rate") == 3e-4
    document.undo.undo()
    assert document.value("adapter.rank") == 4
    wait_for(qtbot, page, ["adapter.rank", "training.learning_rate"])


def test_a_method_is_reset_with_its_settings(qtbot, page, document):
    before = document.values
    document.set("adapter.rank", 4)
    document.set("adapter.method", "doft")
    qtbot.waitUntil(lambda: "adapter.method" in [row.path for row in page.rows])
    locked = button(page, "adapter.rank")
    assert not locked.isEnabled() and document.schema.fields(before)["adapter.method"].label in locked.toolTip()
    button(page, "adapter.method").click()
    wait_for(qtbot, page, [])
    assert document.values == before


def test_a_method_is_set_to_that_of_a_run(qtbot, page, document, run):
    page.compare_with(str(run))
    document.set("adapter.method", "oft")
    qtbot.waitUntil(lambda: "adapter.method" in [row.path for row in page.rows])
    button(page, "adapter.method").click()
    qtbot.waitUntil(lambda: "adapter.method" not in [row.path for row in page.rows])
    button(page, "adapter.rank").click()
    wait_for(qtbot, page, [])
    assert document.value("adapter.method") == "wora" and document.value("adapter.rank") == 3


def test_against_the_defaults(qtbot, page, document):
    page.compare_with(DEFAULTS)
    minimal = document.schema.minimal(document.values)
    qtbot.waitUntil(lambda: "training.steps" in [row.path for row in page.rows])
    paths = {row.path for row in page.rows}
    assert "adapter.method" not in paths and "family" not in paths  # they have no default
    assert all(f"{path.split('.')[0]}" in minimal for path in paths)
    default = document.field("training.steps").default
    button(page, "training.steps").click()
    assert document.value("training.steps") == default


def test_against_another_preset(qtbot, page, document):
    page.compare_with(str(places.PRESETS / "lora_demo.json"))
    qtbot.waitUntil(lambda: any(row.path == "adapter.method" for row in page.rows))
    row = next(row for row in page.rows if row.path == "adapter.method")
    assert (row.before, row.now) == ("lora", "wora")
    assert "Preset lora_demo" in page.against.currentText()


def test_against_a_past_run(qtbot, page, run):
    page.compare_with(str(run))
    wait_for(qtbot, page, ["adapter.rank"])
    assert (page.rows[0].before, page.rows[0].now) == ("3", "8")


def test_a_run_that_cannot_be_read_is_said(qtbot, page, run):
    (run / "preset.json").write_text("nonsense")
    page.compare_with(str(run))
    qtbot.waitUntil(lambda: "line 1" in page.sentence.text())
    assert page.sentence.property("role") == "problem" and page.rows == []


def test_what_is_not_understood_in_a_run_is_said(qtbot, page, run, document):
    values = {**document.values, "no_such_section": {"x": 1}}
    (run / "preset.json").write_text(json.dumps(values))
    page.compare_with(str(run))
    qtbot.waitUntil(lambda: "no_such_section" in page.sentence.text())


def test_the_choice_stays_when_runs_come_and_goes_with_its_run(qtbot, page, run):
    page.compare_with(str(run))
    library = page._library
    library.glances = [Glance(run.parent / "new", "new", Status(State.RUNNING, "Runs.")), *library.glances]
    library.changed.emit()
    assert page.against.currentData() == str(run) and page.against.findText("Run new") > 0
    library.glances = []
    library.changed.emit()
    assert page.against.currentData() == OPENED
    wait_for(qtbot, page, [])


def test_headings_of_the_list_cannot_be_chosen(page):
    model = page.against.model()
    for index in range(page.against.count()):
        chosen = bool(page.against.itemData(index))
        assert bool(model.flags(model.index(index, 0)) & Qt.ItemFlag.ItemIsEnabled) is chosen


def test_copy_as_text(qtbot, page, document):
    document.set("adapter.rank", 4)
    document.set("samples.prompts", ["a", "b"])
    wait_for(qtbot, page, ["adapter.rank", "samples.prompts"])
    page.copy.click()
    text = QGuiApplication.clipboard().text()
    assert text.splitlines()[0] == "wora_demo, compared with wora_demo as opened or saved"
    assert "\nAdapter\n  Rank (adapter.rank): 8 -> 4\n" in text and "-> a | b\n" in text


def test_enter_shows_the_setting_in_the_form_if_it_is_there(qtbot, page, document):
    document.set("adapter.method", "doft")
    qtbot.waitUntil(lambda: page.table.rowCount() > 2)
    asked = []
    page.show_field.connect(asked.append)
    for line in range(page.table.rowCount()):
        page.table.setCurrentCell(line, 0)
        qtbot.keyClick(page.table, Qt.Key.Key_Return)
    there = document.schema.fields(document.values)
    assert asked == [row.path for row in page.rows if row.path in there] and "adapter.method" in asked


def test_delete_key_resets_the_chosen_setting(qtbot, page, document):
    document.set("adapter.rank", 4)
    wait_for(qtbot, page, ["adapter.rank"])
    page.table.setCurrentCell(1, 0)
    page.table.setFocus()
    qtbot.keyClick(page.table, Qt.Key.Key_Delete)
    assert document.value("adapter.rank") == 8


def test_every_row_has_a_label_and_a_way_back_or_a_reason(document):
    before = document.values
    for method in document.field("adapter.method").choices:
        document.set("adapter.method", method)
        for row in rows(document, before):
            assert row.label != row.path and bool(row.locked) is (NO_SUCH in (row.before, row.now))


def test_values_are_in_words(document):
    steps = document.field("training.steps")
    assert value_text(1, steps) == "1 step" and value_text(2, steps) == "2 steps"
    assert value_text(True, document.field("data.flip")) == "on" and value_text(ABSENT, None) == NO_SUCH
