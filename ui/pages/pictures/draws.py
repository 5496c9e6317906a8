"""What the model sees of a picture: the crop, and the prompts of the first draws."""

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QImage, QPainter, QPaintEvent, QPen, QRegion, QTransform
from PySide6.QtWidgets import QLabel, QListWidget, QPushButton, QSizePolicy, QSpinBox, QWidget

from ui.widgets import theme
from ui.widgets.making import across, down, dressed

DRAWS = 8
"""How many draws are shown."""


class Preview(QWidget):
    """A picture, and the part of it that is trained on."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.crop: QRectF | None = None
        """In the picture's own pixels; None: no part is marked."""
        self.mirrored = False
        self._image, self._words, self._own = QImage(), "", QSize()
        self.setAccessibleName("Preview")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumSize(QSize(8, 6) * self.fontMetrics().height())

    def set_image(self, image: QImage, own: QSize, words: str = "") -> None:
        """Show a picture whose own size is `own`, or `words` when there is none."""
        self._image, self._own, self._words = image, own, words
        self.update()

    def set_crop(self, crop: QRectF | None, mirrored: bool = False) -> None:
        """Mark what is trained on."""
        self.crop, self.mirrored = crop, mirrored
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Qt: the picture in the middle, what is cut off in the window's colour."""
        painter, colors = QPainter(self), theme.colors()
        if self._image.isNull():
            painter.setPen(colors.muted)
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap, self._words)
            return
        painter.setRenderHints(QPainter.RenderHint.SmoothPixmapTransform | QPainter.RenderHint.Antialiasing)
        size = self._image.size().scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio)
        area = QRectF(0, 0, size.width(), size.height())
        area.moveCenter(QRectF(self.rect()).center())
        image = self._image.transformed(QTransform().scale(-1, 1)) if self.mirrored else self._image
        painter.drawImage(area, image)
        if self.crop is None or self._own.isEmpty():
            return
        scale = area.width() / self._own.width()
        left = self._own.width() - self.crop.right() if self.mirrored else self.crop.left()
        seen = QRectF(QPointF(left, self.crop.top()) * scale + area.topLeft(), self.crop.size() * scale)
        shade = QColor(colors.window)
        shade.setAlphaF(0.75)
        painter.setClipRegion(QRegion(area.toAlignedRect()) - QRegion(seen.toAlignedRect()))
        painter.fillRect(area, shade)
        painter.setClipping(False)
        painter.setPen(QPen(colors.accent, 2))
        painter.drawRect(seen.adjusted(1, 1, -1, -1))


class Sees(QWidget):
    """The draws of one picture for a seed."""

    wanted = Signal()
    """Another seed was chosen: ask the trainer again."""

    mirrored = Signal(bool)
    """Whether the selected draw mirrors the picture."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._draws: list[Mapping[str, Any]] = []
        self.seed = dressed(QSpinBox(minimum=0, maximum=2**31 - 1), name="Seed")
        self.seed.lineEdit().setAcceptDrops(False)  # folders may be dropped anywhere on the page
        self.next = dressed(QPushButton("Next"), tip="Use the next seed")
        self.size_line = dressed(QLabel(wordWrap=True), "muted")
        self.prompts = dressed(QListWidget(), name="Prompts of the first draws", wordWrap=True, spacing=1)
        self.prompts.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        label = QLabel("&Seed")
        label.setBuddy(self.seed)
        top = across(label, self.seed, self.next, None)
        down(top, self.size_line, (self.prompts, 1), of=self, margins=(0, 6, 0, 0))
        self.seed.valueChanged.connect(self.wanted)
        self.next.clicked.connect(self.seed.stepUp)
        self.prompts.currentRowChanged.connect(self.on_row_changed)

    def set_answer(self, answer: Mapping[str, Any]) -> None:
        """Show what scripts/look.py answered."""
        row = max(0, self.prompts.currentRow())
        self._draws = answer["draws"]
        (width, height), (wide, high) = answer["bucket"], answer["resized"]
        cut = "not cropped" if (width, height) == (wide, high) else f"cropped to the central {width}×{height}"
        self._say(" ".join([f"Resized to {wide}×{high}, {cut}.", *answer["notes"]]), "muted")
        self.prompts.clear()
        self.prompts.addItems([draw_words(draw) for draw in self._draws])
        self.prompts.setCurrentRow(min(row, len(self._draws) - 1))

    def set_problem(self, sentence: str) -> None:
        """There is no answer."""
        self._draws = []
        self.prompts.clear()
        self._say(sentence, "problem" if sentence else "muted")

    def on_row_changed(self, row: int) -> None:
        """Another draw was selected."""
        self.mirrored.emit(0 <= row < len(self._draws) and bool(self._draws[row]["flip"]))

    def _say(self, sentence: str, role: str) -> None:
        self.size_line.setText(sentence)
        theme.set_role(self.size_line, role)


def draw_words(draw: Mapping[str, Any]) -> str:
    """One draw in words."""
    lines = [f"{draw['position'] + 1}.  {draw['prompt'] or '(empty prompt: caption dropped)'}"]
    if draw["flip"]:
        lines.append("      flipped")
    if draw["cut"]:
        lines.append(f"      cut off, too long: “{draw['cut']}”")
    return "\n".join(lines)
