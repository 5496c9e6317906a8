"""The selected picture: larger, with its facts, its caption, and what the model sees of it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from PySide6.QtCore import QRectF, QSize, QTimer, Signal
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QCheckBox, QLabel, QSizePolicy, QTabWidget, QWidget

from ui.core import workers
from ui.pages.pictures.captions import CaptionEditor, Captions
from ui.pages.pictures.data_set import Picture, facts
from ui.pages.pictures.draws import Sees
from ui.pages.pictures.preview import Preview, read_both
from ui.widgets import theme
from ui.widgets.making import across, down, dressed

LARGE = 1024
"""Longest side of the preview in pixels."""


class PicturePanel(QWidget):
    """Beside the grid."""

    asked = Signal(dict)
    """A question to scripts/look.py, without the preset."""

    def __init__(self, captions: Captions, parent: QWidget | None = None):
        super().__init__(parent)
        self.picture: Picture | None = None
        self._captions = captions
        self._loading: workers.Task | None = None
        self._asked: tuple[int, str] | None = None
        self._mask, self._ignored = QImage(), False
        self.preview = Preview(self)
        self.name, self.facts = dressed(QLabel(wordWrap=True), "heading"), dressed(QLabel(wordWrap=True), "muted")
        self.masked = dressed(QCheckBox("Mask"), tip="Tint what its mask leaves out", checked=True)
        for label in (self.name, self.facts):
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.editor = CaptionEditor(captions, self)
        self.sees = Sees(self)
        self.tabs = dressed(QTabWidget(documentMode=True), name="Caption and what the model sees")
        self.tabs.addTab(self.editor, "Caption")
        self.tabs.addTab(self.sees, "What the model sees")
        name = across((self.name, 1), self.masked)
        down((self.preview, 1), name, self.facts, (self.tabs, 1), of=self, margins=(8, 0, 0, 0))
        self.soon = QTimer(self, singleShot=True, interval=250)
        self.soon.timeout.connect(self.on_quiet)
        self.tabs.currentChanged.connect(self.on_tab_changed)
        self.sees.wanted.connect(self.soon.start)
        self.sees.chosen.connect(self.on_draw)
        self.masked.toggled.connect(self.on_masked)
        captions.changed.connect(self.on_caption_changed)
        self.show_picture(None)

    def show_picture(self, picture: Picture | None) -> None:
        """Show another picture, or the same after the trainer has looked again."""
        same = picture is not None and self.picture is not None and picture.key == self.picture.key
        self.picture = picture
        self.editor.show_picture(picture)
        self.sees.show_picture(picture)
        if not same:
            self.set_problem("")
            self._mask = QImage()
            self.on_masked()
        self.sees.setEnabled(picture is not None and bool(picture.width))
        if self._loading is not None:
            self._loading.cancel()
        self.name.setText(picture.name if picture else "")
        self.facts.setText((picture.problem or facts(picture)) if picture else "")
        theme.set_role(self.facts, "problem" if picture is not None and picture.problem else "muted")
        if picture is None or not picture.width:
            words = "No preview: cannot read the picture" if picture else "Select a picture"
            self.preview.set_image(QImage(), QSize(), words)
            return
        failed = partial(self.preview.set_image, QImage(), QSize())
        self._loading = workers.run(read_both, picture.path, picture.mask, LARGE, done=self.on_loaded, failed=failed)
        self.soon.start()

    def set_answer(self, answer: dict[str, Any]) -> None:
        """What scripts/look.py answered to the last question."""
        if self.picture is not None and self._asked == self.picture.key:
            self.sees.set_answer(answer)
            self.sees.on_row_changed(self.sees.prompts.currentRow())

    def set_problem(self, sentence: str) -> None:
        """The last question cannot be answered."""
        self.preview.set_crop(None)
        self.sees.set_problem(sentence)

    def on_loaded(self, both: tuple[QImage, QImage]) -> None:
        """The preview and the mask were read."""
        image, self._mask = both
        self.on_masked()
        if self.picture is not None and self.picture.width and self.picture.height:
            own = QSize(self.picture.width, self.picture.height)
            self.preview.set_image(image, own, "No preview in this window; the trainer can read the picture.")

    def on_caption_changed(self, file: str) -> None:
        """Typed: other prompts, and perhaps fewer lines that are samples of their own."""
        if self.picture is not None and self.picture.caption_file == file:
            self.sees.lines.setCurrentIndex(0)
            self.soon.start()

    def on_quiet(self) -> None:
        """Ask what the model sees, when that is looked at."""
        picture = self.picture
        if picture is None or not picture.width or self.tabs.currentWidget() is not self.sees or not self.isVisible():
            return
        self._asked = picture.key
        caption = self._captions.edits.get(picture.caption_file, picture.caption).strip()
        asked = {"path": picture.path, "entry": picture.entry, "caption": caption}
        self.asked.emit(asked | self.sees.question())

    def on_tab_changed(self) -> None:
        """The crop is drawn while the model's view is looked at."""
        if self.tabs.currentWidget() is self.sees:
            self.soon.start(0)
        self.sees.on_row_changed(self.sees.prompts.currentRow())

    def on_draw(self, draw: Mapping[str, Any] | None) -> None:
        """Another draw is looked at."""
        shown = draw if self.tabs.currentWidget() is self.sees else None
        self._ignored = shown is not None and not shown["masked"]
        self.on_masked()
        if shown is None:
            self.preview.set_crop(None)
        else:
            self.preview.set_crop(QRectF(*shown["crop"]), shown["flip"], shown["angle"])

    def on_masked(self) -> None:
        """The mask is to be seen, or not: the selected draw may ignore it."""
        self.masked.setVisible(not self._mask.isNull())
        self.preview.set_mask(self._mask if self.masked.isChecked() and not self._ignored else QImage())
