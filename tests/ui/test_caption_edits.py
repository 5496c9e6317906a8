"""Captions that are not saved yet: why not, and what is left of them after a crash."""

import json
from dataclasses import replace

import pytest
from PySide6.QtWidgets import QMessageBox

from tests.ui.test_pictures_page import FAKE, folder, page, select, shown  # noqa: F401  fixtures
from ui.core.look import Look
from ui.core.settings import Settings
from ui.core.unsaved import CrashCopy
from ui.pages.pictures.captions import Captions
from ui.pages.pictures.data_set import Picture
from ui.pages.pictures.pictures_page import PicturesPage


def test_why_a_caption_was_not_saved_stands_below_it_and_revert_takes_the_files(shown, qtbot, folder):  # noqa: F811
    select(shown, "a cat.png")
    editor = shown.parts.panel.editor
    editor.text.setPlainText("mine")
    (folder / "a cat.txt").write_text("theirs")
    editor.save.click()
    qtbot.waitUntil(lambda: "theirs" in editor.source.text(), timeout=3000)
    assert editor.source.property("role") == "problem"
    editor.revert.click()
    qtbot.waitUntil(lambda: editor.text.toPlainText() == "theirs", timeout=5000)
    assert "theirs" not in editor.source.text() and editor.source.property("role") == "muted"


def test_leaving_says_which_caption_could_not_be_saved(shown, folder, monkeypatch):  # noqa: F811
    select(shown, "a cat.png")
    shown.parts.panel.editor.text.setPlainText("mine")
    (folder / "a cat.txt").write_text("theirs")
    said = []
    monkeypatch.setattr(QMessageBox, "question", lambda *what: QMessageBox.StandardButton.SaveAll)
    monkeypatch.setattr(QMessageBox, "warning", lambda *what: said.append(what[2]))
    assert not shown.may_leave()
    assert "a cat.txt" in said[0] and "theirs" in said[0]


def test_captions_of_a_window_that_crashed_come_back(shown, document, qtbot, folder):  # noqa: F811
    select(shown, "a cat.png")
    shown.parts.panel.editor.text.setPlainText("two cats")
    qtbot.waitUntil(shown.kept.file.exists, timeout=3000)
    crashed = shown.kept.file.rename(shown.kept.file.with_name("999999999-5.json"))
    again = PicturesPage(document, Settings(), Look(command=FAKE))
    qtbot.addWidget(again)
    again.show()
    qtbot.waitUntil(lambda: bool(again.model.pictures), timeout=10000)
    select(again, "a cat.png")
    assert again.parts.panel.editor.text.toPlainText() == "two cats" and "restored" in again.parts.status.text()
    assert not crashed.exists()
    again.parts.panel.editor.save.click()
    qtbot.waitUntil(lambda: not again.captions.edits, timeout=3000)
    assert (folder / "a cat.txt").read_text() == "two cats\n"
    again.end()
    assert not list(again.kept.folder.iterdir()), "nothing is left to restore"


def test_captions_of_a_window_that_works_are_left_alone_and_damaged_ones_put_aside(qtbot, tmp_path):
    first, second, said = Captions(), Captions(), []
    kept = CrashCopy(tmp_path, "captions", first.to_unsaved, first.restore)
    first.restore({"a.txt": ("new", "old")})
    kept.on_quiet()
    (tmp_path / "999999999-5.json").write_text("{")
    copy = CrashCopy(tmp_path, "captions", second.to_unsaved, second.restore)
    copy.failed.connect(said.append)
    assert copy.restore() == 0 and not second.edits
    assert json.loads(kept.file.read_text()) == {"a.txt": ["new", "old"]}
    assert "999999999-5.broken" in said[0]


@pytest.mark.parametrize(
    "source, file, words, editable",
    [
        ("txt", "a cat.txt", "", True),
        ("caption", "a cat.caption", "", True),
        ("json", "a cat.txt", "From a .json file. Saving writes a .txt file, which is used instead.", True),
        ("metadata", "a cat.txt", "From a metadata file. Saving writes a .txt file, which is used instead.", True),
        ("text", "a cat.caption", "data.caption_text is used. Saving writes a .caption file", True),
        ("missing", "a cat.caption", "Saving writes a .caption file", True),
        ("metadata", "", "From a metadata file. It cannot be edited here", False),
        ("foldername", "", "The folder's name. It cannot be edited here", False),
        ("filename", "", "The file name. It cannot be edited here", False),
    ],
)
def test_saving_never_writes_what_would_not_be_read(shown, qtbot, folder, source, file, words, editable):  # noqa: F811
    """And says where it replaces another source."""
    select(shown, "a cat.png")
    editor, picture = shown.parts.panel.editor, shown.parts.panel.picture
    other = replace(picture, source=source, caption_file=str(folder / file) if file else "")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    editor.show_picture(other)
    assert words in editor.source.text() and editor.text.isReadOnly() != editable
    assert ("file name as caption" in [mark for mark, _ in other.marks()]) == (source == "filename" and bool(file))
    editor.text.setPlainText("typed")
    assert bool(shown.captions.edits) == editable
    editor.on_save()
    if editable:
        qtbot.waitUntil(lambda: not shown.captions.edits, timeout=3000)
        before[file] = b"typed\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    if editable:
        saved = next((one for one in shown.model.pictures if one.caption == "typed"), None)
        assert saved is None or saved.source == file.rpartition(".")[2]


def test_a_picture_without_a_file_for_captions_is_understood():
    entry = {"path": "/a.png", "caption_file": "", "bucket": None, "source": "foldername"}
    assert Picture.understood(entry).caption_file == ""
