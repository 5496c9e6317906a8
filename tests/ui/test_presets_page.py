"""The page of presets: what it lists and shows, and which files its actions leave."""

import json
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtWidgets import QApplication, QFileDialog, QLabel, QPushButton

from modules.preset import files as trainer
from ui.core import places
from ui.core.preset import files
from ui.core.preset.groups import OTHERS
from ui.core.settings import Settings
from ui.pages.presets.details import NEEDED
from ui.pages.presets.keeper import free_name
from ui.pages.presets.presets_page import PresetsPage
from ui.widgets import dialogs
from ui.widgets.two_lines import BADGE, DETAIL


@pytest.fixture
def make_own():
    """Writes an own preset."""

    def write(name: str, values: dict | str) -> Path:
        places.OWN_PRESETS.mkdir(parents=True, exist_ok=True)
        path = places.OWN_PRESETS / f"{name}.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
        return path

    return write


@pytest.fixture
def open_page(qtbot, document):
    """Shows the page, at a preset, once its details are there."""

    def show(path: Path | None = None) -> PresetsPage:
        page = PresetsPage(document, Settings())
        qtbot.addWidget(page)
        page.show()
        choose(qtbot, page, path or places.PRESETS / "wora_demo.json")
        return page

    return show


def choose(qtbot, page, path):
    """Make a preset the current one."""
    page.refresh(path)
    qtbot.waitUntil(lambda: page.tree.entry() is not None and page.tree.entry().path == path)
    qtbot.waitUntil(lambda: page._looked is not None or "problem" in roles(page))


def items(page):
    """All items of the tree from top to bottom, with their depth."""

    def below(item, depth):
        for index in range(item.childCount()):
            child = item.child(index)
            yield depth, child
            yield from below(child, depth + 1)

    return list(below(page.tree.invisibleRootItem(), 0))


def names(page):
    """Of the presets that are shown."""
    return [item.text(0) for depth, item in items(page) if item.data(0, DETAIL) and not item.isHidden()]


def texts(page):
    return [label.text() for label in page.details.findChildren(QLabel)]


def roles(page):
    return [label.property("role") for label in page.details.findChildren(QLabel)]


def answer(qtbot, wanted):
    """Give an answer to the question that is open."""
    qtbot.waitUntil(lambda: QApplication.activeModalWidget() is not None)
    box = QApplication.activeModalWidget()
    box.choices[wanted].click()
    return box


def give_name(qtbot, name):
    """Fill in the name that is asked for."""
    qtbot.waitUntil(lambda: isinstance(QApplication.activeModalWidget(), dialogs.NameDialog))
    dialog = QApplication.activeModalWidget()
    dialog.edit.setText(name)
    qtbot.keyClick(dialog.edit, Qt.Key.Key_Return)
    return dialog


def test_the_tree_has_families_in_each_the_recommended_presets_and_ones_own_and_all_others_closed(open_page, make_own):
    make_own("mine", {"based_on": "dora_sdxl"})
    page = open_page()
    shipped = trainer.every()
    expected = []
    for family in sorted({one.family for one in shipped}):
        inside = [one for one in shipped if one.family == family]
        expected += [(0, family), *((1, one.name) for one in inside if one.place is not None)]
        expected += [(1, "mine")] if family == "sdxl" else []
        expected += [(1, OTHERS), *((2, one.name) for one in inside if one.place is None)]
    assert [(depth, item.text(0)) for depth, item in items(page)] == expected
    described = {one.name: one.description for one in shipped}
    for _, item in items(page):
        if item.text(0) in described:
            assert item.data(0, DETAIL) == described[item.text(0)]
    closed = [item for _, item in items(page) if item.text(0) == OTHERS]
    assert len(closed) == len({one.family for one in shipped}) and not any(item.isExpanded() for item in closed)


def test_the_others_open_for_the_chosen_preset_and_for_a_search_and_stay_as_they_were_left(open_page, qtbot):
    def unfolded():
        return [family for family, item in page.tree._others().items() if item.isExpanded()]

    page = open_page(places.PRESETS / "dora_sd15.json")
    assert unfolded() == ["sd15"]
    choose(qtbot, page, places.PRESETS / "wora_demo.json")
    assert unfolded() == ["sd15"]
    page.filter.setText("dora")
    assert set(unfolded()) == {one.family for one in trainer.every()}
    choose(qtbot, page, places.PRESETS / "dora_demo.json")
    page.filter.setText("")
    assert unfolded() == ["sdxl"]


def test_names_of_families_come_from_the_files(open_page, make_own):
    page = open_page(make_own("strange", {"family": "a new family", "adapter": {"method": "a new method"}}))
    assert "a new family" in {item.text(0) for _, item in items(page)}
    page.filter.setText("a new method")
    assert names(page) == ["strange"]


def test_broken_parts_are_told_in_the_list(open_page, make_own, monkeypatch, tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "lora.json").write_text("{")
    own = make_own("mine", {"family": "sdxl", "adapter": {"method": "lora"}})
    monkeypatch.setattr(places, "PRESETS", tmp_path)
    page = open_page(own)
    assert names(page) == ["mine", tmp_path.name] and "lora.json: is not JSON" in items(page)[-1][1].data(0, DETAIL)


def test_own_presets_and_the_open_one_are_marked(open_page, make_own):
    own = make_own("mine", {"based_on": "wora_demo", "description": "My style"})
    page = open_page(own)
    badges = {item.text(0): item.data(0, BADGE) for _, item in items(page) if item.data(0, DETAIL)}
    assert badges.pop("mine") == "own" and badges.pop("wora_demo") == "open" and set(badges.values()) == {""}


def test_filter_looks_into_names_and_descriptions_and_chooses_what_is_left(open_page, qtbot):
    page = open_page()
    page.filter.setText("oft demo planes sdxl")
    assert names(page) == ["doft_planes_demo"] and page.tree.entry().name == "doft_planes_demo"
    page.filter.setText("zzz")
    assert names(page) == [] and not page.nothing.isHidden()
    page.filter.setText("")
    assert "wora_sdxl" in names(page) and page.nothing.isHidden()


def test_details_say_what_the_preset_sets_and_what_is_here(open_page, document):
    page = open_page()
    shown = texts(page)
    field = document.schema.fields(document.values)["training.steps"]
    assert f"{document.value('training.steps')} {field.unit}" in shown and field.label in shown
    assert "\n".join(document.value("samples.prompts")) in shown
    assert document.field("training.accumulation").label not in shown  # it is at its default
    assert any("found: demo/base" in text for text in shown)
    assert any("found: demo/validation" in text for text in shown)


def test_details_say_what_is_not_here(open_page, make_own):
    values = {"based_on": "wora_demo", "base": {"path": "somebody/some-model"}, "data": {"validation_folder": "gone"}}
    page = open_page(make_own("mine", values))
    found = dict(zip(texts(page), roles(page), strict=True))
    assert [role for text, role in found.items() if "somebody/some-model is not found" in text] == ["muted"]
    assert [role for text, role in found.items() if "folder gone" in text] == ["note"]


def test_what_is_needed_are_options(document):
    assert set(NEEDED) <= set(document.schema.fields(document.values))


def test_a_broken_preset_is_shown_with_its_problem(open_page, make_own):
    page = open_page(make_own("broken", '{"family": nonsense'))
    assert items(page)[-2][1].text(0) == "Cannot be read"
    assert "line 1" in items(page)[-1][1].data(0, DETAIL) and any("line 1" in text for text in texts(page))
    assert not page.open_action.isEnabled() and not page.duplicate_action.isEnabled()
    assert page.delete_action.isEnabled() and page.rename_action.isEnabled()


def test_unknown_keys_are_told(open_page, make_own):
    page = open_page(make_own("mine", {"based_on": "wora_demo", "training": {"stpes": 3}}))
    assert any("training.stpes" in text and "steps" in text for text in texts(page))


@pytest.mark.parametrize("how", ["enter", "double click", "button"])
def test_a_preset_is_asked_for_and_not_opened_by_the_page(open_page, qtbot, document, how):
    wanted = places.PRESETS / "lora_demo.json"
    page, before = open_page(wanted), document.values
    with qtbot.waitSignal(page.open_requested) as asked:
        if how == "enter":
            qtbot.keyClick(page.tree, Qt.Key.Key_Return)
        elif how == "double click":
            rect = page.tree.visualItemRect(page.tree.currentItem())
            qtbot.mouseClick(page.tree.viewport(), Qt.MouseButton.LeftButton, pos=rect.center())
            qtbot.mouseDClick(page.tree.viewport(), Qt.MouseButton.LeftButton, pos=rect.center())
        else:
            next(one for one in page.findChildren(QPushButton) if one.text() == "&Open").click()
    assert asked.args == [wanted] and document.values is before


def test_only_own_presets_can_be_renamed_and_deleted(open_page, qtbot, make_own):
    page = open_page()
    assert not page.rename_action.isEnabled() and not page.delete_action.isEnabled()
    choose(qtbot, page, make_own("mine", {"based_on": "wora_demo"}))
    assert page.rename_action.isEnabled() and page.delete_action.isEnabled()


def test_duplicate_makes_an_own_preset_with_the_same_settings(open_page, qtbot, document):
    page = open_page()
    page.duplicate_action.trigger()
    dialog = QApplication.activeModalWidget()
    assert dialog.name == "wora_demo_2"
    dialog.edit.setText("wora_demo")
    assert "comes with Gimbal" in dialog.feedback.text()
    give_name(qtbot, "mine")
    copied = places.OWN_PRESETS / "mine.json"
    qtbot.waitUntil(lambda: page.tree.entry() is not None and page.tree.entry().path == copied)
    assert files.read(copied, document.schema).values == document.values
    resolved = trainer.resolve(str(copied)).preset
    assert resolved == trainer.resolve("wora_demo").preset.model_copy(update={"name": "mine"})


def test_a_free_name_is_found_without_composing_all_presets(make_own, monkeypatch):
    monkeypatch.setattr(files, "listing", lambda: pytest.fail("all presets were composed"))
    make_own("wora_demo_2", {"based_on": "wora_demo"})
    make_own("Mine", {"based_on": "wora_demo"})
    assert [free_name(name) for name in ("wora_demo", "WORA_SDXL", "mine", "new")] == [
        "wora_demo_3", "WORA_SDXL_2", "mine_2", "new",
    ]  # fmt: skip


def test_rename_keeps_the_file_as_it_is(open_page, qtbot, make_own):
    before = make_own("mine", '{"based_on":   "wora_demo"}')
    page = open_page(before)
    page.rename_action.trigger()
    with qtbot.waitSignal(page.renamed) as renamed:
        give_name(qtbot, "yours")
    after = places.OWN_PRESETS / "yours.json"
    assert renamed.args == [before, after] and not before.exists()
    assert after.read_text() == '{"based_on":   "wora_demo"}'
    qtbot.waitUntil(lambda: page.tree.entry() is not None and page.tree.entry().path == after)


@pytest.mark.parametrize("yes", [True, False])
def test_delete_asks_first(open_page, qtbot, make_own, yes):
    path = make_own("mine", {"based_on": "wora_demo"})
    page = open_page(path)
    page.delete_action.trigger()
    assert path.exists()
    box = answer(qtbot, dialogs.OK if yes else dialogs.CANCEL)
    assert "mine" in box.text()
    assert path.exists() is not yes
    qtbot.waitUntil(lambda: ("mine" in names(page)) is not yes)


def test_delete_works_where_there_is_no_bin(open_page, qtbot, make_own, monkeypatch):
    monkeypatch.setattr("ui.pages.presets.keeper.QFile.moveToTrash", lambda name: False)
    path = make_own("mine", {"based_on": "wora_demo"})
    page = open_page(path)
    page.delete_action.trigger()
    answer(qtbot, dialogs.OK)
    assert not path.exists()


def test_a_good_file_is_imported_without_a_question(open_page, qtbot, document, tmp_path):
    (tmp_path / "good.json").write_text(json.dumps({"based_on": "wora_demo", "training": {"steps": 3}}))
    page = open_page()
    page.keeper.import_file(tmp_path / "good.json")
    kept = places.OWN_PRESETS / "good.json"
    qtbot.waitUntil(lambda: page.tree.entry() is not None and page.tree.entry().path == kept)
    assert trainer.resolve(str(kept)).preset.training.steps == 3


@pytest.mark.parametrize("yes", [True, False])
def test_import_tells_problems_and_can_leave_them_out(open_page, qtbot, document, tmp_path, yes):
    values = {"based_on": "wora_demo", "training": {"stpes": 3, "batch_size": 0, "steps": 7}}
    (tmp_path / "odd.json").write_text(json.dumps(values))
    page = open_page()
    page.keeper.import_file(tmp_path / "odd.json")
    box = answer(qtbot, dialogs.OK if yes else dialogs.CANCEL)
    assert "training.stpes" in box.informativeText() and "training.batch_size" in box.informativeText()
    assert box.choices[dialogs.OK].text() == "&Import without them"
    kept = places.OWN_PRESETS / "odd.json"
    assert kept.exists() is yes
    if yes:
        training = trainer.resolve(str(kept)).preset.training
        fields = document.schema.fields(document.values)
        assert (training.steps, training.batch_size) == (7, fields["training.batch_size"].default)


def test_an_import_that_shadows_a_preset_gets_another_name(open_page, qtbot, tmp_path):
    (tmp_path / "wora_demo.json").write_text(json.dumps({"based_on": "lora_demo"}))
    page = open_page()
    page.keeper.import_file(tmp_path / "wora_demo.json")
    qtbot.waitUntil(lambda: isinstance(QApplication.activeModalWidget(), dialogs.NameDialog))
    dialog = QApplication.activeModalWidget()
    assert dialog.name == "wora_demo_2"
    qtbot.keyClick(dialog.edit, Qt.Key.Key_Return)
    assert [path.name for path in places.OWN_PRESETS.iterdir()] == ["wora_demo_2.json"]


@pytest.mark.parametrize("text, said", [("nonsense", "line 1"), ('{"training": {"steps": 3}}', "family")])
def test_what_cannot_be_imported_is_said(open_page, qtbot, tmp_path, text, said):
    (tmp_path / "bad.json").write_text(text)
    open_page().keeper.import_file(tmp_path / "bad.json")
    assert said in answer(qtbot, dialogs.OK).informativeText()
    assert not places.OWN_PRESETS.exists()


def test_export_writes_a_preset_the_trainer_reads(open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *arguments: (str(tmp_path / "out"), ""))
    open_page().on_export()
    expected = trainer.resolve("wora_demo").preset.model_copy(update={"name": "out"})
    assert trainer.resolve(str(tmp_path / "out.json")).preset == expected


def drop(page, *paths):
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    none = Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier
    page.dropEvent(QDropEvent(QPointF(), Qt.DropAction.CopyAction, data, *none))


def test_dropped_presets_and_runs_are_asked_for(open_page, qtbot, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for path in (run / "preset.json", tmp_path / "a.json", tmp_path / "b.safetensors"):
        path.touch()
    page, asked = open_page(), []
    page.open_requested.connect(asked.append)
    for path in (run, tmp_path / "a.json", tmp_path / "b.safetensors"):
        drop(page, path)
    assert asked == [run, tmp_path / "a.json", tmp_path / "b.safetensors"]


def test_other_things_that_are_dropped_are_refused_in_words(open_page, qtbot, tmp_path):
    (tmp_path / "picture.png").touch()
    page, asked = open_page(), []
    page.open_requested.connect(asked.append)
    for paths, said in (([tmp_path / "picture.png"], "not a preset"), ([tmp_path], "not a run folder"),
                        ([tmp_path / "a.json", tmp_path / "b.json"], "one")):  # fmt: skip
        drop(page, *paths)
        assert said in answer(qtbot, dialogs.OK).informativeText()
    assert asked == []
