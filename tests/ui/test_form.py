"""Pages of settings: what is typed, reset, undone, folded, searched and found wrong there."""

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QApplication, QLabel

from tests.ui.form_pages import Pages
from ui.core import places
from ui.core.preset import files
from ui.core.preset.document import Document
from ui.core.preset.schema import Schema
from ui.widgets import theme
from ui.widgets.two_lines import DETAIL


@pytest.fixture
def page(qtbot, document):
    """Shows the page of a section."""
    return Pages(qtbot, document).show


def type_into(qtbot, line, text):
    line.selectAll()
    qtbot.keyClicks(line, text)


def texts(widget):
    """What can be read on a page or a row."""
    return [label.text() for label in widget.findChildren(QLabel) if label.isVisibleTo(widget)]


# -- editing ----------------------------------------------------------------------------------------------------------


def test_typing_is_stored_marked_and_undone_as_one(qtbot, page, document):
    row = page("training").rows["training.learning_rate"]
    type_into(qtbot, row.input.edit, "2e-4")
    assert (document.value("training.learning_rate"), row.input.edit.text()) == (2e-4, "2e-4")
    assert row.modified and row.reset.isVisible()
    document.undo.undo()
    assert (document.value("training.learning_rate"), row.input.edit.text()) == (0.0007, "0.0007")
    assert not row.modified and not row.reset.isVisible()
    document.undo.redo()
    assert row.input.edit.text() == "0.0002" and row.modified


def test_undo_and_redo_do_not_write_back(qtbot, page, document):
    one = page("training")
    type_into(qtbot, one.rows["training.steps"].input.edit, "12")
    document.undo.undo()
    assert document.undo.canRedo()
    document.undo.redo()
    assert not document.undo.canRedo() and document.undo.count() == 1


@pytest.mark.parametrize("text", ["abc", "", "1,5", "1e", "-"])
def test_a_wrong_number_stays_with_its_sentence_and_stores_nothing(qtbot, page, document, text):
    one = page("training")
    row = one.rows["training.learning_rate"]
    told = []
    one.unread_changed.connect(lambda: told.append(one.unread()))
    row.input.edit.setText(text)
    row.input.edit.textEdited.emit(text)
    assert document.value("training.learning_rate") == 0.0007 and not document.is_modified()
    row.input.edit.editingFinished.emit()  # leaves the page
    one.hide()
    one.show()
    assert row.input.edit.text() == text and row.problem.isVisible() and "0.0007 is kept" in row.problem.text()
    assert list(one.unread()) == ["training.learning_rate"] and one.unread() == told[-1]
    qtbot.mouseClick(row.reset, Qt.MouseButton.LeftButton)
    assert row.input.edit.text() == "0.0007" and not row.problem.isVisible()
    assert one.unread() == told[-1] == {}


def test_what_stands_on_the_way_to_a_wrong_number_does_not_hold(qtbot, page, document):
    row = page("training").rows["training.learning_rate"]
    type_into(qtbot, row.input.edit, "2e")
    assert document.value("training.learning_rate") == 0.0007 and "0.0007 is kept" in row.problem.text()
    qtbot.keyClicks(row.input.edit, "-5")
    assert document.value("training.learning_rate") == 2e-5 and not row.problem.isVisible()
    row.input.edit.editingFinished.emit()
    qtbot.keyClicks(row.input.edit, "x")
    assert document.value("training.learning_rate") == 2e-5


def test_a_wrong_number_stays_when_another_variant_is_chosen(qtbot, page, document):
    one = page("adapter")
    type_into(qtbot, one.rows["adapter.rank"].input.edit, "8x")
    document.set("adapter.method", "dora")
    assert one.rows["adapter.rank"].input.edit.text() == "8x" and "adapter.rank" in one.unread()


def test_values_beyond_the_bounds_are_stored_and_said(qtbot, page, document):
    row = page("training").rows["training.steps"]
    type_into(qtbot, row.input.edit, "-3")
    assert document.value("training.steps") == -3 and document.problems().keys() == {"training.steps"}
    assert "too small; at least 1" in row.problem.text() and row.input.editor.property("invalid")
    type_into(qtbot, row.input.edit, "3")
    assert not row.problem.isVisible() and not row.input.editor.property("invalid")


def test_units_and_bounds_stand_beside_the_number(page):
    rows = page("training").rows
    assert "steps · at least 1" in texts(rows["training.steps"])
    assert "above 0, at most 10" in texts(rows["training.learning_rate"])


def test_none_is_a_tick_and_its_meaning_is_said(qtbot, page, document):
    one = page("adapter")
    one.reveal("adapter.alpha")
    row = one.rows["adapter.alpha"]
    assert (
        row.input.none.isChecked() and "None: alpha = rank." in row.help.text() and "equal to rank" in row.help.text()
    )
    row.input.none.click()
    assert document.value("adapter.alpha") is None and "tick None" in row.problem.text()
    type_into(qtbot, row.input.inner.edit, "4")
    assert document.value("adapter.alpha") == 4.0 and not row.problem.isVisible()
    qtbot.mouseClick(row.reset, Qt.MouseButton.LeftButton)
    assert document.value("adapter.alpha") is None and row.input.none.isChecked()


def test_lists_are_edited_and_reset(qtbot, page, document):
    row = page("samples").rows["samples.prompts"]
    before = document.value("samples.prompts")
    row.input.list.setCurrentRow(0)
    row.input.list.setFocus()
    qtbot.waitUntil(lambda: row.activateWindow() or row.isActiveWindow())
    qtbot.keyClick(row.input.list, Qt.Key.Key_Delete)
    assert document.value("samples.prompts") == before[1:] and row.modified
    document.undo.undo()
    assert row.input.read() == before
    document.undo.redo()
    qtbot.mouseClick(row.reset, Qt.MouseButton.LeftButton)
    assert row.input.read() == before == document.value("samples.prompts")


def test_each_option_is_reset_alone(qtbot, page, document):
    one = page("training")
    for path in ("training.steps", "training.batch_size"):
        type_into(qtbot, one.rows[path].input.edit, "5")
    qtbot.mouseClick(one.rows["training.steps"].reset, Qt.MouseButton.LeftButton)
    assert [change.path for change in document.differences()] == ["training.batch_size"]
    assert one.rows["training.steps"].input.edit.text() == "240"


def test_what_was_saved_is_no_longer_marked(qtbot, page, document):
    row = page("training").rows["training.steps"]
    type_into(qtbot, row.input.edit, "5")
    document.mark_saved(document.origin)
    assert not row.modified and not row.reset.isVisible()


def test_two_pages_of_one_section_agree(qtbot, page):
    one, other = page("training"), page("training")
    type_into(qtbot, one.rows["training.steps"].input.edit, "77")
    assert other.rows["training.steps"].input.edit.text() == "77"


# -- variants ---------------------------------------------------------------------------------------------------------


def test_the_adapter_page_follows_the_method_and_keeps_the_focus(qtbot, page, document):
    one = page("adapter")
    method = one.rows["adapter.method"]
    method.input.focus()
    qtbot.waitUntil(method.input.box.hasFocus)
    method.input.box.setCurrentText("doft")
    method.input.box.activated.emit(method.input.box.currentIndex())
    assert document.value("adapter.method") == "doft"
    assert "adapter.rotation.block_size" in one.rows and "adapter.rank" not in one.rows
    assert one.rows["adapter.method"] is method and method.input.box.hasFocus()
    assert "DOFT" in method.help.text()
    assert not one.rows["adapter.rotation.block_size"].reset.isVisible()  # at its default; nothing to go back to
    document.undo.undo()
    assert one.rows["adapter.rank"].input.read() == 8 and "adapter.rotation.kind" not in one.rows
    assert method.input.read() == "wora" and "WoRA" in method.help.text()


def test_the_choice_between_variants_is_reset_with_all_it_dropped(qtbot, page, document):
    one = page("adapter")
    document.set("adapter.method", "oft")
    qtbot.mouseClick(one.rows["adapter.method"].reset, Qt.MouseButton.LeftButton)
    assert not document.is_modified() and one.rows["adapter.rank"].input.read() == 8


def test_opening_another_preset_shows_it(page, document):
    one = page("adapter")
    document.open(files.read(places.PRESETS / "doft_planes_demo.json", document.schema))
    assert one.rows["adapter.rotation.planes"].input.read() == 4
    assert one.rows["adapter.method"].input.read() == "doft"


def test_a_document_without_a_method_can_be_given_one(qtbot, page):
    fresh = Document(Schema.load())
    one = page("adapter", fresh)
    assert list(one.rows) == ["adapter.method"] and one.rows["adapter.method"].problems()
    one.rows["adapter.method"].on_edited("lora")
    assert one.rows["adapter.rank"].input.read() == 16 and not one.rows["adapter.method"].problems()


# -- finding, problems ------------------------------------------------------------------------------------------------


def test_an_advanced_option_is_unfolded_shown_and_focused(qtbot, page):
    one = page("training")
    one.resize(900, 200)
    one.reveal("training.final_lr")
    row = one.rows["training.final_lr"]
    qtbot.waitUntil(lambda: one.verticalScrollBar().value() > 0)
    assert one.fold.isChecked() and row.input.edit.hasFocus()
    assert one.viewport().rect().contains(row.mapTo(one.viewport(), row.rect().center()))
    assert row.glow.state() == row.glow.State.Running


def test_an_option_of_another_variant_reveals_the_choice(qtbot, page):
    one = page("adapter")
    one.reveal("adapter.rotation.planes")
    qtbot.waitUntil(one.rows["adapter.method"].input.box.hasFocus)


def test_problems_of_the_check_stand_at_their_fields(page):
    one = page("data")
    one.set_problems(
        {
            "data.folders": ["data.folders: demo/dataset has no pictures"],
            "data.separator": ["data.separator: too odd"],
            "data": ["data: something else"],
            "training.steps": ["training.steps: not here"],
        }
    )
    assert "demo/dataset has no pictures" in texts(one.rows["data.folders"])
    assert "1 problem" in one.fold.text() and not one.fold.isChecked()
    assert "something else" in one.problem.text() and "not here" not in "".join(texts(one))
    one.set_problems({})
    assert not one.problem.isVisible() and "problem" not in one.fold.text()
    assert not one.rows["data.folders"].problem.isVisible()


def test_the_fold_says_what_is_changed_below_it(page, document):
    one = page("targets")
    assert one.fold.text() == "Advanced (7)"
    document.set("targets.exclude", ["unet.conv_in"])
    assert one.fold.text() == "Advanced (7, 1 changed)"


def test_layer_sets_are_offered(qtbot, page, document):
    one = page("targets")
    one.set_choices("targets.layers", ["attention", "all"])
    edit = one.rows["targets.layers"].input.edit
    qtbot.keyClick(edit, Qt.Key.Key_Down)
    popup = edit.completer().popup()
    assert popup.isVisible() and popup.model().rowCount() == 2
    edit.completer().activated.emit("attention")
    assert document.value("targets.layers") == "attention"


def test_a_missing_model_is_said_at_the_place(qtbot, page):
    row = page("base").rows["base.path"]
    type_into(qtbot, row.input.edit, "demo/bse")
    qtbot.waitUntil(lambda: "no file or folder demo/bse" in row.problem.text())
    type_into(qtbot, row.input.edit, "someone/some-model")
    qtbot.waitUntil(lambda: "Hugging Face" in row.note.text())
    assert not row.problem.isVisible()


def test_the_list_of_methods_says_what_they_are(page, document):
    box, field = page("adapter").rows["adapter.method"].input.editor, document.field("adapter.method")
    assert [box.itemData(row, DETAIL) for row in range(box.count())] == [*field.descriptions.values()]
    assert [*field.descriptions] == [*field.choices] and all(field.descriptions.values())
    box.showPopup()
    view = box.view()
    last = view.visualRect(view.model().index(box.count() - 1, 0))
    assert view.viewport().rect().contains(last) and last.width() >= view.sizeHintForColumn(0) - 1, "without scrolling"
    view.grab()
    box.hidePopup()


def test_tab_goes_from_top_to_bottom(qtbot, page, document):
    document.set("adapter.method", "doft")
    document.set("adapter.method", "dora")  # rows that stayed, rows that came
    one = page("adapter")
    document.set("adapter.method", "wora")
    one.fold.setChecked(True)
    QApplication.processEvents()
    one.rows["adapter.method"].input.focus()
    stops = [QApplication.focusWidget()]
    while len(stops) < 50:
        qtbot.keyClick(stops[-1], Qt.Key.Key_Tab)
        if QApplication.focusWidget() is stops[0]:
            break
        stops.append(QApplication.focusWidget())
    names = [stop.accessibleName() or stop.text() for stop in stops]
    names = [name.partition(":")[0] for name in names if not name.startswith("Reset")]  # "Start from: browse"
    wanted = {one.fold.text(): one.fold, **{row.field.label: row for row in one.rows.values()}}
    heights = {name: widget.mapTo(one.widget(), QPoint()).y() for name, widget in wanted.items()}
    assert list(dict.fromkeys(names)) == sorted(wanted, key=heights.__getitem__)


def test_pages_survive_a_change_of_theme(page, document, qapp):
    one = page("data")
    for mode in ("dark", "light"):
        theme.apply(qapp, mode)
        document.set("data.resolution", 80)
        assert one.rows["data.resolution"].modified
