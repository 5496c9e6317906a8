"""The data page, with a stand-in for the trainer's eyes; at the end once with the real ones."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from PySide6.QtCore import QMimeData, QPointF, Qt, QTimer, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QMessageBox

from ui.core import places
from ui.core.look import Look
from ui.core.settings import Settings
from ui.pages.pictures.captions import write_caption
from ui.pages.pictures.data_set import ENLARGED, Picture
from ui.pages.pictures.pictures_page import PicturesPage

FAKE = [sys.executable, str(Path(__file__).with_name("fake_look.py"))]


@pytest.fixture
def folder(tmp_path):
    """Five pictures: a good one, one without a caption, a small one, a long caption, a broken file."""
    path = tmp_path / "photos"
    path.mkdir()
    for name, size, caption in (
        ("a cat", (64, 80), "a cat, sitting"),
        ("bare", (64, 64), None),
        ("long", (64, 64), "very long, " * 30),
        ("small", (20, 20), "a dog"),
    ):
        Image.new("RGB", size, "red").save(path / f"{name}.png")
        if caption is not None:
            (path / f"{name}.txt").write_text(caption)
    (path / "broken.png").write_bytes(b"nothing")
    (path / "broken.txt").write_text("a bird")
    return path


@pytest.fixture
def page(qtbot, document, folder):
    document.set("data.folders", [str(folder)])
    document.undo.clear()
    page = PicturesPage(document, Settings(), Look(command=FAKE))
    qtbot.addWidget(page)
    page.resize(900, 660)
    yield page
    page.end()


@pytest.fixture
def shown(page, qtbot):
    page.show()
    qtbot.waitUntil(lambda: bool(page.model.pictures), timeout=10000)
    return page


def names(page) -> list[str]:
    model = page.model
    return [model.data(model.index(row)) for row in range(model.rowCount())]


def words_of(page, name: str) -> str:
    row = names(page).index(name)
    return page.model.data(page.model.index(row), Qt.ItemDataRole.AccessibleTextRole)


def select(page, name: str) -> None:
    page.parts.grid.setCurrentIndex(page.model.index(names(page).index(name)))


def drop(page, *paths: Path) -> None:
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    buttons, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    page.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, mime, buttons, none))


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_nothing_is_asked_before_the_page_is_shown(page, qtbot):
    qtbot.wait(50)
    assert not page.look.is_busy("pictures")


def test_every_picture_is_there_with_its_marks_in_words(shown):
    assert names(shown) == ["a cat.png", "bare.png", "broken.png", "long.png", "small.png"]
    assert "a cat, sitting" in words_of(shown, "a cat.png") and "64×80 → 64×64" in words_of(shown, "a cat.png")
    for name, mark in (
        ("bare.png", "no caption"),
        ("broken.png", "unreadable"),
        ("long.png", "too long"),
        ("small.png", "enlarged 3.2×"),
    ):
        assert mark in words_of(shown, name), name
    assert shown.parts.status.text() == "5 pictures, 1 problem"
    assert shown.parts.folders.list.item(0).text().endswith("5 pictures")


def test_thumbnails_come_for_what_can_be_read(shown, qtbot):
    good = [picture.path for picture in shown.model.pictures if picture.width]
    qtbot.waitUntil(lambda: all(shown.thumbnails.get(path) is not None for path in good), timeout=20000)
    assert len(good) == 4


def test_problems_and_notes_are_listed_in_words(shown):
    notes = shown.parts.notes
    sentences = [notes.item(row).text() for row in range(notes.count())]
    assert len(sentences) == 2 and "is not a picture" in sentences[0] and sentences[1] == "a note on the folder"
    assert shown.parts.views.tabText(2) == "Problems and notes (2)"


def test_the_filter_finds_words_and_marks_and_keeps_the_selection(shown):
    select(shown, "small.png")
    shown.parts.search.setText("DOG")
    assert names(shown) == ["small.png"] and shown.parts.status.text().startswith("1 of 5 pictures")
    assert shown.parts.grid.currentIndex().isValid()
    shown.parts.search.setText("")
    shown.parts.problems_only.setChecked(True)
    assert names(shown) == ["bare.png", "broken.png", "long.png", "small.png"]
    assert shown.parts.panel.picture.name == "small.png"


@pytest.mark.parametrize(
    "source, mark",
    [("missing", "no caption"), ("empty", "empty caption"), ("filename", "file name as caption"), ("txt", None)],
)
def test_every_source_without_a_caption_is_marked(source, mark):
    facts = ("a.png", "a.png", "f", "", source, "a.txt", 64, 64, (64, 64), 1, "", None, 1.0)
    assert [words for words, _ in Picture(*facts).marks()] == ([mark] if mark else [])


# -- folders ----------------------------------------------------------------------------------------------------------


def test_dropped_folders_are_added_once_as_one_undo_step(shown, document, tmp_path, folder):
    others = [tmp_path / "one", tmp_path / "two"]
    for other in others:
        other.mkdir()
    drop(shown, *others, folder, folder / "a cat.png")
    assert document.value("data.folders") == [str(folder), *map(str, others)]
    document.undo.undo()
    assert document.value("data.folders") == [str(folder)]
    assert Settings().recent_folders[:2] == list(map(str, others))


def test_a_folder_of_the_repository_is_written_as_presets_write_it(shown, document):
    shown.add_folders([str(places.ROOT / "demo/dataset")])
    assert document.value("data.folders")[-1] == "demo/dataset"


def test_recent_folders_are_offered(shown, document, tmp_path):
    shown._settings.remember_folder(str(tmp_path))
    bar = shown.parts.folders
    bar.on_menu()
    next(action for action in bar.menu.actions() if action.text() == str(tmp_path)).trigger()
    assert document.value("data.folders")[-1] == str(tmp_path)


def test_a_removed_folder_takes_its_pictures_along_and_leaves_the_files(shown, document, qtbot, folder):
    shown.parts.folders.remove.click()
    assert document.value("data.folders") == []
    qtbot.waitUntil(lambda: not shown.model.pictures, timeout=3000)
    assert shown.parts.status.text() == "No picture folder chosen" and (folder / "a cat.png").exists()
    assert "drop folders" in shown.parts.folders.list.item(0).text()


def test_the_validation_folder_has_its_own_view(shown, document, qtbot, folder, tmp_path):
    shown.parts.validation.click()
    assert names(shown) == [] and shown.parts.status.text() == "No validation folder chosen"
    training = document.value("data.folders")
    drop(shown, folder)
    assert document.value("data.folders") == [*training, {"path": str(folder), "role": "validation"}]
    qtbot.waitUntil(lambda: len(names(shown)) == 5, timeout=20000)
    shown.parts.folders.remove.click()
    assert document.value("data.folders") == training


def test_what_matters_is_asked_again_and_other_options_are_not(shown, document, qtbot, folder):
    asked = []
    shown.look.ask = lambda kind, question: asked.append(question["preset"]["data"]["resolution"])
    document.set("training.learning_rate", 0.5)
    document.set("data.resolution", 128)
    qtbot.waitUntil(lambda: bool(asked), timeout=3000)
    qtbot.wait(700)
    assert asked == [128]


# -- captions ---------------------------------------------------------------------------------------------------------


def test_an_edit_is_kept_when_another_picture_is_selected_and_is_written_when_saved(shown, qtbot, folder):
    editor = shown.parts.panel.editor
    select(shown, "a cat.png")
    editor.text.setPlainText("two cats")
    select(shown, "bare.png")
    assert editor.text.toPlainText() == "" and "not saved" in words_of(shown, "a cat.png")
    assert shown.parts.save_all.text() == "Save all captions (1)"
    select(shown, "a cat.png")
    assert editor.text.toPlainText() == "two cats"
    QTest.keyClick(editor.text, Qt.Key.Key_S, Qt.KeyboardModifier.ControlModifier)
    qtbot.waitUntil(lambda: not shown.captions.edits, timeout=3000)
    assert (folder / "a cat.txt").read_text() == "two cats\n"
    assert words_of(shown, "a cat.png").split("\n")[1] == "two cats" and not editor.save.isEnabled()
    assert shown.parts.save_all.text() == "Save all captions" and not shown.parts.save_all.isEnabled()


def test_a_new_caption_gets_a_new_file_and_the_mark_goes(shown, qtbot, folder):
    select(shown, "bare.png")
    assert "No caption" in shown.parts.panel.editor.source.text()
    shown.parts.panel.editor.text.setPlainText("now with words")
    shown.parts.panel.editor.save.click()
    qtbot.waitUntil(lambda: "no caption" not in words_of(shown, "bare.png"), timeout=3000)
    assert (folder / "bare.txt").read_text() == "now with words\n"


def test_revert_and_typing_it_back_both_forget_the_edit(shown):
    editor = shown.parts.panel.editor
    select(shown, "a cat.png")
    editor.text.setPlainText("else")
    editor.revert.click()
    assert editor.text.toPlainText() == "a cat, sitting" and not shown.captions.edits
    editor.text.setPlainText("else")
    editor.text.setPlainText("a cat, sitting")
    assert not shown.captions.edits


def test_edits_survive_a_refresh(shown, qtbot):
    select(shown, "a cat.png")
    shown.parts.panel.editor.text.setPlainText("mine")
    with qtbot.waitSignal(shown.look.answered):
        shown.parts.refresh.click()
    assert shown.parts.panel.editor.text.toPlainText() == "mine" and len(shown.captions.edits) == 1


def test_a_caption_that_somebody_else_has_changed_is_not_overwritten_in_silence(shown, qtbot, folder):
    select(shown, "a cat.png")
    shown.parts.panel.editor.text.setPlainText("mine")
    (folder / "a cat.txt").write_text("theirs")
    shown.parts.panel.editor.save.click()
    qtbot.waitUntil(lambda: "theirs" in shown.parts.status.text(), timeout=3000)
    assert (folder / "a cat.txt").read_text() == "theirs" and len(shown.captions.edits) == 1
    shown.parts.panel.editor.save.click()
    qtbot.waitUntil(lambda: not shown.captions.edits, timeout=3000)
    assert (folder / "a cat.txt").read_text() == "mine\n"


def test_a_caption_that_cannot_be_written_stays_and_says_why(shown, qtbot, folder):
    select(shown, "bare.png")
    (folder / "bare.txt.d").mkdir()
    shown.captions.edits[str(folder / "bare.txt.d")] = "words"
    shown.captions._known[str(folder / "bare.txt.d")] = ""
    (folder / "bare.txt.d" / "x").write_text("")
    assert not shown.captions.save_now()
    assert "bare.txt.d" in shown.parts.status.text() and len(shown.captions.edits) == 1


def test_writing_leaves_no_other_files_behind(tmp_path):
    write_caption(tmp_path / "a.txt", "äöü", "")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == "äöü\n".encode()


@pytest.mark.parametrize(
    "answer, leaves, saved", [("SaveAll", True, True), ("Discard", True, False), ("Cancel", False, False)]
)
def test_leaving_with_unsaved_captions_is_a_question(shown, folder, monkeypatch, answer, leaves, saved):
    assert shown.may_leave()
    select(shown, "a cat.png")
    shown.parts.panel.editor.text.setPlainText("two cats")
    said = []
    button = QMessageBox.StandardButton[answer]
    monkeypatch.setattr(QMessageBox, "question", lambda *what: (said.append(what[2]), button)[1])
    assert shown.may_leave() is leaves
    assert said == ["1 caption has unsaved changes."]
    assert ((folder / "a cat.txt").read_text() == "two cats\n") is saved


# -- what the model sees ----------------------------------------------------------------------------------------------


def test_what_the_model_sees_follows_caption_seed_and_draw(shown, qtbot):
    panel = shown.parts.panel
    select(shown, "a cat.png")
    panel.editor.text.setPlainText("two cats")
    panel.tabs.setCurrentWidget(panel.sees)
    rows = panel.sees.prompts
    qtbot.waitUntil(lambda: rows.count() == 8, timeout=20000)
    assert rows.item(0).text() == "1.  two cats 0" and "flipped" in rows.item(1).text()
    assert panel.preview.crop.getRect() == (0, 8, 64, 64) and not panel.preview.mirrored
    rows.setCurrentRow(1)
    assert panel.preview.mirrored
    panel.sees.next.click()
    qtbot.waitUntil(lambda: rows.item(0).text() == "1.  two cats 1", timeout=20000)
    assert rows.currentRow() == 1 and panel.preview.mirrored
    panel.tabs.setCurrentWidget(panel.editor)
    assert panel.preview.crop is None


def test_the_preview_shows_the_whole_picture_and_dims_what_is_cut_off(shown, qtbot):
    panel = shown.parts.panel
    select(shown, "a cat.png")
    panel.tabs.setCurrentWidget(panel.sees)
    qtbot.waitUntil(lambda: panel.preview.crop is not None and not panel.preview._image.isNull(), timeout=20000)
    image = panel.preview.grab().toImage()
    middle = image.pixelColor(image.width() // 2, image.height() // 2)
    edge = image.pixelColor(image.width() // 2, 4)
    assert middle.name() == "#ff0000" and edge.name() not in ("#ff0000", panel.palette().window().color().name())


# -- when things go wrong ---------------------------------------------------------------------------------------------


def test_a_refusal_and_a_death_are_sentences_and_refresh_asks_again(shown, document, qtbot, folder, tmp_path):
    document.set("data.folders", [str(tmp_path / "refused")])
    qtbot.waitUntil(lambda: "not today" in shown.parts.status.text(), timeout=20000)
    document.set("data.folders", [str(tmp_path / "deadly")])
    qtbot.waitUntil(lambda: "MemoryError" in shown.parts.status.text(), timeout=20000)
    assert "Refresh starts it again" in shown.parts.status.text() and shown.parts.progress.isHidden()
    document.set("data.folders", [str(folder)])
    shown.parts.refresh.click()
    qtbot.waitUntil(lambda: shown.parts.status.text().startswith("5 pictures"), timeout=20000)


@pytest.mark.full
def test_two_thousand_pictures_do_not_hold_up_the_window(page, document, qtbot, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    Image.new("RGB", (64, 64), "blue").save(many / "00000.png")
    content = (many / "00000.png").read_bytes()
    for number in range(2000):
        (many / f"{number:05d}.png").write_bytes(content)
    document.set("data.folders", [str(many)])
    beats, read = [], []
    page.thumbnails.ready.connect(read.append)

    page.show()
    timer = QTimer(interval=5)
    timer.timeout.connect(lambda: beats.append(len(page.model.shown)))
    timer.start()
    qtbot.waitUntil(lambda: len(page.model.shown) == 2000, timeout=20000)
    bar = page.parts.grid.verticalScrollBar()
    qtbot.waitUntil(lambda: bar.maximum() > 10000, timeout=20000)
    for step in range(10):
        bar.setValue(bar.maximum() * step // 10)
        qtbot.wait(30)
    bar.setValue(bar.maximum())
    seen = page.parts.grid.in_sight()[:3]
    qtbot.waitUntil(lambda: all(page.thumbnails.get(path) is not None for path in seen), timeout=20000)
    assert len(read) < 1000, "what was scrolled past is not read"
    page.parts.search.setText("0199")
    assert len(page.model.shown) == 11
    assert beats.count(0) > 5 and beats.count(2000) > 5, "the window answers before, while and after they come"


@pytest.mark.full
def test_with_the_trainers_own_eyes(qtbot, document, tmp_path):
    from modules.data import index

    assert index.ENLARGED == ENLARGED, "a picture is marked when the trainer has a note on it"
    page = PicturesPage(document, Settings())
    qtbot.addWidget(page)
    page.resize(900, 660)
    page.show()
    qtbot.waitUntil(lambda: bool(page.model.pictures), timeout=60000)
    files = sorted((places.ROOT / "demo/dataset").glob("*.png"))
    assert [picture.path for picture in page.model.pictures] == [str(file) for file in files]
    assert all(picture.caption == Path(picture.caption_file).read_text().strip() for picture in page.model.pictures)
    page.parts.panel.tabs.setCurrentIndex(1)
    qtbot.waitUntil(lambda: page.parts.panel.sees.prompts.count() == 8, timeout=20000)
    caption = page.parts.panel.picture.caption
    prompts = [page.parts.panel.sees.prompts.item(row).text() for row in range(8)]
    assert all(caption in prompt or "empty prompt" in prompt for prompt in prompts)
    page.end()
