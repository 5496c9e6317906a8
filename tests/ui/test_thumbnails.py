"""Thumbnails: what is read, what is kept, what is dropped."""

import os

import pytest
from PIL import Image
from PySide6.QtGui import QColor, QImage

from ui.pages.pictures import thumbnails
from ui.pages.pictures.thumbnails import SIDE, Thumbnails, prune, thumbnail


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


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
def test_every_format_is_scaled_down_and_keeps_its_shape(qapp, picture, cache, name):
    assert size(thumbnail(picture(name), cache)) == (SIDE, SIDE // 2)


def test_small_pictures_are_not_enlarged(qapp, picture, cache):
    assert size(thumbnail(picture("a.png", (30, 20)), cache)) == (30, 20)


def test_pictures_are_turned_as_their_camera_says(qapp, picture, cache):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert size(thumbnail(picture("a.jpg", exif=exif), cache)) == (SIDE // 2, SIDE)


def test_transparent_parts_are_white_as_in_training(qapp, picture, cache):
    image = thumbnail(picture("a.png", color=(0, 0, 0, 0), mode="RGBA"), cache)
    assert near(image.pixelColor(5, 5), "white")


def test_the_content_counts_not_the_name(qapp, picture, cache, tmp_path):
    picture("a.png").rename(tmp_path / "a.jpg")
    assert not thumbnail(tmp_path / "a.jpg", cache).isNull()


def test_what_cannot_be_read_is_a_null_image_and_is_not_kept(qapp, tmp_path, cache):
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert thumbnail(tmp_path / "a.png", cache).isNull() and thumbnail(tmp_path / "b.png", cache).isNull()
    assert not list(cache.iterdir())


def test_an_unchanged_file_comes_from_the_disk_and_a_changed_one_is_read_again(qapp, picture, cache):
    path = picture("a.png")
    thumbnail(path, cache)
    (kept,) = cache.iterdir()
    Image.new("RGB", (8, 8), "blue").save(kept)
    assert near(thumbnail(path, cache).pixelColor(0, 0), "blue")
    picture("a.png", color="green")
    os.utime(path, ns=(1, 1))
    assert near(thumbnail(path, cache).pixelColor(0, 0), "green")


def test_the_cache_is_bounded_and_keeps_the_newest(cache):
    for number in range(10):
        (cache / f"{number}.jpg").write_bytes(b"x" * 100)
        os.utime(cache / f"{number}.jpg", (number, number))
    prune(cache, 350)
    assert sorted(file.name for file in cache.iterdir()) == ["7.jpg", "8.jpg", "9.jpg"]


def test_thumbnails_come_in_the_background_also_without_a_cache_folder(qtbot, picture, tmp_path):
    (tmp_path / "file").write_text("")
    path = str(picture("a.png"))
    made = Thumbnails(tmp_path / "file" / "cache")
    with qtbot.waitSignal(made.ready) as ready:
        made.want([path])
    assert ready.args == [path] and made.get(path).width() == SIDE
    made.close()


def test_what_is_no_longer_wanted_is_dropped(qtbot, picture, cache):
    old = [str(picture(f"{number}.png")) for number in range(60)]
    new = str(picture("new.png"))
    made, came = Thumbnails(cache), []
    made.ready.connect(came.append)
    made.want(old)
    with qtbot.waitSignal(made.ready, check_params_cb=lambda path: path == new):
        made.want([new])
    made.close()
    qtbot.wait(50)
    assert len(came) < 30


def test_memory_is_bounded(qtbot, picture, cache, monkeypatch):
    monkeypatch.setattr(thumbnails, "IN_MEMORY", 3)
    paths = [str(picture(f"{number}.png")) for number in range(8)]
    made, came = Thumbnails(cache), []
    made.ready.connect(came.append)
    made.want(paths)
    qtbot.waitUntil(lambda: len(came) == 8, timeout=5000)
    assert sum(made.get(path) is not None for path in paths) == 3
    made.close()


def test_after_forgetting_the_old_one_is_shown_until_the_new_one_is_read(qtbot, picture, cache):
    path = str(picture("a.png"))
    made = Thumbnails(cache)
    with qtbot.waitSignal(made.ready):
        made.want([path])
    picture("a.png", (300, 600))
    made.forget()
    assert made.get(path).width() == SIDE
    with qtbot.waitSignal(made.ready):
        made.want([path])
    assert made.get(path).width() == SIDE // 2
    made.close()
