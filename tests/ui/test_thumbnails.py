"""Thumbnails: what is read, what is kept, what is dropped."""

import pytest
from PIL import Image
from PySide6.QtGui import QColor, QImage

from ui.pages.pictures import thumbnails
from ui.pages.pictures.thumbnails import SIDE, Thumbnails, read_scaled


@pytest.fixture
def picture(tmp_path):
    def make(name, size=(600, 300), color="red", mode="RGB", **options):
        Image.new(mode, size, color).save(tmp_path / name, **options)
        return tmp_path / name

    return make


def size(image: QImage) -> tuple[int, int]:
    return image.width(), image.height()


def near(color: QColor, name: str) -> bool:
    other = QColor(name)
    return all(abs(a - b) < 12 for a, b in zip(color.getRgb()[:3], other.getRgb()[:3], strict=True))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tif"])
def test_every_format_is_scaled_down_and_keeps_its_shape(qapp, picture, name):
    assert size(read_scaled(picture(name), SIDE)) == (SIDE, SIDE // 2)


def test_small_pictures_are_not_enlarged(qapp, picture):
    assert size(read_scaled(picture("a.png", (30, 20)), SIDE)) == (30, 20)


def test_pictures_are_turned_as_their_camera_says(qapp, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert size(read_scaled(picture("a.jpg", exif=exif), SIDE)) == (SIDE // 2, SIDE)


def test_transparent_parts_are_white_as_in_training(qapp, picture):
    image = read_scaled(picture("a.png", color=(0, 0, 0, 0), mode="RGBA"), SIDE)
    assert near(image.pixelColor(5, 5), "white")


def test_the_content_counts_not_the_name(qapp, picture, tmp_path):
    picture("a.png").rename(tmp_path / "a.jpg")
    assert not read_scaled(tmp_path / "a.jpg", SIDE).isNull()


def test_what_cannot_be_read_is_a_null_image(qapp, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert read_scaled(tmp_path / "a.png", SIDE).isNull() and read_scaled(tmp_path / "b.png", SIDE).isNull()


def test_thumbnails_come_in_the_background(qtbot, picture):
    path = str(picture("a.png"))
    made = Thumbnails()
    with qtbot.waitSignal(made.ready) as ready:
        made.want([path])
    assert ready.args == [path] and made.get(path).width() == SIDE
    made.close()


def test_what_is_no_longer_wanted_is_dropped(qtbot, picture):
    old = [str(picture(f"{number}.png")) for number in range(60)]
    new = str(picture("new.png"))
    made, came = Thumbnails(), []
    made.ready.connect(came.append)
    made.want(old)
    with qtbot.waitSignal(made.ready, check_params_cb=lambda path: path == new):
        made.want([new])
    made.close()
    qtbot.wait(50)
    assert len(came) < 30


def test_memory_is_bounded(qtbot, picture, monkeypatch):
    monkeypatch.setattr(thumbnails, "IN_MEMORY", 3)
    paths = [str(picture(f"{number}.png")) for number in range(8)]
    made, came = Thumbnails(), []
    made.ready.connect(came.append)
    made.want(paths)
    qtbot.waitUntil(lambda: len(came) == 8, timeout=5000)
    assert sum(made.get(path) is not None for path in paths) == 3
    made.close()


def test_after_forgetting_the_old_one_is_shown_until_the_new_one_is_read(qtbot, picture):
    path = str(picture("a.png"))
    made = Thumbnails()
    with qtbot.waitSignal(made.ready):
        made.want([path])
    picture("a.png", (300, 600))
    made.forget()
    assert made.get(path).width() == SIDE
    with qtbot.waitSignal(made.ready):
        made.want([path])
    assert made.get(path).width() == SIDE // 2
    made.close()
