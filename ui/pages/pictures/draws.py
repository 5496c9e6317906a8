"""What the model sees of a picture: sizes, and the first draws with their prompts and versions."""

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QSignalBlocker, Signal
from PySide6.QtWidgets import QCheckBox, QComboBox, QLabel, QPushButton, QSpinBox, QWidget

from ui.core import words
from ui.pages.pictures.data_set import Picture
from ui.pages.pictures.prompts import BORDER, Prompts
from ui.widgets import theme
from ui.widgets.making import across, down, dressed

DRAWS = 8
"""How many draws are shown."""


class Sees(QWidget):
    """The draws of one picture for a seed, at one of its resolutions."""

    wanted = Signal()
    """Another seed, resolution or caption was chosen: ask the trainer again."""

    chosen = Signal(object)
    """The selected draw, None without one."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.seed = dressed(QSpinBox(minimum=0, maximum=2**31 - 1), name="Seed")
        self.seed.lineEdit().setAcceptDrops(False)  # folders may be dropped anywhere on the page
        self.next = dressed(QPushButton("Next"), tip="Use the next seed")
        tip = "Show what the encoder is given in each draw: cropped, turned, recoloured, with its mask"
        self.pictures = dressed(QCheckBox("Pictures"), tip=tip)
        self.resolutions = dressed(QComboBox(), name="Resolution", tip="Resolution")
        self.lines = dressed(QComboBox(), name="Caption", tip="Which caption: each is a sample of its own")
        self.size_line = dressed(QLabel(wordWrap=True), "muted")
        self.prompts = Prompts()
        label = QLabel("&Seed")
        label.setBuddy(self.seed)
        top = across(label, self.seed, self.next, None, self.pictures)
        choices = across(self.resolutions, (self.lines, 1))
        down(top, choices, self.size_line, (self.prompts, 1), of=self, margins=(0, 6, 0, 0))
        self.seed.valueChanged.connect(self.wanted)
        self.next.clicked.connect(self.seed.stepUp)
        self.pictures.toggled.connect(self.wanted)
        for box in (self.resolutions, self.lines):
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(7)
            box.activated.connect(self.wanted)
        self.prompts.currentRowChanged.connect(self.on_row_changed)
        self.show_picture(None)

    def show_picture(self, picture: Picture | None) -> None:
        """Offer the resolutions of another picture, at the one chosen before if it has that too."""
        known = picture.resolutions if picture else ()
        choices = [("{} px: {}×{}".format(one["resolution"], *one["bucket"]), one["resolution"]) for one in known]
        self._has_mask = picture is not None and bool(picture.mask)
        before = self.resolutions.currentData()
        row = next((row for row, (_, value) in enumerate(choices) if value == before), 0)
        _offer(self.resolutions, choices, row)
        _offer(self.lines, [], 0)

    def question(self) -> dict[str, Any]:
        """What to ask the trainer, besides the picture."""
        asked = {"seed": self.seed.value(), "draws": DRAWS, "pixels": self.pictures.isChecked()}
        chosen = {"resolution": self.resolutions.currentData(), "line": self.lines.currentData()}
        return asked | {name: value for name, value in chosen.items() if value is not None}

    def set_answer(self, answer: Mapping[str, Any]) -> None:
        """Show what scripts/look.py answered about the picture."""
        captions, samples = answer["captions"], answer["samples"]
        own = captions if samples > 1 else []
        texts = [(f"{number + 1} of {samples}: {text}", number) for number, text in enumerate(own)]
        _offer(self.lines, texts, max(0, self.lines.currentIndex()))
        self._say(" ".join([*size_words(answer), *answer["notes"]]), "muted")
        self.prompts.set_draws(answer["draws"], self._has_mask)

    def set_problem(self, sentence: str) -> None:
        """There is no answer."""
        self.prompts.set_draws([], False)
        _offer(self.lines, [], 0)
        self._say(sentence, "problem" if sentence else "muted")

    def on_row_changed(self, row: int) -> None:
        """Another draw was selected."""
        draws = self.prompts.draws
        self.chosen.emit(draws[row] if 0 <= row < len(draws) else None)

    def _say(self, sentence: str, role: str) -> None:
        self.size_line.setText(sentence)
        theme.set_role(self.size_line, role)


def size_words(answer: Mapping[str, Any]) -> list[str]:
    """Sizes, captions and chunks, in sentences."""
    (width, height), (wide, high) = answer["bucket"], answer["resized"]
    cut = "not cropped" if (width, height) == (wide, high) else f"cropped to {width}×{height}"
    found = [f"Resized to {wide}×{high}, {cut}."]
    if len(answer["variants"]) > 1:
        found.append(f"{words.plural(len(answer['variants']), 'version')} cached.")
    number = len(answer["captions"])
    if number > 1 and answer["samples"] == 1:
        found.append(f"One of {number} captions at random.")
    if any(draw["chunks"] for draw in answer["draws"]):
        found.append(f"{BORDER} begins a further chunk of tokens.")
    if any(draw["cut"] for draw in answer["draws"]):
        found.append("What is struck through is not read.")
    return found


def _offer(box: QComboBox, choices: Sequence[tuple[str, Any]], row: int) -> None:
    """Offer these, without emitting a signal; a box without a choice is hidden."""
    with QSignalBlocker(box):
        box.clear()
        for text, value in choices:
            box.addItem(text, value)
        box.setCurrentIndex(min(row, len(choices) - 1))
    box.setVisible(len(choices) > 1)
