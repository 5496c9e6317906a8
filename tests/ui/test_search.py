"""The search over all settings: what is found, in which order, and how it is used from the keyboard."""

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication

from ui.frame.search import PATH, SearchBox, found


@pytest.fixture
def box(qtbot, document):
    one = SearchBox(document)
    qtbot.addWidget(one)
    one.resize(300, 30)
    one.show()
    one.line.setFocus()
    qtbot.waitUntil(one.line.hasFocus)
    one.picked = []
    one.chosen.connect(one.picked.append)
    return one


def paths(document, text):
    return [hit.path for hit in found(document, text)]


def test_every_setting_is_found_by_its_name_and_its_path(document):
    for path, fields in document.schema.everything().items():
        assert path in paths(document, path)
        assert path in paths(document, fields[0].label)


def test_names_come_before_paths_and_descriptions(document):
    assert paths(document, "learning rate")[0] == "training.learning_rate"
    assert paths(document, "RATE learning")[0] == "training.learning_rate"
    hits = paths(document, "learning rate")
    assert "training.warmup" in hits and hits.index("training.warmup") > 0  # in its description only


def test_all_words_must_occur(document):
    assert "samples.steps" in paths(document, "steps samples") and "training.steps" not in paths(
        document, "steps samples"
    )
    assert paths(document, "learning nonsense") == [] == paths(document, "   ")


def test_settings_of_other_variants_come_last_and_say_what_they_need(document):
    hits = found(document, "rotation")
    planes = next(hit for hit in found(document, "planes") if hit.path == "adapter.rotation.planes")
    assert not planes.active and planes.about.startswith("Only with ")
    for word in ("doft", "oft", "planes"):
        assert word in planes.about
    growth = next(hit for hit in found(document, "growth") if hit.path == "optimizer.growth")
    assert growth.about == "Only with optimizer name prodigy"
    activity = [hit.active for hit in hits]
    assert activity == sorted(activity, reverse=True)
    document.set("adapter.method", "doft")
    assert next(hit for hit in found(document, "rotation") if hit.path == "adapter.rotation.kind").active


def test_enter_picks_the_first_and_clears(qtbot, box):
    qtbot.keyClicks(box.line, "learning rate")
    assert box.list.isVisible() and box.hits.rowCount() > 1 and box.list.width() > box.width()
    qtbot.keyClick(box.list, Qt.Key.Key_Return)
    assert box.picked == ["training.learning_rate"] and not box.list.isVisible() and box.line.text() == ""


def test_down_goes_on_and_escape_closes(qtbot, box, document):
    qtbot.keyClicks(box.line, "steps")
    second = found(document, "steps")[1].path
    qtbot.keyClick(box.list, Qt.Key.Key_Down)
    qtbot.keyClick(box.list, Qt.Key.Key_Return)
    assert box.picked == [second]
    qtbot.keyClicks(box.line, "steps")
    qtbot.keyClick(box.list, Qt.Key.Key_Escape)
    assert not box.list.isVisible() and box.picked == [second]


def test_typing_on_narrows_the_list_and_nothing_found_closes_it(qtbot, box):
    qtbot.keyClicks(box.line, "beta")
    many = box.hits.rowCount()
    qtbot.keyClicks(box.list, "2")
    assert box.line.text() == "beta2" and 0 < box.hits.rowCount() < many
    qtbot.keyClicks(box.list, "zzz")
    assert not box.list.isVisible()


def test_a_click_picks(qtbot, box):
    qtbot.keyClicks(box.line, "seed")
    spot = box.list.visualRect(box.hits.index(1, 0)).center()
    expected = box.hits.index(1, 0).data(PATH)
    qtbot.mouseClick(box.list.viewport(), Qt.MouseButton.LeftButton, pos=spot)
    assert box.picked == [expected]


def test_the_list_is_drawn_and_read_out(qtbot, box):
    qtbot.keyClicks(box.line, "rank")
    QApplication.processEvents()
    image = box.list.grab().toImage()
    assert len({image.pixel(x, y) for x in range(0, image.width(), 3) for y in range(0, image.height(), 3)}) > 3
    first = box.hits.index(0, 0)
    assert first.data(Qt.ItemDataRole.AccessibleTextRole).startswith("Adapter: Rank.")
