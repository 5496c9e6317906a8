"""Lists of objects: a table whose rows are added, edited, moved, removed, undone and found wrong."""

import json

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication

from tests.ui.form_pages import Pages
from ui.core import words
from ui.core.check import Findings
from ui.core.preset import files
from ui.core.preset.comparison import rows as changes
from ui.core.preset.field import plain
from ui.core.preset.schema import Schema
from ui.core.settings import Settings
from ui.form.row import make

PATH = "targets.rules"
ONE = {"match": "attention", "rank": 4, "lr_scale": None}
TWO = {"match": "unet.mid_block.*", "rank": None, "lr_scale": 0.5}
THREE = {"match": "all", "rank": 8, "lr_scale": 2.0}


@pytest.fixture
def page(qtbot, document):
    """The unfolded page with the table."""
    shown = Pages(qtbot, document).show("targets")
    shown.reveal(PATH)
    return shown


@pytest.fixture
def row(page):
    return page.rows[PATH]


@pytest.fixture
def table(row):
    return row.input


def opened(table, row, name):
    """The editor of a cell, open for typing."""
    column = [one.path for one in table.field.columns].index(name)
    table.grid.setFocus()
    table.grid.setCurrentCell(row, column)
    table.grid.editItem(table.grid.item(row, column))
    return QApplication.focusWidget()


def type_into(qtbot, table, row, name, text, end=Qt.Key.Key_Return):
    edit = opened(table, row, name)
    edit.selectAll()
    qtbot.keyClicks(edit, text) if text else qtbot.keyClick(edit, Qt.Key.Key_Delete)
    qtbot.keyClick(edit, end)
    QApplication.processEvents()


def click(qtbot, button):
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def cells(table):
    """The table's cells, row by row."""
    columns = range(len(table.field.columns))
    return [[table.grid.item(row, column) for column in columns] for row in range(table.grid.rowCount())]


def shown(table):
    """What can be read in the cells."""
    return [[one.text() for one in row] for row in cells(table)]


def wrong(table):
    """Whether each cell is marked as wrong."""
    return [[one.background().style() != Qt.BrushStyle.NoBrush for one in row] for row in cells(table)]


# -- editing ----------------------------------------------------------------------------------------------------------


def test_a_rule_is_added_filled_in_undone_redone_and_removed(qtbot, document, row, table):
    add, remove, *_ = table.tools
    assert "No rules" in table.grid.empty and not table.grid.horizontalHeader().isVisible()
    click(qtbot, add)
    assert document.value(PATH) == [{"match": "", "rank": None, "lr_scale": None}]
    assert table.grid.horizontalHeader().isVisible()
    edit = QApplication.focusWidget()  # the new rule is open for typing
    qtbot.keyClicks(edit, "attention")
    qtbot.keyClick(edit, Qt.Key.Key_Tab)
    assert table.grid.currentColumn() == 1 and QApplication.focusWidget() is not edit, "and the tab key opens the next"
    type_into(qtbot, table, 0, "rank", "4")
    type_into(qtbot, table, 0, "lr_scale", "5e-1")
    assert document.value(PATH) == [{"match": "attention", "rank": 4, "lr_scale": 0.5}] and row.modified
    assert shown(table) == [["attention", "4", "0.5"]]
    steps = []
    while document.undo.canUndo():
        steps.append(document.value(PATH))
        document.undo.undo()
    assert len(steps) == 4 and document.value(PATH) == [] and shown(table) == []
    while document.undo.canRedo():
        document.undo.redo()
    assert document.value(PATH) == steps[0] and shown(table) == [["attention", "4", "0.5"]]
    table.grid.setCurrentCell(0, 0)
    click(qtbot, remove)
    assert document.value(PATH) == [] and not row.modified
    document.undo.undo()
    assert document.value(PATH) == steps[0]


def test_an_empty_number_is_none(qtbot, document, table):
    document.set(PATH, [ONE, THREE])
    assert shown(table) == [["attention", "4", ""], ["all", "8", "2"]]
    assert opened(table, 0, "lr_scale").placeholderText() == words.NONE
    for name in ("rank", "lr_scale"):
        type_into(qtbot, table, 1, name, "")
    assert document.value(PATH) == [ONE, {"match": "all", "rank": None, "lr_scale": None}]
    for row, rank in ((1, None), (0, 5)):  # from nothing there is no step
        edit = opened(table, row, "rank")
        qtbot.keyClick(edit, Qt.Key.Key_Up)
        qtbot.keyClick(edit, Qt.Key.Key_Return)
        QApplication.processEvents()
        assert document.value(PATH)[row]["rank"] == rank


def test_rules_move_with_their_buttons_and_with_keys(qtbot, document, table):
    document.set(PATH, [ONE, TWO, THREE])
    _, remove, up, down = table.tools
    for row, possible in enumerate([(False, True), (True, True), (True, False)]):
        table.grid.setCurrentCell(row, 0)
        assert (up.isEnabled(), down.isEnabled()) == possible
    table.grid.setCurrentCell(0, 1)
    click(qtbot, down)
    assert document.value(PATH) == [TWO, ONE, THREE] and down.hasFocus()
    qtbot.keyClick(down, Qt.Key.Key_Space)
    assert document.value(PATH) == [TWO, THREE, ONE] and not down.isEnabled(), "it is the last one now"
    assert (table.grid.currentRow(), table.grid.currentColumn()) == (2, 1)
    control = Qt.KeyboardModifier.ControlModifier
    table.grid.setFocus()
    qtbot.keyClick(table.grid, Qt.Key.Key_Up, control)
    qtbot.keyClick(table.grid, Qt.Key.Key_Up, control)
    assert document.value(PATH) == [ONE, TWO, THREE] and table.grid.currentRow() == 0
    qtbot.keyClick(table.grid, Qt.Key.Key_Up, control)
    assert document.value(PATH) == [ONE, TWO, THREE], "nothing is above the first one"
    table.grid.setCurrentCell(1, 0)
    click(qtbot, remove)
    assert document.value(PATH) == [ONE, THREE] and table.grid.currentRow() == 1
    table.grid.setFocus()
    qtbot.keyClick(table.grid, Qt.Key.Key_Delete)
    assert document.value(PATH) == [ONE]
    for _ in range(3):
        document.undo.undo()
    assert document.value(PATH) == [TWO, ONE, THREE] and shown(table)[0][0] == TWO["match"]


def test_showing_is_not_editing(qtbot):
    schema = Schema.load()
    widget = make(schema.everything()[PATH][0], Settings())
    qtbot.addWidget(widget)
    said = []
    for signal in (widget.edited, widget.refused, widget.left):
        signal.connect(lambda *given: said.append(given))
    for value in ([ONE], [TWO, THREE], [], [ONE, TWO]):
        widget.show_value(value)
        assert json.dumps(widget.read()) == json.dumps(value)
    widget.show_value("x")
    assert widget.read() == "x" and widget.grid.rowCount() == 0 and said == []


def test_sets_of_layers_are_offered_in_old_and_new_rows(qtbot, page, document, table):
    document.set(PATH, [ONE])
    page.set_choices(PATH, ["attention", "all"])
    table.on_add()
    for row in range(2):
        edit = opened(table, row, "match")
        model = edit.completer().model()
        assert [model.index(place, 0).data() for place in range(model.rowCount())] == ["attention", "all"]
        assert opened(table, row, "rank").completer() is None
    edit = opened(table, 1, "match")
    edit.setText("att")
    edit.completer().activated.emit("attention")
    edit.setText("attention")  # as the completer's popup does
    qtbot.keyClick(edit, Qt.Key.Key_Return)
    QApplication.processEvents()
    assert document.value(PATH)[1]["match"] == "attention"


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_what_is_no_number_stays_in_its_cell_and_is_not_stored(qtbot, page, document, row, table):
    document.set(PATH, [ONE, TWO])
    document.seal()
    type_into(qtbot, table, 1, "lr_scale", "1,5")
    assert document.value(PATH) == [ONE, TWO] and shown(table)[1][2] == "1,5"
    assert page.unread()[PATH].startswith("Number 2, lr_scale: '1,5' has a comma")
    assert page.unread()[PATH].endswith("0.5 is kept") and row.problem.isVisible()
    assert wrong(table) == [[False] * 3, [False, False, True]]
    type_into(qtbot, table, 0, "rank", "6")  # holds, although something else is still wrong
    assert document.value(PATH) == [{**ONE, "rank": 6}, TWO] and PATH in page.unread()
    assert shown(table)[1][2] == "1,5"
    type_into(qtbot, table, 1, "lr_scale", "1.5")
    assert document.value(PATH) == [{**ONE, "rank": 6}, {**TWO, "lr_scale": 1.5}] and page.unread() == {}
    assert not row.problem.isVisible() and wrong(table) == [[False] * 3] * 2


def test_what_stands_on_the_way_to_a_number_does_not_hold(qtbot, document, table):
    document.set(PATH, [ONE, TWO])
    edit = opened(table, 1, "lr_scale")
    edit.selectAll()
    qtbot.keyClicks(edit, "2e")
    assert document.value(PATH) == [ONE, TWO]
    qtbot.keyClicks(edit, "-5")
    qtbot.keyClick(edit, Qt.Key.Key_Return)
    QApplication.processEvents()
    assert document.value(PATH)[1]["lr_scale"] == 2e-5 and shown(table)[1][2] == "2e-5"
    type_into(qtbot, table, 1, "lr_scale", "7", end=Qt.Key.Key_Escape)
    assert document.value(PATH)[1]["lr_scale"] == 2e-5


def test_reset_and_moving_put_a_wrong_number_right(qtbot, page, document, row, table):
    document.set(PATH, [ONE, TWO])
    type_into(qtbot, table, 0, "rank", "x")
    table.on_moving(1)
    assert shown(table)[1] == ["attention", "4", ""] and page.unread() == {}
    type_into(qtbot, table, 0, "rank", "x")
    click(qtbot, row.reset)
    assert document.value(PATH) == [] and page.unread() == {} and not row.problem.isVisible()


def test_values_beyond_the_bounds_are_stored_and_said(qtbot, document, row, table):
    document.set(PATH, [ONE, TWO])
    type_into(qtbot, table, 0, "rank", "0")
    type_into(qtbot, table, 1, "lr_scale", "-1")
    assert document.problems() == {
        PATH: "number 1, rank: 0 is too small; at least 1\nnumber 2, lr_scale: -1.0 is too small; more than 0"
    }
    assert row.problem.text().split("\n")[0] == "Number 1, rank: 0 is too small; at least 1"
    assert wrong(table) == [[False, True, False], [False, False, True]]


def test_what_the_trainer_finds_stands_at_the_cell_or_the_rule(page, document, row, table):
    document.set(PATH, [ONE, TWO])
    match = f"{PATH}[1].match: 'x' matches no layer; layer names look like y"
    problems = (match, f"{PATH}[0]: gives neither; give one")
    page.set_problems(Findings(problems=problems).by_path([PATH]))
    assert row.problem.text() == (
        "Number 2, match: 'x' matches no layer; layer names look like y\nNumber 1: gives neither; give one"
    )
    assert wrong(table) == [[True] * 3, [True, False, False]]
    page.set_problems({})
    assert not row.problem.isVisible() and not table.editor.property("invalid") and wrong(table) == [[False] * 3] * 2


def test_the_same_problem_is_said_once(page, document, row):
    document.set(PATH, [{**ONE, "rank": 0}])
    page.set_problems(Findings(problems=(f"{PATH}[0].rank: 0 is too small; at least 1",)).by_path([PATH]))
    assert row.problems() == ["Number 1, rank: 0 is too small; at least 1"]


# -- its place on the page --------------------------------------------------------------------------------------------


def test_the_page_grows_with_the_table_and_shrinks_again(page, document, row, table):
    def fits():
        for _ in range(6):  # the table is laid out, then all around it
            QApplication.processEvents()
        assert row.help.height() >= row.help.heightForWidth(row.help.width())
        assert table.grid.viewport().height() >= sum(map(table.grid.rowHeight, range(table.grid.rowCount())))
        return row.height()

    page.build()  # rows that stay are laid out anew
    heights = [fits()]
    for count in range(1, 5):
        table.on_add()
        assert table.grid.rowCount() == count
        heights.append(fits())
    assert heights == sorted(heights) and heights[-1] > heights[-2] > heights[-3]
    document.set(PATH, [])
    assert fits() == heights[0]


def test_the_tab_key_goes_through_the_cells_and_past_the_table(qtbot, document, row, table):
    document.set(PATH, [ONE, TWO])
    assert [stop for stop in row.stops() if stop is not row.reset] == [table.grid, *table.tools]
    edit = opened(table, 0, "match")
    for place in ((0, 1), (0, 2), (1, 0)):
        qtbot.keyClick(edit, Qt.Key.Key_Tab)
        edit = QApplication.focusWidget()
        assert (table.grid.currentRow(), table.grid.currentColumn()) == place
    qtbot.keyClick(edit, Qt.Key.Key_Escape)
    table.grid.setFocus()
    qtbot.keyClick(table.grid, Qt.Key.Key_Tab)
    assert table.tools[0].hasFocus(), "where no cell is open, the key leads on"


def test_everything_has_a_name_and_a_tip(document, table):
    document.set(PATH, [ONE, TWO])
    assert [tool.accessibleName() for tool in table.tools] == [
        "Rules: add a rule", "Rules: remove", "Rules: move up", "Rules: move down"]  # fmt: skip
    assert table.grid.accessibleName() == "Rules" and table.tools[0].toolTip() == "Add a rule"
    assert all(tool.toolTip() for tool in table.tools)
    for number, column in enumerate(table.field.columns):
        heading = table.grid.horizontalHeaderItem(number)
        assert heading.text() == column.label and column.description in heading.toolTip()
    assert "1 to 4096" in table.grid.horizontalHeaderItem(1).toolTip()
    assert cells(table)[1][0].toolTip() == TWO["match"], "long ones are cut off"


# -- other shapes, changes, files -------------------------------------------------------------------------------------


def test_objects_of_any_shape_are_edited(qtbot):
    entry = {"title": "Stage", "required": ["kind", "on", "steps"], "properties": {
        "kind": {"title": "Kind", "enum": ["a", "b"]}, "on": {"title": "On", "type": "boolean"},
        "steps": {"title": "Steps", "type": "integer", "minimum": 3},
        "note": {"title": "Note", "type": "string", "default": "-"}}}  # fmt: skip
    field = plain("stages", {"title": "Stages", "type": "array", "default": []}, False, entry)
    widget = make(field, Settings())
    qtbot.addWidget(widget)
    seen = []
    widget.edited.connect(seen.append)
    widget.show_value([])
    widget.show()
    qtbot.waitUntil(lambda: widget.activateWindow() or widget.isActiveWindow())
    widget.on_add()
    assert seen[-1] == [{"kind": "a", "on": False, "steps": 3, "note": "-"}] and not field.problem(seen[-1])
    kind, on, steps, _ = cells(widget)[0]
    box = QApplication.focusWidget()
    assert [box.itemText(place) for place in range(box.count())] == ["a", "b"]
    qtbot.keyClick(box, Qt.Key.Key_Down)
    qtbot.keyClick(box, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: kind.text() == "b")
    on.setCheckState(Qt.CheckState.Checked)
    assert seen[-1] == [{"kind": "b", "on": True, "steps": 3, "note": "-"}]
    steps.setText("")
    assert widget.stray == {(0, "steps"): "enter a number"} and widget.read() == seen[-1]


@pytest.mark.parametrize("inner", [{"type": "array", "items": {"type": "string"}}, {"$ref": "#/$defs/Other"}])
def test_objects_that_do_not_fit_into_cells_are_refused(inner):
    entry = {"title": "Thing", "properties": {"inner": {"title": "Inner", **inner}}}
    with pytest.raises(ValueError, match="in a way that the window does not know"):
        plain("things", {"title": "Things", "type": "array"}, False, entry)


def test_changes_name_each_rule_on_its_line(document):
    document.set(PATH, [ONE, TWO])
    (change,) = changes(document, document.baseline)
    assert (change.label, change.before) == ("Rules", "nothing")
    assert change.now == "match attention, rank 4\nmatch unet.mid_block.*, lr_scale 0.5"


def test_a_saved_preset_says_only_what_was_given_and_opens_the_same(document, tmp_path):
    document.set(PATH, [ONE, TWO])
    path = tmp_path / "mine.json"
    files.export(document.values, path, document.schema)
    assert json.loads(path.read_text())["targets"]["rules"] == [
        {"match": "attention", "rank": 4}, {"match": "unet.mid_block.*", "lr_scale": 0.5}]  # fmt: skip
    opened = files.read(path, document.schema)
    assert opened.problems == () and opened.values["targets"]["rules"] == [ONE, TWO]


def test_an_unknown_name_in_a_rule_is_said_and_left_out(document, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"based_on": "lora_sdxl", "targets": {"rules": [{"match": "a", "rnak": 4}, 5]}}))
    opened = files.read(path, document.schema)
    assert opened.problems == (
        "targets.rules: number 1, rnak: unknown; did you mean rank?",
        'targets.rules: number 2: 5 is not a rule in braces, as in {"match": ...}',
    )
    assert opened.values["targets"]["rules"] == [{"match": "a", "rank": None, "lr_scale": None}, 5]
