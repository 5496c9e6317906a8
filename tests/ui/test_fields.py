"""What values are edited with: notations, bounds, none, lists, paths."""

import json

import pytest
from PySide6.QtCore import QEvent, QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent, QKeyEvent, QWheelEvent
from PySide6.QtWidgets import QApplication, QFileDialog

from ui.core import places
from ui.core.preset.field import plain
from ui.core.settings import Settings
from ui.form import inputs as fields
from ui.form.inputs import bounds, parsed, stepped
from ui.form.paths import remark, remarks
from ui.form.row import make


def field(name="some.thing", **schema):
    return plain(name, {"title": "Thing", "description": "What it is.", **schema}, False)


def number(**schema):
    return field(type="number", **schema)


def integer(**schema):
    return field(type="integer", **schema)


TEXTS = {"type": "array", "items": {"type": "string"}}


@pytest.fixture
def made(qtbot):
    """Makes an input for a field, with what the user entered in `.seen` and what was refused in `.said`."""

    def make_input(one, value):
        widget = make(one, Settings())
        qtbot.addWidget(widget)
        widget.seen, widget.said = [], []
        widget.edited.connect(widget.seen.append)
        widget.refused.connect(widget.said.append)
        widget.show_value(value)
        widget.show()
        return widget

    return make_input


def type_into(qtbot, line, text):
    line.selectAll()
    qtbot.keyClicks(line, text)


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, whole, value",
    [
        ("1e-4", False, 1e-4),
        ("1E+2", False, 100.0),
        (" -0.8 ", False, -0.8),
        ("−3", True, -3),
        (".5", False, 0.5),
        ("5.", False, 5.0),
        ("2e3", True, 2000),
        ("12.0", True, 12),
        ("4294967295", True, 4294967295),
    ],
)
def test_numbers_are_read_in_any_notation(text, whole, value):
    found = parsed(text, whole)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, whole, words",
    [
        ("", False, "enter a number"),
        ("abc", False, "not a number"),
        ("1,5", False, "decimal point"),
        ("nan", False, "not a number"),
        ("inf", False, "not a number"),
        ("1e999", False, "too large"),
        ("1e999999999", True, "too large"),
        ("1_000", True, "not a number"),
        ("1.5", True, "not a whole number"),
        ("1e-3", True, "not a whole number"),
        ("--1", False, "not a number"),
    ],
)
def test_what_is_no_number_is_said_to_be_none(text, whole, words):
    with pytest.raises(ValueError, match=words):
        parsed(text, whole)


@pytest.mark.parametrize(
    "value, up, down, schema",
    [
        (0.0001, 0.0002, 0.00009, {}),
        (0.00015, 0.00025, 0.00005, {}),
        (0.0009, 0.001, 0.0008, {}),
        (-0.8, -0.7, -0.9, {}),
        (-0.1, -0.09, -0.2, {}),
        (0.0, 0.01, 0.0, {"minimum": 0, "maximum": 1}),
        (0.0, 1.0, -1.0, {}),
        (0.9, 0.91, 0.8, {"exclusiveMaximum": 1}),
        (0.999, 0.9991, 0.899, {"exclusiveMaximum": 1}),
        (1.0, 1.0, 0.9, {"maximum": 1}),
        (50.0, 60.0, 40.0, {"maximum": 10}),
    ],
)
def test_arrow_keys_change_the_first_digit_within_the_bounds(value, up, down, schema):
    one = number(**schema)
    assert (stepped(value, 1, one), stepped(value, -1, one)) == (up, down)


def test_whole_numbers_step_by_one_within_the_bounds():
    one = integer(minimum=1, maximum=9)
    assert [stepped(5, 1, one), stepped(5, -1, one), stepped(9, 1, one), stepped(1, -1, one)] == [6, 4, 9, 1]


@pytest.mark.parametrize(
    "one, words",
    [
        (integer(minimum=1), "at least 1"),
        (integer(minimum=0, exclusiveMaximum=4294967296), "0 to 4294967295"),
        (number(exclusiveMinimum=0, maximum=10), "above 0, at most 10"),
        (number(minimum=-1, exclusiveMaximum=0), "at least -1, below 0"),
        (number(minimum=0, maximum=1), "0 to 1"),
        (number(), ""),
    ],
)
def test_bounds_in_words(one, words):
    assert bounds(one) == words


def test_a_number_keeps_its_notation_while_typing_and_gets_the_usual_one_after(qtbot, made):
    widget = made(number(), 0.5)
    type_into(qtbot, widget.edit, "-1e-4")
    assert widget.seen[-1] == -1e-4 and widget.edit.text() == "-1e-4"
    widget.on_finished()
    assert widget.edit.text() == "-0.0001"


def test_a_wrong_number_stays_and_is_not_handed_on(qtbot, made):
    widget = made(integer(), 7)
    type_into(qtbot, widget.edit, "x")
    assert (widget.edit.text(), widget.seen) == ("x", []) and "not a number" in widget.said[-1]
    widget.on_finished()
    assert widget.edit.text() == "x"
    type_into(qtbot, widget.edit, "8")
    assert widget.seen == [8] and widget.said[-1] == ""


def test_values_that_are_no_number_are_shown_as_they_are(made):
    assert made(integer(), "many").edit.text() == "many"
    assert made(number(), float("inf")).edit.text() == "inf"


def test_arrow_keys_hand_on(qtbot, made):
    widget = made(number(maximum=1), 0.001)
    qtbot.keyClick(widget.edit, Qt.Key.Key_Down)
    qtbot.keyClick(widget.edit, Qt.Key.Key_Up)
    assert widget.seen == [0.0009, 0.001]


def test_undo_is_the_windows_but_for_text_that_is_no_value(qtbot, made):
    widget = made(integer(), 7)

    def is_taken():
        control_z = QKeyEvent(QEvent.Type.ShortcutOverride, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        control_z.ignore()
        QApplication.sendEvent(widget.edit, control_z)
        return control_z.isAccepted()

    type_into(qtbot, widget.edit, "8")
    assert not is_taken()
    type_into(qtbot, widget.edit, "8x")
    assert is_taken()


# -- choices, flags, none ---------------------------------------------------------------------------------------------


def test_the_wheel_does_not_turn_a_choice(made):
    widget = made(field(enum=["a", "b", "c"]), "b")
    turn = QWheelEvent(
        QPointF(5, 5),
        QPointF(5, 5),
        QPoint(0, -120),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(widget.box, turn)
    assert widget.read() == "b" and not widget.seen and not turn.isAccepted()


def test_keys_turn_a_choice(qtbot, made):
    widget = made(field(enum=["a", "b", "c"]), "b")
    qtbot.keyClick(widget.box, Qt.Key.Key_Down)
    assert widget.seen == ["c"]


def test_a_choice_and_a_flag_show_values_that_they_cannot_have(made):
    choice, flag = made(field(enum=["a", "b"]), "z"), made(field(type="boolean"), "perhaps")
    assert (choice.read(), choice.box.placeholderText(), flag.read()) == ("z", "z", "perhaps")
    flag.box.click()
    assert flag.seen == [flag.read()] and isinstance(flag.read(), bool)


def nullable(default):
    return field(anyOf=[{"type": "integer", "minimum": 1}, {"type": "null"}], default=default)


def test_none_is_ticked_and_the_number_comes_back(qtbot, made):
    widget = made(nullable(5), 8)
    widget.none.click()
    assert (widget.seen, widget.read(), widget.inner.isEnabled(), widget.inner.edit.text()) == ([None], None, False, "")
    widget.none.click()
    assert widget.seen == [None, 8] and widget.read() == 8


def test_where_there_was_no_number_none_stays_until_one_is_given(qtbot, made):
    widget = made(nullable(None), None)
    widget.none.click()
    assert widget.seen == [] and "tick None" in widget.said[-1]
    type_into(qtbot, widget.inner.edit, "3")
    assert (widget.seen, widget.said[-1], widget.read()) == ([3], "", 3)


# -- lists ------------------------------------------------------------------------------------------------------------


def test_lines_are_added_moved_edited_and_removed(qtbot, made):
    widget = made(field(**TEXTS), ["a", "b", ""])
    assert widget.read() == ["a", "b", ""]
    widget.list.setCurrentRow(1)
    widget.list.setFocus()
    qtbot.waitUntil(lambda: widget.activateWindow() or widget.isActiveWindow())
    qtbot.keyClick(widget.list, Qt.Key.Key_Up, Qt.KeyboardModifier.ControlModifier)
    assert widget.seen[-1] == ["b", "a", ""]
    widget.list.item(0).setText("c")
    assert widget.seen[-1] == ["c", "a", ""]
    widget.list.setCurrentRow(2)
    qtbot.keyClick(widget.list, Qt.Key.Key_Delete)
    assert widget.seen[-1] == widget.read() == ["c", "a"]


def test_a_new_line_is_typed_in_place_and_goes_when_left_empty(qtbot, made):
    widget = made(field(**TEXTS), ["a"])
    widget.on_add()
    assert widget.seen == []
    editor = widget.list.indexWidget(widget.list.currentIndex()) or widget.list.viewport().focusWidget()
    qtbot.keyClicks(editor, "new")
    qtbot.keyClick(editor, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: widget.seen[-1:] == [["a", "new"]])
    widget.on_add()
    widget.list.itemDelegate().closeEditor.emit(None)
    assert widget.read() == ["a", "new"] and widget.seen[-1] == ["a", "new"]


def test_a_list_keeps_a_value_that_is_none(made):
    assert made(field(**TEXTS), 5).read() == 5


def drop_on(target, *paths):
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    at = QPointF(3, 3)
    target.dropEvent(
        QDropEvent(at, Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    )


def test_folders_are_dropped_once_each_and_missing_ones_said(qtbot, made, tmp_path):
    widget = made(field(kind="folders", **TEXTS), [])
    found = []
    widget.found.connect(lambda problem, note: found.append(problem))
    drop_on(widget.list, tmp_path, places.ROOT / "demo", tmp_path)
    assert widget.read() == [tmp_path.as_posix(), "demo"] == widget.seen[-1]
    widget.put(["no/where"])
    qtbot.waitUntil(lambda: found[-1:] == ["there is no folder no/where"])


# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, path, problem, note",
    [
        ("folder", "demo", "", ""),
        ("folder", "README.md", "is a file", ""),
        ("folder", "no/where", "", "no folder no/where yet"),
        ("folders", "no/where", "no folder no/where", ""),
        ("file", "README.md", "", ""),
        ("file", "demo", "a file is needed", ""),
        ("file", "nowhere.txt", "no file nowhere.txt", ""),
        ("model", "demo/base", "", ""),
        ("model", "stabilityai/stable-diffusion-xl-base-1.0", "", "Hugging Face"),
        ("model", "gpt2", "", "Hugging Face"),
        ("model", "demo/bse", "no file or folder", ""),
        ("model", "./base", "no file or folder", ""),
        ("model", "C:/models/base", "no file or folder", ""),
        ("model", "model.safetensors", "no file or folder", ""),
        ("model", "a/b/c", "no file or folder", ""),
        ("model", "~nobody-here/base", "no such user", ""),
    ],
)
def test_what_paths_name(kind, path, problem, note):
    found = remark(kind, path)
    for sentence, words in zip(found, (problem, note), strict=True):
        assert words in sentence and bool(words) == bool(sentence)


def test_remarks_on_several_paths_stand_one_below_the_other():
    assert remarks("folders", ["no/where", "demo", "nor/there"])[0].count("\n") == 1


def test_a_folder_is_browsed_for_and_remembered(monkeypatch, made):
    widget = made(field(type="string", kind="folder", default=""), "")
    chosen = str(places.ROOT / "demo/dataset")
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: chosen)
    widget.browse.click()
    assert widget.seen == ["demo/dataset"] == Settings().recent_folders
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "")
    widget.browse.click()
    assert widget.read() == "demo/dataset"


def test_a_model_is_a_folder_or_a_file(monkeypatch, made):
    widget = made(field(type="string", kind="model", default=""), "")
    assert [action.text() for action in widget.browse.menu().actions()] == ["Folder…", "Single file…"]
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("/models/x.safetensors", ""))
    widget.browse.menu().actions()[1].trigger()
    assert widget.seen == ["/models/x.safetensors"]


def test_typing_a_path_looks_for_the_last_one_only(qtbot, made):
    widget = made(field(type="string", kind="file", default=""), "")
    found = []
    widget.found.connect(lambda problem, note: found.append(problem))
    type_into(qtbot, widget.edit, "xy")
    qtbot.waitUntil(lambda: any(found))
    assert [one for one in found if one] == ["there is no file xy"] and widget.seen == ["x", "xy"]


def test_a_path_is_dropped_and_recent_folders_are_offered(made, tmp_path):
    widget = made(field(type="string", kind="folder", default=""), "")
    drop_on(widget.edit, tmp_path)
    widget.edit.entered.emit()
    assert widget.seen == [tmp_path.as_posix()]
    model = widget.edit.completer().model()
    assert model.index(0, 0).data() == tmp_path.as_posix()


# -- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema", [{"type": "boolean"}, {"type": "string"}, {"enum": ["a"]}, {"type": "number"}, TEXTS]
)
def test_inputs_have_a_name_and_a_frame_for_wrong_values(made, schema):
    widget = made(field(**schema), None)
    assert widget.editor.accessibleName() == "Thing" and widget.editor.accessibleDescription() == "What it is."
    widget.mark(["wrong"])
    assert widget.editor.property("invalid")
    widget.mark([])
    assert not widget.editor.property("invalid")


def test_showing_a_value_is_not_editing_it(made):
    for schema, values in (
        ({"type": "number"}, [0.1, 2.0]),
        ({"type": "string"}, ["a", "b"]),
        ({"enum": ["a", "b"]}, ["a", "b"]),
        ({"type": "boolean"}, [True, False]),
        (TEXTS, [["a"], ["b", "c"]]),
    ):
        widget = made(field(**schema), values[0])
        widget.show_value(values[1])
        assert json.dumps(widget.read()) == json.dumps(values[1]) and widget.seen == []


def test_the_cursor_stays_where_it_was(qtbot, made):
    widget = made(field(type="string"), "abcdef")
    widget.edit.setFocus()
    qtbot.waitUntil(widget.edit.hasFocus)
    widget.edit.setCursorPosition(3)
    widget.show_value("abXdef")
    assert widget.edit.cursorPosition() == 3
    assert isinstance(widget, fields.Text)
