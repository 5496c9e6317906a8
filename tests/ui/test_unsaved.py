"""Edits that a crash has left: what of them comes back."""

import json

import pytest
from PySide6.QtCore import Qt

from tests.ui.form_pages import Pages
from ui.core import unsaved
from ui.core.preset import files
from ui.core.preset.document import Document
from ui.core.preset.files import Opened, Origin
from ui.core.settings import Settings
from ui.pages.presets.presets_page import PresetsPage

GONE = "999999-1.json"
"""The file of a window that does not run."""


@pytest.mark.parametrize("name", ["wora_demo", ""])
def test_edits_come_back_also_those_of_a_preset_without_a_name(document, tmp_path, name):
    document.open(Opened(Origin("new", name, None), document.values))
    document.set("adapter.rank", 5)
    (tmp_path / GONE).write_text(json.dumps(document.to_unsaved()))
    later = Document(document.schema)
    assert unsaved.of_document(later, tmp_path).restore(newest=True)
    assert later.origin.name == name and later.value("adapter.rank") == 5
    assert not (tmp_path / GONE).exists()
    assert not unsaved.of_document(Document(document.schema), tmp_path).restore(), "it belongs to a window that runs"


@pytest.mark.parametrize("text", ["{broken", "[]", '{"origin": {}}'])
def test_damaged_edits_are_kept_and_told_in_words(document, tmp_path, text):
    (tmp_path / GONE).write_text(text)
    copy, said = unsaved.of_document(document, tmp_path), []
    copy.failed.connect(said.append)
    assert not copy.restore(newest=True) and (tmp_path / GONE).with_suffix(".broken").read_text() == text
    assert len(said) == 1 and "Error" not in said[0] and ".broken" in said[0]


def test_what_the_trainer_says_takes_the_place_of_the_first_look(qtbot, document):
    pages = Pages(qtbot, document)
    row = pages.show("data").rows["data.folders"]
    row.on_found("there is no folder x", "")
    assert row.problems() == ["There is no folder x"]
    row.set_deep(["x: there is no such folder"])
    assert row.problems() == ["x: there is no such folder"]
    assert row.problem.textFormat() == Qt.TextFormat.PlainText, "what the user typed is no HTML"


def test_a_preset_that_was_saved_under_another_name_is_chosen(qtbot, document):
    page = PresetsPage(document, Settings())
    qtbot.addWidget(page)
    page.show()
    qtbot.waitUntil(lambda: page.tree.entry() is not None)
    path = files.save(document.values, "mine", document.schema)
    document.mark_saved(Origin("own", "mine", path))
    qtbot.waitUntil(lambda: page.tree.entry().path == path)
