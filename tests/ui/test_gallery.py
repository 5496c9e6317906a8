"""Samples: the line between two pictures, the grid that fills itself, and picking what to compare."""

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QColor, QImage, QPixmap

from ui.core.runs.history import Sample
from ui.pages.runs.before_after import STEP, BeforeAfter
from ui.pages.runs.gallery import Gallery
from ui.pages.runs.sample_table import NONE, SamplesModel

RED, BLUE = QColor(200, 30, 30), QColor(30, 30, 200)


def picture(color: QColor, width: int = 64, height: int = 64) -> QImage:
    image = QImage(width, height, QImage.Format.Format_RGB32)
    image.fill(color)
    return image


def shade(step: int, index: int) -> QColor:
    return QColor(step, 100 + 100 * index, 50)


@pytest.fixture
def slider(qtbot):
    slider = BeforeAfter()
    qtbot.addWidget(slider)
    slider.resize(400, 200)
    slider.set_pictures(picture(RED), picture(BLUE), ("", ""))
    return slider


def at(slider: BeforeAfter, x: float, y: float) -> QColor:
    """The colour at a place of the pictures, given from 0 to 1."""
    area = slider.area()
    point = QPoint(area.left() + round(x * (area.width() - 1)), area.top() + round(y * (area.height() - 1)))
    return slider.grab().toImage().pixelColor(point)


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_left_of_the_line_is_the_first_picture_and_right_of_it_the_second(slider, position):
    slider.set_position(position)
    for x in (0.02, 0.15, 0.4, 0.6, 0.95):
        if abs(x - position) > 0.04:
            assert at(slider, x, 0.1) == (RED if x < position else BLUE), x


def test_pictures_keep_their_shape_and_share_one_place(slider):
    assert slider.area().width() == slider.area().height() == 200
    slider.set_pictures(picture(RED, 64, 32), picture(BLUE, 128, 64), ("", ""))
    assert (slider.area().width(), slider.area().height()) == (400, 200)
    slider.set_position(0.5)
    assert at(slider, 0.1, 0.95) == RED and at(slider, 0.9, 0.95) == BLUE


def test_a_picture_of_another_shape_is_not_stretched(slider):
    slider.set_pictures(picture(RED, 32, 32), picture(BLUE, 128, 64), ("", ""))
    slider.set_position(1.0)
    assert at(slider, 0.3, 0.95) == at(slider, 0.7, 0.95) == RED
    assert at(slider, 0.1, 0.5) != RED and at(slider, 0.9, 0.5) != RED


def test_keys_move_the_line_and_stay_inside(slider, qtbot):
    slider.set_position(0.5)
    qtbot.keyClick(slider, Qt.Key.Key_Right)
    assert slider.position == pytest.approx(0.5 + STEP)
    qtbot.keyClick(slider, Qt.Key.Key_Left)
    assert slider.position == pytest.approx(0.5)
    qtbot.keyClick(slider, Qt.Key.Key_End)
    qtbot.keyClick(slider, Qt.Key.Key_Right)
    assert slider.position == 1 and at(slider, 0.9, 0.1) == RED
    qtbot.keyClick(slider, Qt.Key.Key_Home)
    assert slider.position == 0 and at(slider, 0.1, 0.1) == BLUE
    assert "0%" in slider.accessibleDescription()


def test_the_mouse_drags_the_line(slider, qtbot):
    area = slider.area()
    qtbot.mousePress(slider, Qt.MouseButton.LeftButton, pos=QPoint(area.left() + 50, 100))
    assert slider.position == pytest.approx(0.25)
    qtbot.mouseMove(slider, QPoint(area.left() + 150, 100))
    qtbot.mouseRelease(slider, Qt.MouseButton.LeftButton, pos=QPoint(area.left() + 150, 100))
    assert 0.25 <= slider.position <= 0.75


@pytest.fixture
def run(tmp_path):
    """A run folder with two prompts at three steps."""
    samples = []
    for step in (0, 50, 100):
        for index, prompt in enumerate(("a cat", "a dog")):
            path = f"step-{step}_{index}.png"
            picture(shade(step, index)).save(str(tmp_path / path))
            samples.append(Sample(step, path, prompt, index))
    return tmp_path, samples


def shown(model: SamplesModel, row: int, column: int):
    return model.data(model.index(row, column), Qt.ItemDataRole.DecorationRole)


def test_the_grid_has_prompts_by_steps_and_pictures_arrive(run, qtbot):
    folder, samples = run
    model = SamplesModel(side=32)
    model.set_samples(folder, samples)
    assert (model.rowCount(), model.columnCount()) == (2, 3)
    assert model.headerData(1, Qt.Orientation.Vertical) == "a dog"
    assert [model.headerData(i, Qt.Orientation.Horizontal) for i in range(3)] == [
        "Before training",
        "Step 50",
        "Step 100",
    ]
    assert shown(model, 1, 2) is None  # not read yet: nothing was held up
    qtbot.waitUntil(lambda: isinstance(shown(model, 1, 2), QPixmap))
    pixmap = shown(model, 1, 2)
    assert max(pixmap.width(), pixmap.height()) == 32
    assert pixmap.toImage().pixelColor(9, 9) == shade(100, 1)


def test_a_missing_picture_is_a_sentence_and_a_missing_sample_is_nothing(run, qtbot):
    folder, samples = run
    (folder / samples[-1].path).unlink()
    model = SamplesModel(side=32)
    model.set_samples(folder, samples[:4] + samples[5:])
    shown(model, 1, 2)
    qtbot.waitUntil(lambda: isinstance(shown(model, 1, 2), str))
    assert samples[-1].path in shown(model, 1, 2)
    assert shown(model, 0, 2) == NONE, "not the same as a picture that is still being read"
    assert "no sample" in model.data(model.index(0, 2), Qt.ItemDataRole.AccessibleTextRole)


def test_a_resumed_run_shows_its_new_picture_of_the_same_step(run, qtbot):
    folder, samples = run
    model = SamplesModel(side=32)
    model.set_samples(folder, samples)
    shown(model, 0, 2)
    qtbot.waitUntil(lambda: isinstance(shown(model, 0, 2), QPixmap))
    picture(RED).save(str(folder / samples[4].path))
    again = [*samples[:4], *(Sample(one.step, one.path, one.prompt, one.index) for one in samples[4:])]
    assert model.set_samples(folder, again)
    qtbot.waitUntil(lambda: isinstance(shown(model, 0, 2), QPixmap))
    assert shown(model, 0, 2).toImage().pixelColor(9, 9) == RED
    assert not model.set_samples(folder, again)


@pytest.fixture
def gallery(qtbot):
    gallery = Gallery()
    qtbot.addWidget(gallery)
    gallery.resize(620, 430)
    gallery.show()
    return gallery


def test_without_samples_there_is_a_sentence(gallery, tmp_path):
    gallery.show_samples(tmp_path, [])
    assert gallery.empty.isVisible() and "Sample now" in gallery.empty.text()


def test_picking_compares_with_the_beginning_and_new_steps_do_not_disturb(gallery, run, qtbot):
    folder, samples = run
    gallery.show_samples(folder, samples[:4])
    assert gallery.grid.isVisible()
    gallery.grid.opened.emit(1, 1)
    pair = gallery.pair
    assert pair.isVisible() and pair.prompt.currentText() == "a dog"
    qtbot.waitUntil(lambda: pair.slider.labels == ("Before training", "Step 50"))
    pair.slider.set_position(0.5)
    assert at(pair.slider, 0.2, 0.1) == shade(0, 1)
    assert at(pair.slider, 0.8, 0.1) == shade(50, 1)
    gallery.show_samples(folder, samples)
    assert pair.isVisible() and pair.slider.labels == ("Before training", "Step 50")
    pair.strip.opened.emit(1, 2)
    qtbot.waitUntil(lambda: pair.slider.labels == ("Before training", "Step 100"))
    pair.before.setCurrentIndex(1)
    pair.before.activated.emit(1)
    qtbot.waitUntil(lambda: pair.slider.labels == ("Step 50", "Step 100"))
    assert not pair.strip.isRowHidden(1) and pair.strip.isRowHidden(0)
    qtbot.keyClick(pair.slider, Qt.Key.Key_Escape)
    assert gallery.grid.isVisible()


def test_a_run_without_samples_after_one_with_samples(gallery, run, qtbot):
    gallery.show_samples(*run)
    gallery.show()
    qtbot.waitUntil(lambda: isinstance(shown(gallery.model, 0, 0), QPixmap))
    gallery.grab()  # the headers know their sections now
    gallery.show_samples(run[0].parent, [])
    assert gallery.currentWidget() is gallery.empty
    gallery.show_samples(*run)
    assert gallery.currentWidget() is gallery.grid and gallery.model.columnCount() == 3


def test_a_prompt_that_came_later_is_compared_with_its_own_first_sample(gallery, run, qtbot):
    folder, samples = run
    gallery.show_samples(folder, [one for one in samples if (one.step, one.index) != (0, 1)])
    gallery.on_grid_opened(1, 2)
    assert (gallery.pair.before.currentData(), gallery.pair.after.currentData()) == (50, 100)
    qtbot.waitUntil(lambda: gallery.pair.slider.labels == ("Step 50", "Step 100"))


def test_another_run_shows_its_grid(gallery, run, tmp_path_factory):
    folder, samples = run
    gallery.show_samples(folder, samples)
    gallery.grid.opened.emit(0, 1)
    gallery.show_samples(tmp_path_factory.mktemp("other"), samples[:2])
    assert gallery.grid.isVisible() and gallery.model.columnCount() == 1
