"""What the model sees on the data page: masks, resolutions, captions that are samples of their own, and versions."""

import pytest
from PIL import Image
from PySide6.QtCore import Qt

from tests.ui.test_pictures_page import folder, names, page, select, shown  # noqa: F401  fixtures


@pytest.fixture
def sees(shown, folder, document, qtbot):  # noqa: F811
    """The panel on a picture with a mask, a caption of two lines and two resolutions."""
    mask = Image.new("L", (64, 80), 0)
    mask.paste(255, (0, 0, 32, 80))
    mask.save(folder / "a cat-masklabel.png")
    (folder / "a cat.txt").write_text("one\ntwo")
    document.set("data.resolutions", [64, 128])
    panel = shown.parts.panel
    qtbot.waitUntil(lambda: bool(shown.model.pictures[0].mask) and len(names(shown)) == 5, timeout=5000)
    select(shown, "a cat.png")
    return panel


def prompts(panel) -> list[str]:
    return [panel.sees.prompts.item(row).text() for row in range(panel.sees.prompts.count())]


def test_a_mask_is_drawn_over_its_picture_and_can_be_taken_away(sees, shown, qtbot):  # noqa: F811
    def colors():
        image = sees.preview.grab().toImage()
        return [image.pixelColor(image.width() // 2 + by, image.height() // 2).name() for by in (-12, 12)]

    assert "mask: a cat-masklabel.png" in sees.facts.text()
    qtbot.waitUntil(lambda: sees.masked.isVisible() and colors()[0] == "#ff0000", timeout=5000)
    assert colors()[1] != "#ff0000"
    sees.masked.click()
    assert colors() == ["#ff0000", "#ff0000"]
    sees.masked.click()
    sees.tabs.setCurrentWidget(sees.sees)
    qtbot.waitUntil(lambda: sees.sees.prompts.count() == 8, timeout=5000)
    assert colors()[1] != "#ff0000"
    sees.sees.prompts.setCurrentRow(2)
    assert "mask ignored" in prompts(sees)[2] and colors() == ["#ff0000", "#ff0000"]
    sees.tabs.setCurrentWidget(sees.editor)
    assert colors()[1] != "#ff0000"
    select(shown, "bare.png")
    qtbot.waitUntil(lambda: not sees.masked.isVisible(), timeout=5000)
    assert "mask" not in sees.facts.text()


def test_each_resolution_has_its_crop_and_each_line_its_prompts(sees, shown, qtbot):  # noqa: F811
    sees.tabs.setCurrentWidget(sees.sees)
    qtbot.waitUntil(lambda: prompts(sees)[:1] == ["1.  one 0"], timeout=5000)
    boxes = sees.sees.resolutions, sees.sees.lines
    assert [[box.itemText(row) for row in range(box.count())] for box in boxes] == [
        ["64 px: 64×64", "128 px: 128×128"], ["1 of 2: one", "2 of 2: two"],
    ]  # fmt: skip
    assert sees.preview.crop.getRect() == (0, 8, 64, 64)
    for box in boxes:
        box.setCurrentIndex(1)
        box.activated.emit(1)
    qtbot.waitUntil(lambda: prompts(sees)[:1] == ["1.  two 0"], timeout=5000)
    assert sees.preview.crop.getRect() == (1, 2, 128, 128) and [box.currentIndex() for box in boxes] == [1, 1]
    shown.captions.edit(sees.picture, "three")
    qtbot.waitUntil(lambda: prompts(sees)[:1] == ["1.  three 0"], timeout=5000)
    select(shown, "bare.png")
    qtbot.waitUntil(lambda: prompts(sees)[:1] == ["1.  0"], timeout=5000)
    assert not boxes[1].isVisible() and boxes[0].currentText() == "128 px: 128×128", "the resolution stays"


def test_pictures_of_the_draws_are_asked_for_on_demand(sees, shown, qtbot):  # noqa: F811
    asked = []
    sees.asked.connect(asked.append)
    sees.tabs.setCurrentWidget(sees.sees)
    rows = sees.sees.prompts
    qtbot.waitUntil(lambda: rows.count() == 8, timeout=5000)
    assert not asked[-1]["pixels"] and asked[-1]["entry"] == 0
    assert rows.item(0).data(Qt.ItemDataRole.DecorationRole) is None
    sees.sees.pictures.click()
    qtbot.waitUntil(lambda: rows.item(0).data(Qt.ItemDataRole.DecorationRole) is not None, timeout=5000)
    assert asked[-1]["pixels"]
    shown.captions.edit(sees.picture, "typed")
    qtbot.waitUntil(lambda: prompts(sees)[:1] == ["1.  typed 0"], timeout=5000)
