"""The folders on the data page: what each is for, their settings in a form made from the schema, and new ones."""

import json

import pytest
from PySide6.QtWidgets import QCheckBox, QComboBox, QLineEdit

from tests.ui.test_pictures_page import folder, names, page, shown  # noqa: F401  fixtures
from ui.core import places
from ui.core.preset.schema import Schema
from ui.form.inputs import Nullable
from ui.form.row import help_text
from ui.pages.pictures import folders_bar
from ui.pages.pictures.folder_dialog import FolderDialog

CLASS = {"role": "regularisation", "repeats": 2.0, "loss_weight": 0.5, "resolutions": [512, 768]}


def lines(of) -> list[str]:
    listed = of.parts.folders.list
    return [listed.item(row).text() for row in range(listed.count())]


@pytest.fixture
def dialog(shown):  # noqa: F811
    """The settings of the only folder."""
    shown.parts.folders.settings.click()
    assert isinstance(shown.dialog, FolderDialog) and shown.dialog.isVisible()
    return shown.dialog


def tick_off(dialog, name: str) -> None:
    """No longer as for all folders."""
    dialog.page.rows[name].input.none.click()


def test_each_folder_says_its_role_its_pictures_and_its_settings(shown, document, qtbot, folder):  # noqa: F811
    assert lines(shown) == [f"{folder}   training · 5 pictures"]
    document.set("data.folders", [str(folder), {"path": str(folder), **CLASS}, {"path": "x", "role": "validation"}])
    said = "regularisation · 5 pictures · repeats 2 · loss weight 0.5 · resolutions 512, 768"
    qtbot.waitUntil(lambda: lines(shown)[1:] == [f"{folder}   {said}"], timeout=5000)
    assert lines(shown)[0].endswith("training · 5 pictures") and "loss weight 0.5" in (
        shown.parts.folders.list.item(1).toolTip()
    )
    shown.parts.validation.click()
    assert lines(shown) == ["x   validation"]


def test_a_file_in_two_folders_is_two_pictures_and_one_folder_can_be_removed(shown, document, qtbot, folder):  # noqa: F811
    document.set("data.folders", [str(folder), {"path": str(folder), **CLASS}])
    qtbot.waitUntil(lambda: len(names(shown)) == 10, timeout=5000)
    twin = shown.model.pictures[5]
    assert twin.path == shown.model.pictures[0].path and twin.role == "regularisation"
    shown.parts.grid.select(twin.key)
    assert shown.parts.panel.picture == twin and shown.parts.grid.currentIndex().row() == 5
    assert "regularisation" in shown.parts.panel.facts.text() and "loss weight 0.5" in shown.parts.panel.facts.text()
    with qtbot.waitSignal(shown.look.answered):
        shown.parts.refresh.click()
    assert shown.parts.panel.picture == twin, "and stays chosen"
    shown.parts.folders.list.setCurrentRow(0)
    shown.parts.folders.remove.click()
    assert document.value("data.folders") == [{"path": str(folder), **CLASS}]
    assert not shown.parts.folders.list.selectedItems()


def test_every_setting_of_the_schema_is_in_the_dialog_with_its_help_and_what_holds(dialog, document):
    root = json.loads(places.SCHEMA.read_text(encoding="utf-8"))["$defs"]
    own, around = root["Folder"]["properties"], root["Data"]["properties"]
    assert dialog.page.rows.keys() == own.keys() and len(own) > 20
    for name in own.keys() - around.keys():
        assert " ".join(own[name]["description"].split()) in dialog.page.rows[name].help.text(), name
    for name in own.keys() & around.keys():
        row = dialog.page.rows[name]
        assert isinstance(row.input, Nullable) and row.input.none.isChecked(), name
        assert row.input.none.text() == "As for all folders" and "as for all folders" in row.help.text(), name
        assert row.help.text()[:20] == " ".join(around[name]["description"].split())[:20].replace("null", "none"), name
        assert row.field.advanced == around[name].get("advanced", False), name
        held = document.value(f"data.{name}")
        if isinstance(editor := row.input.inner.editor, QLineEdit):
            said = ", ".join(map(str, held)) if isinstance(held, list) else str("" if held is None else held)
            assert editor.text().removesuffix(".0") == said.removesuffix(".0"), name
        elif isinstance(editor, QComboBox):
            assert editor.currentText() == held
        elif isinstance(editor, QCheckBox):
            assert editor.isChecked() is held


def test_the_page_of_the_options_names_the_place_of_the_settings_and_does_not_list_them(qtbot):
    """Nor is there a line without words for a list of numbers."""
    known = Schema.load().everything()
    text = help_text(known["data.folders"][0], [])
    assert "page Pictures" in text and "As data." not in text and "Repeats:" not in text
    assert "Resolutions:" not in help_text(known["data.resolutions"][0], [])


def test_an_option_that_is_new_in_the_schema_appears_by_itself(document):
    root = json.loads(places.SCHEMA.read_text(encoding="utf-8"))
    new = {"default": 1, "title": "Sparkle", "type": "integer", "group": "Basic", "description": "How much."}
    root["$defs"]["Folder"]["properties"]["sparkle"] = new
    schema = Schema(root)
    assert schema.of_entry("data.folders", document.values, "none").everything()["sparkle"][0].label == "Sparkle"
    assert "sparkle" not in Schema.load().of_entry("data.folders", document.values, "none").everything()


def test_settings_are_one_undo_step_and_a_plain_entry_becomes_text_again(dialog, shown, document, folder):  # noqa: F811
    rows = dialog.page.rows
    rows["repeats"].input.edit.setText("0.5")
    rows["repeats"].input.edit.textEdited.emit("0.5")
    tick_off(dialog, "flip")
    assert dialog.document.value("flip") is document.value("data.flip"), "it begins with what holds for all"
    rows["flip"].input.inner.box.click()
    dialog.ok.click()
    flipped = not document.value("data.flip")
    assert document.value("data.folders") == [{"path": str(folder), "repeats": 0.5, "flip": flipped}]
    document.undo.undo()
    assert document.value("data.folders") == [str(folder)] and not document.undo.canUndo()
    document.undo.redo()
    shown.edit_folder(0)
    for name in ("repeats", "flip"):
        assert shown.dialog.page.rows[name].modified
        shown.dialog.page.rows[name].reset.click()
    shown.dialog.ok.click()
    assert document.value("data.folders") == [str(folder)], "a text again"


def test_what_is_no_value_cannot_be_taken_and_cancel_changes_nothing(dialog, document, folder):  # noqa: F811
    line = dialog.page.rows["repeats"].input.edit
    for text, good in (("0", False), ("x", False), ("3", True)):
        line.setText(text)
        line.textEdited.emit(text)
        assert dialog.ok.isEnabled() is good, text
    dialog.reject()
    assert document.value("data.folders") == [str(folder)] and not document.undo.canUndo()


def test_a_folder_is_added_for_each_role_and_shown_where_it_belongs(shown, document, monkeypatch, tmp_path):  # noqa: F811
    before = document.value("data.folders")
    bar = shown.parts.folders
    monkeypatch.setattr(folders_bar, "ask_folder", lambda *what: str(tmp_path))
    for role, words in (("regularisation", "Folder for regularisation…"), ("validation", "Folder for validation…")):
        bar.on_menu()
        next(one for one in bar.menu.actions() if one.text() == words).trigger()
        assert document.value("data.folders") == [*before, {"path": str(tmp_path), "role": role}]
        assert shown.training is (role == "regularisation") and lines(shown)[-1].startswith(f"{tmp_path}   {role}")
        document.undo.undo()
    bar.on_menu()
    next(one for one in bar.menu.actions() if one.text() == "Folder for training…").trigger()
    assert document.value("data.folders") == [*before, str(tmp_path)] and shown.training
