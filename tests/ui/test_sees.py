"""What the model sees, drawn: crop, mask, chunks and what is cut off."""

import pytest
from PIL import Image
from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QColor, QImage, QPainter, QTextDocument

from tests.ui.fake_look import png
from ui.pages.pictures.preview import Preview, read_both
from ui.pages.pictures.prompts import Prompts, changes, draw_html, draw_words

DRAW = {
    "position": 2, "prompt": "a cat", "flip": False, "chunks": [], "cut": "", "variant": None, "masked": True,
    "angle": 0.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "crop": [0, 0, 8, 8],
}  # fmt: skip


@pytest.fixture
def preview(qtbot):
    """A picture of 400 x 200 pixels, red at the left and blue at the right."""
    preview = Preview()
    qtbot.addWidget(preview)
    preview.resize(200, 100)
    image = QImage(200, 100, QImage.Format.Format_RGB32)
    image.fill(QColor("red"))
    QPainter(image).fillRect(100, 0, 100, 100, QColor("blue"))
    preview.set_image(image, QSize(400, 200))
    return preview


def at(preview: Preview, x: float, y: float = 0.5) -> str:
    """The colour at a part of width and height."""
    seen = preview.grab().toImage()
    return seen.pixelColor(int(seen.width() * x), int(seen.height() * y)).name()


def test_the_preview_is_mirrored_with_its_crop(preview):
    for mirrored in (False, True):
        preview.set_crop(QRectF(0, 0, 200, 200), mirrored)
        colors = [at(preview, x) for x in (0.25, 0.75)]
        assert (colors[1] if mirrored else colors[0]) == "#ff0000"
        assert (colors[0] if mirrored else colors[1]) not in ("#ff0000", "#0000ff"), "what is cut off is dimmed"


def test_a_crop_is_turned_clockwise_around_its_middle_and_the_other_way_in_the_mirror(preview):
    """By 45 degrees, its upper left corner points upwards: what was in the corner is cut off, what was above is not."""
    middle = QRectF(150, 50, 100, 100)
    preview.set_crop(middle)
    corner = (155 / 400, 57 / 200)
    assert at(preview, *corner) == "#ff0000"
    preview.set_crop(middle, angle=45)
    assert at(preview, *corner) != "#ff0000" and at(preview, 192 / 400, 60 / 200) == "#ff0000"
    wide = QRectF(100, 90, 200, 20)  # turned by 30 degrees clockwise, its right end goes down
    for mirrored, inside, outside in ((False, (0.66, 0.685), (0.66, 0.315)), (True, (0.66, 0.315), (0.66, 0.685))):
        preview.set_crop(wide, mirrored, angle=30)
        color = "#ff0000" if mirrored else "#0000ff"
        assert at(preview, *inside) == color and at(preview, *outside) != color, mirrored


def test_what_a_mask_leaves_out_is_tinted_and_mirrored_with_the_picture(preview):
    mask = QImage(2, 1, QImage.Format.Format_Grayscale8)
    mask.setPixelColor(0, 0, QColor("white"))
    mask.setPixelColor(1, 0, QColor("black"))
    preview.set_mask(mask)
    assert at(preview, 0.02) == "#ff0000" and at(preview, 0.98) not in ("#0000ff", "#ff0000")
    preview.set_crop(None, True)
    assert at(preview, 0.98) == "#ff0000" and at(preview, 0.02) not in ("#0000ff", "#ff0000")
    preview.set_mask(QImage())
    assert at(preview, 0.02) == "#0000ff"


def test_a_mask_is_a_file_or_the_pictures_own_transparency(tmp_path, qapp):
    picture, mask = tmp_path / "a.png", tmp_path / "a-masklabel.png"
    both = Image.new("RGBA", (4, 2), (0, 255, 0, 255))
    both.paste((0, 255, 0, 51), (2, 0, 4, 2))
    both.save(picture)
    grey = Image.new("L", (8, 4), 255)
    grey.paste(102, (0, 0, 4, 4))
    grey.save(mask)
    greys = lambda image: [image.pixelColor(x, 0).red() for x in (0, image.width() - 1)]  # noqa: E731
    shown, own = read_both(str(picture), str(picture), 64)
    assert greys(own) == [255, 51] and own.size() == shown.size() and not shown.hasAlphaChannel()
    shown, other = read_both(str(picture), str(mask), 64)
    assert greys(other) == [102, 255] and shown.pixelColor(0, 0).name() == "#00ff00"
    assert read_both(str(picture), "", 64)[1].isNull()


def test_a_draw_in_words_says_everything_that_is_done_to_it():
    draw = {**DRAW, "prompt": "a cat sat on a mat", "flip": True, "chunks": [6], "cut": "on a mat"}
    done = ["flipped", "version 3", "turned by -4.5°", "brightness 110%", "hue +20%", "mask ignored"]
    varied = {**draw, "variant": 2, "angle": -4.5, "brightness": 1.1, "hue": 0.2, "masked": False}
    assert changes(varied, True) == done and changes(varied, False) == done[:-1]
    assert [line.strip() for line in draw_words(draw, changes(draw, True)).split("\n")] == [
        "3.  a cat ┃sat",
        "flipped",
        "cut off, too long: “on a mat”",
    ]
    dropped = draw_words({**DRAW, "prompt": ""}, [])
    assert "empty prompt" in dropped and "\n" not in dropped


def test_chunks_are_apart_and_what_is_cut_off_is_struck_through_where_it_stands(qapp):
    text = QTextDocument()
    draw = {**DRAW, "prompt": "one <b> twothree four", "chunks": [8, 11], "cut": " four"}
    text.setHtml(draw_html(draw, ["flipped"]))
    assert text.toPlainText().replace("\xa0", " ").split() == ["3.", "one", "<b>", "┃two┃three", "four", "flipped"]
    struck = []
    block = text.begin()
    while block.isValid():
        parts = block.begin()
        while not parts.atEnd():
            struck += [parts.fragment().text().strip()] * parts.fragment().charFormat().fontStrikeOut()
            parts += 1
        block = block.next()
    assert struck == ["four"]


def test_pictures_of_draws_have_their_masks_and_rows_are_high_enough(qtbot):
    """Blue pixels, all of them left out by the mask: no longer blue."""
    prompts = Prompts()
    qtbot.addWidget(prompts)
    prompts.resize(300, 300)
    prompts.show()
    long = {**DRAW, "prompt": "many words " * 40}
    prompts.set_draws([DRAW, long, {**DRAW, "pixels": png((0, 0, 255)), "mask": png((0,))}], True)
    heights = [prompts.visualItemRect(prompts.item(row)).height() for row in range(3)]
    line = prompts.fontMetrics().lineSpacing()
    assert heights[0] < 3 * line < 6 * line < heights[1] and 6 * line <= heights[2] < heights[1]
    color = prompts.item(2).data(Qt.ItemDataRole.DecorationRole).toImage().pixelColor(5, 5)
    assert color.name() != "#0000ff" and color.blue() > 50 and color.red() > 50
    prompts.resize(600, 300)
    qtbot.waitUntil(lambda: prompts.visualItemRect(prompts.item(1)).height() < heights[1] * 0.7, timeout=2000)
