"""Every option of the schema has its widget, its help and its place on a page, and values survive being shown."""

import json

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QCheckBox, QComboBox, QFrame, QLabel, QLineEdit, QListWidget

from tests.ui.form_pages import Pages
from ui.core import places
from ui.core.preset import files
from ui.core.preset.field import COLUMNS
from ui.core.preset.schema import Schema
from ui.form.row import KINDS, help_text

WIDGETS = {
    "boolean": QCheckBox,
    "integer": QLineEdit,
    "number": QLineEdit,
    "text": QLineEdit,
    "choice": QComboBox,
    "tag": QComboBox,
    "texts": QListWidget,
    "numbers": QLineEdit,
    "files": QListWidget,
    "folders": QListWidget,
    "prompts": QListWidget,
    "file": QLineEdit,
    "folder": QLineEdit,
    "model": QLineEdit,
    "entries": QFrame,
}

SHORT = ("wora_sdxl", "doft_flux", "lora_flux", "wora_demo")


@pytest.fixture
def page(qtbot, document):
    """Shows the page of a section."""
    return Pages(qtbot, document).show


def paths(document):
    return [section.path for section in document.schema.sections(document.values)]


def choices(document):
    """Documents with every variant of every tagged section chosen in turn."""
    yield ()
    pending = [path for path, field in document.schema.fields(document.values).items() if field.kind == "tag"]
    for tag in pending:
        for choice in document.field(tag).choices:
            document.set(tag, choice)
            yield (tag, choice)
            inner = [path for path, one in document.schema.fields(document.values).items() if one.kind == "tag"]
            for other in set(inner) - set(pending):
                for kind in document.field(other).choices:
                    document.set(other, kind)
                    yield (other, kind)


def described(node):
    """All descriptions of options in the raw schema, without line breaks."""
    if isinstance(node, dict):
        for key, value in node.items():
            for one in value.values() if key == "properties" else ():
                if "$ref" not in one and "discriminator" not in one and "const" not in one:
                    yield " ".join(one["description"].split())
            yield from described(value)
    if isinstance(node, list):
        for one in node:
            yield from described(one)


def test_every_field_of_every_variant_has_its_widget_and_its_help(page, document):
    seen, helped, places_of = [], set(), {path.partition(".")[0] for path in document.schema.everything()}
    pages = {section: page(section) for section in paths(document)}
    assert places_of - {"name", "family", "description"} == set(pages) - {""}
    for chosen in choices(document):
        for section in {chosen[0].partition(".")[0]} if chosen else pages:
            rows = pages[section].rows
            active = next(one for one in document.schema.sections(document.values) if one.path == section)
            assert {row.field.path for row in rows.values()} == {field.path for field in active.fields}
            for field in active.fields:
                row = rows[field.path]
                assert row.field == field and isinstance(row.input.editor, WIDGETS[field.kind]), field
                assert row.help.isVisibleTo(row) and row.help.text() and row.name.text() == field.label
                assert row.input.editor.accessibleName() == field.label
                if field.kind == "tag":
                    assert field.descriptions[document.value(field.path)] in row.help.text()
                seen.append((field.path, field))
                helped.update(line.partition(" Default:")[0] for line in row.help.text().split("\n"))
    every = document.schema.everything()
    assert {path for path, _ in seen} == every.keys()
    for path, variants in every.items():
        shown = [field for other, field in seen if other == path]
        assert all(field in shown for field in variants), path
    text = "\n".join(helped)
    root = json.loads(places.SCHEMA.read_text("utf-8"))
    del root["$defs"]["Folder"]  # in a dialog of its own: tests/ui/test_folder_settings.py
    missing = [one for one in described(root) if shortened(one) not in text]
    assert not missing


def shortened(description):
    """The part of a description in front of a "null", which the page calls none."""
    return description.partition("null")[0].removesuffix(". ").strip()


def test_all_kinds_have_an_input():
    assert KINDS.keys() == WIDGETS.keys()
    fields = [field for fields in Schema.load().everything().values() for field in fields]
    assert {field.kind for field in fields} <= KINDS.keys()
    entries = [field for field in fields if field.kind == "entries"]
    assert {column.kind for field in entries for column in field.columns} <= set(COLUMNS)


@pytest.mark.short("doft_flux")
@pytest.mark.parametrize(
    "path", [e.path for n, e in enumerate(files.listing()) if n % 14 == 0 or e.path.stem in SHORT], ids=lambda p: p.stem
)
def test_every_preset_round_trips_through_all_pages(page, document, path):
    document.open(files.read(path, document.schema))
    for section in paths(document):
        for path, row in page(section).rows.items():
            shown = row.input.read()
            assert json.dumps(shown) == json.dumps(document.value(path)) or shown == document.value(path), path
            assert not row.problems() and not row.modified, path
    assert not document.is_modified()


def test_basic_stands_first_and_advanced_is_folded_and_stays_as_it_was_left(qtbot, page):
    one = page("data")
    groups = [label.text() for label in one.basic.findChildren(QLabel) if label.property("role") == "heading"]
    assert "Basic" not in groups and len(groups) == len(set(groups)) > 1
    basic = [row for row in one.rows.values() if not row.field.advanced]
    assert all(row.isVisible() for row in basic) and not one.rows["data.cache_folder"].isVisible()
    tops = [row.mapTo(one.widget(), row.rect().topLeft()).y() for row in basic]
    assert tops == sorted(tops) and basic[0].field.group == "Basic"
    qtbot.mouseClick(one.fold, Qt.MouseButton.LeftButton)
    assert one.rows["data.cache_folder"].isVisible()
    assert page("data").rows["data.cache_folder"].isVisible()


def test_names_and_inputs_stand_in_columns_and_fit_the_page(page, document):
    for section in paths(document):
        one = page(section)
        one.fold.setChecked(True)
        QApplication.processEvents()
        lefts = {row.input.mapTo(one.widget(), row.input.rect().topLeft()).x() for row in one.rows.values()}
        assert len(lefts) == 1, section
        assert one.horizontalScrollBar().maximum() == 0, section
        for row in one.rows.values():
            assert row.name.sizeHint().width() <= row.name.width()
            assert row.help.heightForWidth(row.help.width()) <= row.help.height(), row.field.path
            assert row.input.width() >= row.input.minimumSizeHint().width(), row.field.path


def test_a_page_does_not_stretch_on_a_large_screen(page):
    one = page("training")
    one.resize(3000, 1500)
    QApplication.processEvents()
    assert max(row.width() for row in one.rows.values()) < 1000


def test_help_says_the_default_and_its_reason():
    fields = {path: field[0] for path, field in Schema.load().everything().items()}
    assert help_text(fields["training.steps"], 5).endswith(
        "Default: 2000 (enough for a style with 20 to 100 pictures)."
    )
    assert "Default: none (captions of the first four pictures are used)." in help_text(fields["samples.prompts"], [])
    assert help_text(fields["data.trigger"], "").endswith("Default: empty.")
    assert "None turns it off." in help_text(fields["objective.min_snr_gamma"], 5)
