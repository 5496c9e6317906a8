"""What the model sees, drawn."""

from PySide6.QtCore import QRectF, QSize
from PySide6.QtGui import QColor, QImage, QPainter

from ui.pages.pictures.draws import Preview, draw_words


def test_the_preview_is_mirrored_with_its_crop(qtbot):
    preview = Preview()
    qtbot.addWidget(preview)
    preview.resize(200, 100)
    image = QImage(200, 100, QImage.Format.Format_RGB32)
    image.fill(QColor("red"))
    QPainter(image).fillRect(100, 0, 100, 100, QColor("blue"))
    preview.set_image(image, QSize(400, 200))
    for mirrored in (False, True):
        preview.set_crop(QRectF(0, 0, 200, 200), mirrored)
        seen = preview.grab().toImage()
        colors = [seen.pixelColor(seen.width() * x // 4, seen.height() // 2).name() for x in (1, 3)]
        assert (colors[1] if mirrored else colors[0]) == "#ff0000"
        assert (colors[0] if mirrored else colors[1]) not in ("#ff0000", "#0000ff"), "what is cut off is dimmed"


def test_a_draw_in_words_says_everything_that_is_done_to_it():
    draw = {"position": 2, "prompt": "a cat", "flip": True, "cut": "on a mat"}
    assert [line.strip() for line in draw_words(draw).split("\n")] == [
        "3.  a cat",
        "flipped",
        "cut off, too long: “on a mat”",
    ]
    dropped = draw_words({"position": 0, "prompt": "", "flip": False, "cut": ""})
    assert "empty prompt" in dropped and "\n" not in dropped
