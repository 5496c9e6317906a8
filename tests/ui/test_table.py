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


def type_into(qtbot, edit, text):
    edit.setFocus()
    edit.selectAll()
    qtbot.keyClicks(edit, text)


def cell(table, row, name):
    return table.rows[row].cells[name].edit


def click(qtbot, button):
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def shown(table):
    """What can be read in the cells."""
    return [[one.edit.text() for one in row.cells.values()] for row in table.rows]


# -- editing ----------------------------------------------------------------------------------------------------------


def test_a_rule_is_added_filled_in_undone_redone_and_removed(qtbot, document, row, table):
    assert table.empty.isVisible() and "No rule yet" in table.empty.text() and not table.headings[0].isVisible()
    click(qtbot, table.add)
    assert document.value(PATH) == [{"match": "", "rank": None, "lr_scale": None}]
    assert cell(table, 0, "match").hasFocus() and not table.empty.isVisible() and table.headings[0].isVisible()
    qtbot.keyClicks(cell(table, 0, "match"), "attention")
    type_into(qtbot, cell(table, 0, "rank"), "4")
    type_into(qtbot, cell(table, 0, "lr_scale"), "5e-1")
    table.focus()
    assert document.value(PATH) == [{"match": "attention", "rank": 4, "lr_scale": 0.5}] and row.modified
    assert shown(table) == [["attention", "4", "0.5"]]
    steps = []
    while document.undo.canUndo():
        steps.append(document.value(PATH))
        document.undo.undo()
    assert len(steps) == 4 and document.value(PATH) == [] and shown(table) == [] and table.empty.isVisible()
    while document.undo.canRedo():
        document.undo.redo()
    assert document.value(PATH) == steps[0] and shown(table) == [["attention", "4", "0.5"]]
    click(qtbot, table.rows[0].remove)
    assert document.value(PATH) == [] and not row.modified and table.add.hasFocus()
    document.undo.undo()
    assert document.value(PATH) == steps[0]


def test_an_empty_number_is_none(qtbot, document, table):
    document.set(PATH, [ONE, THREE])
    assert shown(table) == [["attention", "4", ""], ["all", "8", "2"]]
    assert cell(table, 0, "lr_scale").placeholderText() == words.NONE
    for name in ("rank", "lr_scale"):
        edit = cell(table, 1, name)
        edit.setFocus()
        edit.selectAll()
        qtbot.keyClick(edit, Qt.Key.Key_Delete)
    assert document.value(PATH) == [ONE, {"match": "all", "rank": None, "lr_scale": None}]
    qtbot.keyClick(cell(table, 1, "rank"), Qt.Key.Key_Up)
    assert document.value(PATH)[1]["rank"] is None, "there is nothing to step from"
    qtbot.keyClick(cell(table, 0, "rank"), Qt.Key.Key_Up)
    assert document.value(PATH)[0]["rank"] == 5


def test_rules_move_with_their_buttons_and_with_keys(qtbot, document, table):
    document.set(PATH, [ONE, TWO, THREE])
    QApplication.processEvents()  # shows them, so that they can have the focus
    assert [(row.up.isEnabled(), row.down.isEnabled()) for row in table.rows] == [
        (False, True), (True, True), (True, False)]  # fmt: skip
    click(qtbot, table.rows[0].down)
    assert document.value(PATH) == [TWO, ONE, THREE] and table.rows[1].down.hasFocus()
    qtbot.keyClick(table.rows[1].down, Qt.Key.Key_Space)
    assert document.value(PATH) == [TWO, THREE, ONE] and cell(table, 2, "match").hasFocus(), "it is the last one now"
    qtbot.keyClick(cell(table, 2, "match"), Qt.Key.Key_Up, Qt.KeyboardModifier.ControlModifier)
    assert document.value(PATH) == [TWO, ONE, THREE] and cell(table, 1, "match").hasFocus()
    click(qtbot, table.rows[1].up)
    assert document.value(PATH) == [ONE, TWO, THREE]
    qtbot.keyClick(cell(table, 0, "match"), Qt.Key.Key_Up, Qt.KeyboardModifier.ControlModifier)
    assert document.value(PATH) == [ONE, TWO, THREE], "nothing is above the first one"
    click(qtbot, table.rows[1].remove)
    assert document.value(PATH) == [ONE, THREE] and table.rows[1].remove.hasFocus()
    document.undo.undo()
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
    assert widget.read() == "x" and widget.rows == [] and said == []


def test_sets_of_layers_are_offered_in_old_and_new_rows(page, document, table):
    document.set(PATH, [ONE])
    page.set_choices(PATH, ["attention", "all"])
    table.on_add()
    for row in range(2):
        model = cell(table, row, "match").completer().model()
        assert [model.index(place, 0).data() for place in range(model.rowCount())] == ["attention", "all"]
        assert cell(table, row, "rank").completer() is None
    table.rows[1].cells["match"].edit.completer().activated.emit("attention")
    assert document.value(PATH)[1]["match"] == "attention"


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_what_is_no_number_stays_in_its_cell_and_is_not_stored(qtbot, page, document, row, table):
    document.set(PATH, [ONE, TWO])
    document.seal()
    type_into(qtbot, cell(table, 1, "lr_scale"), "1,5")
    assert document.value(PATH) == [ONE, TWO] and cell(table, 1, "lr_scale").text() == "1,5"
    assert page.unread()[PATH].startswith("Number 2, lr_scale: '1,5' has a comma")
    assert page.unread()[PATH].endswith("0.5 is kept") and row.problem.isVisible()
    assert table.rows[1].cells["lr_scale"].is_invalid() and not table.rows[1].cells["match"].is_invalid()
    assert not any(one.is_invalid() for one in table.rows[0].cells.values())
    type_into(qtbot, cell(table, 0, "rank"), "6")  # holds, although something else is still wrong
    assert document.value(PATH) == [{**ONE, "rank": 6}, TWO] and PATH in page.unread()
    assert cell(table, 1, "lr_scale").text() == "1,5"
    type_into(qtbot, cell(table, 1, "lr_scale"), "1.5")
    assert document.value(PATH) == [{**ONE, "rank": 6}, {**TWO, "lr_scale": 1.5}] and page.unread() == {}
    assert not row.problem.isVisible() and not table.rows[1].cells["lr_scale"].is_invalid()


def test_what_stands_on_the_way_to_a_wrong_number_does_not_hold(qtbot, document, table):
    document.set(PATH, [ONE, TWO])
    table.on_cell_left()
    type_into(qtbot, cell(table, 1, "lr_scale"), "2e")
    assert document.value(PATH) == [ONE, TWO]
    qtbot.keyClicks(cell(table, 1, "lr_scale"), "-5")
    assert document.value(PATH)[1]["lr_scale"] == 2e-5


def test_reset_and_moving_put_a_wrong_number_right(qtbot, page, document, row, table):
    document.set(PATH, [ONE, TWO])
    type_into(qtbot, cell(table, 0, "rank"), "x")
    click(qtbot, table.rows[0].down)
    assert shown(table)[1] == ["attention", "4", ""] and page.unread() == {}
    type_into(qtbot, cell(table, 0, "rank"), "x")
    click(qtbot, row.reset)
    assert document.value(PATH) == [] and page.unread() == {} and not row.problem.isVisible()


def test_values_beyond_the_bounds_are_stored_and_said(qtbot, document, row, table):
    document.set(PATH, [ONE, TWO])
    type_into(qtbot, cell(table, 0, "rank"), "0")
    type_into(qtbot, cell(table, 1, "lr_scale"), "-1")
    assert document.problems() == {
        PATH: "number 1, rank: 0 is too small; at least 1\nnumber 2, lr_scale: -1.0 is too small; more than 0"
    }
    assert row.problem.text().split("\n")[0] == "Number 1, rank: 0 is too small; at least 1"
    wrong = [(n, name) for n, one in enumerate(table.rows) for name, cell in one.cells.items() if cell.is_invalid()]
    assert wrong == [(0, "rank"), (1, "lr_scale")]


def test_what_the_trainer_finds_stands_at_the_cell_or_the_rule(page, document, row, table):
    document.set(PATH, [ONE, TWO])
    match = f"{PATH}[1].match: 'x' matches no layer; layer names look like y"
    problems = (match, f"{PATH}[0]: gives neither; give one")
    page.set_problems(Findings(problems=problems).by_path([PATH]))
    assert row.problem.text() == (
        "Number 2, match: 'x' matches no layer; layer names look like y\nNumber 1: gives neither; give one"
    )
    assert [one.is_invalid() for one in table.rows[0].cells.values()] == [True] * 3
    assert [one.is_invalid() for one in table.rows[1].cells.values()] == [True, False, False]
    page.set_problems({})
    assert not row.problem.isVisible() and not table.is_invalid()
    assert not any(one.is_invalid() for shown in table.rows for one in shown.cells.values())


def test_the_same_problem_is_said_once(page, document, row):
    document.set(PATH, [{**ONE, "rank": 0}])
    page.set_problems(Findings(problems=(f"{PATH}[0].rank: 0 is too small; at least 1",)).by_path([PATH]))
    assert row.problems() == ["Number 1, rank: 0 is too small; at least 1"]


# -- its place on the page --------------------------------------------------------------------------------------------


def test_the_page_grows_with_the_table_and_shrinks_again(page, document, row, table):
    def fits():
        QApplication.processEvents()
        QApplication.processEvents()
        assert row.help.height() >= row.help.heightForWidth(row.help.width())
        assert all(one.height() >= one.minimumSizeHint().height() for shown in table.rows for one in shown.widgets)
        return row.height()

    page.build()  # rows that stay are laid out anew
    heights = [fits()]
    for count in range(1, 5):
        table.on_add()
        assert len(table.rows) == count
        heights.append(fits())
    assert heights == sorted(set(heights))
    document.set(PATH, [])
    assert fits() == heights[0]


def test_the_tab_key_goes_through_the_table_in_order(qtbot, page, document, row, table):
    document.set(PATH, [ONE, TWO])
    table.on_add()
    table.on_remove(0)
    table.on_add()
    wanted = [table.add, *(stop for shown in table.rows for stop in shown.stops)]
    assert [stop for stop in row.stops() if stop is not row.reset] == wanted
    one = table.add
    for stop in wanted[1:]:
        one = one.nextInFocusChain()
        while not one.focusPolicy() & Qt.FocusPolicy.TabFocus:
            one = one.nextInFocusChain()
        assert one is stop, one.accessibleName()


def test_everything_has_a_name_and_a_tip(document, table):
    document.set(PATH, [ONE, TWO])
    names = [stop.accessibleName() for shown in table.rows for stop in shown.stops]
    assert names[:6] == ["Rules 1: Match", "Rules 1: Rank", "Rules 1: LR scale", "Rules 1: move up",
                         "Rules 1: move down", "Rules 1: remove"]  # fmt: skip
    assert len(set(names)) == 12 and table.add.accessibleName() == "Rules: add a rule"
    assert table.add.toolTip() == "Add a rule" and all(tool.toolTip() for tool in table.rows[0].tools)
    for heading, column in zip(table.headings, table.field.columns, strict=True):
        assert heading.text() == column.label and column.description in heading.toolTip()
    assert "1 to 4096" in cell(table, 0, "rank").toolTip()
    assert cell(table, 1, "match").toolTip() == TWO["match"], "long ones are cut off"


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
    widget.on_add()
    assert seen[-1] == [{"kind": "a", "on": False, "steps": 3, "note": "-"}] and not field.problem(seen[-1])
    cells = widget.rows[0].cells
    cells["on"].box.click()
    qtbot.keyClick(cells["kind"].box, Qt.Key.Key_Down)
    assert seen[-1] == [{"kind": "b", "on": True, "steps": 3, "note": "-"}]
    cells["steps"].edit.clear()
    cells["steps"].edit.textEdited.emit("")
    assert widget.stray == {(0, "steps"): "a number is missing"} and widget.read() == seen[-1]


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
