"""Folders with settings of their own, lists of files, and lists of numbers, in the form."""

import pytest
from PySide6.QtCore import Qt

from ui.core import places
from ui.core.preset.schema import Schema
from ui.core.settings import Settings
from ui.form.row import make


@pytest.fixture
def made(qtbot):
    """Makes an input for a field, with what the user entered in `.seen`."""

    def make_input(one, value):
        widget = make(one, Settings())
        qtbot.addWidget(widget)
        widget.seen = []
        widget.edited.connect(widget.seen.append)
        widget.show_value(value)
        widget.show()
        return widget

    return make_input


SETTINGS = {"path": "demo/validation", "role": "validation", "repeats": 2.0}


def test_a_folder_with_settings_is_shown_with_them_and_kept(qtbot, made):
    """Moved, removed and added around, but never typed over."""
    entries = Schema.load().everything()["data.folders"][0]
    widget = made(entries, ["demo/dataset", SETTINGS])
    assert [widget.list.item(row).text() for row in (0, 1)] == [
        "demo/dataset", "demo/validation (role validation, repeats 2)"
    ]  # fmt: skip
    assert [bool(widget.list.item(row).flags() & Qt.ItemFlag.ItemIsEditable) for row in (0, 1)] == [True, False]
    found = []
    widget.found.connect(lambda problem, note: found.append(problem))
    widget.put(["no/where", "demo/dataset"])
    assert widget.read() == ["demo/dataset", SETTINGS, "no/where"] == widget.seen[-1]
    qtbot.waitUntil(lambda: found[-1:] == ["there is no folder no/where"])
    widget.list.item(0).setText("demo")
    assert widget.read() == ["demo", SETTINGS, "no/where"] == widget.seen[-1]
    widget.list.setCurrentRow(1)
    widget.on_moving(-1)
    assert widget.read() == [SETTINGS, "demo", "no/where"]
    widget.list.setCurrentRow(1)
    widget.on_remove()
    assert widget.read() == [SETTINGS, "no/where"] == widget.seen[-1]


def test_a_prompt_with_references_is_shown_with_them_and_kept(made):
    """One without any is its text."""
    field = Schema.load().everything()["samples.prompts"][0]
    own = {"prompt": "make it red", "references": ["a.png", "b.png"]}
    widget = made(field, ["apple", own, {"prompt": "pear", "references": []}])
    assert [widget.list.item(row).text() for row in range(3)] == [
        "apple", "make it red (references a.png, b.png)", "pear"
    ]  # fmt: skip
    widget.list.item(0).setText("blue apple")
    assert widget.read() == ["blue apple", own, "pear"] == widget.seen[-1]
    assert field.problem([{"references": ["a.png"]}]) == "number 1, prompt: required"
    assert field.brief([own]) == [own]


def test_files_are_chosen_dropped_and_looked_for(qtbot, made, tmp_path, monkeypatch):
    field = Schema.load().everything()["base.texts"][0]
    widget = made(field, [])
    found = []
    widget.found.connect(lambda problem, note: found.append(problem))
    (tmp_path / "a.safetensors").write_bytes(b"")
    widget.on_dropped([(tmp_path / "a.safetensors").as_posix(), tmp_path.as_posix()])
    path = (tmp_path / "a.safetensors").as_posix()
    assert widget.read() == [path, tmp_path.as_posix()] == widget.seen[-1]
    qtbot.waitUntil(lambda: found[-1:] == [f"{tmp_path.as_posix()} is a folder; a file is needed"])
    monkeypatch.setattr("ui.form.paths.QFileDialog.getOpenFileName", lambda *a: (str(places.ROOT / "README.md"), ""))
    widget.on_add()
    assert widget.read() == [path, tmp_path.as_posix(), "README.md"]
    widget.put(["no/where.safetensors"])
    qtbot.waitUntil(lambda: "there is no file no/where.safetensors" in found[-1])
    assert field.problem(["a", 5]) == "number 2: 5 is not a text (in quotes)" and field.problem("a")


def test_entries_of_folders_are_checked_and_understood_as_the_trainer_does():
    folders = Schema.load().everything()["data.folders"][0]
    assert folders.problem(["a", SETTINGS, {"path": "b", "resolutions": [512], "flip": None}]) == ""
    assert folders.problem([{"role": "train"}]) == "number 1, path: required"
    assert folders.problem([5]) == "number 1: 5 is not a text (in quotes)"
    assert folders.problem([{"path": "a", "repeats": 0}]) == "number 1, repeats: 0 is too small; more than 0"
    assert folders.problem([{"path": "a", "resolutions": [512, 3]}]) == (
        "number 1, resolutions: number 2: 3 is too small; at least 16"
    )
    assert folders.problem([{"path": "a", "reppeats": 1}]) == "number 1, reppeats: unknown; did you mean repeats?"
    assert folders.problem(5) == "5 is not a list" and folders.problem("a") == ""
    given = ["a", {"path": "b"}, {"path": "c", "role": "train", "repeats": 1}, {"path": "d", "flip": True}]
    assert folders.understood(given) == ["a", "b", "c", {"path": "d", "flip": True}]


def test_several_numbers_are_typed_on_a_line(made):
    field = Schema.load().everything()["data.resolutions"][0]
    widget = made(field, [512, 768])
    assert widget.edit.text() == "512, 768" and widget.read() == [512, 768]
    widget.edit.setText("512 640,1024")
    widget.edit.textEdited.emit("")
    assert widget.seen[-1] == [512, 640, 1024] == widget.read()
    widget.edit.setText("512, x")
    with pytest.raises(ValueError, match="'x' is not a number"):
        widget.read()
    assert field.problem([512, 3]) == "number 2: 3 is too small; at least 16" and field.problem([]) == ""
