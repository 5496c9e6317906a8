"""Editing captions: edits stay in memory until they are saved, each into its own text file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from PySide6.QtCore import QEvent, QIODevice, QObject, QSaveFile, QSignalBlocker, Signal
from PySide6.QtGui import QKeyEvent, QKeySequence
from PySide6.QtWidgets import QLabel, QPlainTextEdit, QPushButton, QWidget

from ui.core import workers
from ui.pages.pictures.data_set import Picture
from ui.widgets.making import across, down, dressed, say

SOURCES = {
    "json": "From a .json file. Saving writes a {ending} file, which is used instead.",
    "metadata": "From a metadata file. Saving writes a {ending} file, which is used instead.",
    "filename": "No caption; the file name is used. Saving writes a {ending} file.",
    "text": "No caption; data.caption_text is used. Saving writes a {ending} file.",
    "missing": "No caption. Saving writes a {ending} file.",
    "empty": "Empty caption",
}
"""What is said of a caption, by its source; those of text files need no words."""

FIXED = {
    "json": "From a .json file",
    "metadata": "From a metadata file",
    "foldername": "The folder's name",
    "filename": "The file name",
    "text": "The text of data.caption_text",
    "none": "No caption",
    "empty": "Empty caption",
    "missing": "No caption",
}
"""The same where no text file would be used."""


class Captions(QObject):
    """Unsaved captions by caption file; several pictures may share one."""

    changed = Signal(str)
    """The edit of this caption file came, went or is another."""

    saved = Signal(str, str)
    """Caption file and the text that is in it now."""

    failed = Signal(str)
    """A sentence: what could not be saved, and why."""

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self.edits: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        """Why a caption could not be saved, by caption file: sentences."""
        self._known: dict[str, str] = {}

    def to_unsaved(self) -> dict[str, tuple[str, str]]:
        """Each edit, and what its file said when it began."""
        return {file: (text, self._known[file]) for file, text in self.edits.items()}

    def restore(self, edits: Mapping[str, tuple[str, str]]) -> None:
        """Take over what `to_unsaved` of a window that crashed gave."""
        for file, (text, known) in {str(file): map(str, edit) for file, edit in edits.items()}.items():
            self.edits[file], self._known[file] = text, known
            self.changed.emit(file)

    def edit(self, picture: Picture, text: str) -> None:
        """The caption of a picture shall be `text`."""
        file = picture.caption_file
        if not file:  # nothing that is written would be used
            return
        self._known.setdefault(file, picture.caption)
        if text.strip() == picture.caption:
            self.revert(file)
        elif self.edits.get(file) != text:
            self.edits[file] = text
            self.changed.emit(file)

    def revert(self, file: str) -> None:
        """Forget an edit."""
        self._known.pop(file, None)
        self.reasons.pop(file, None)
        if self.edits.pop(file, None) is not None:
            self.changed.emit(file)

    def settle(self, pictures: Iterable[Picture]) -> None:
        """The trainer has looked again: forget the edits that are what the files say now."""
        for picture in pictures:
            if self.edits.get(picture.caption_file, "").strip() == picture.caption:
                self.revert(picture.caption_file)

    def save(self, file: str) -> None:
        """Write one edit, on another thread."""
        text = self.edits[file].strip()
        workers.run(
            write_caption,
            *(Path(file), text, self._known[file]),
            done=lambda found: self._written(file, text, found),
            failed=lambda reason: self._fail(file, reason),
        )

    def save_all(self) -> None:
        """Write all edits, on other threads."""
        for file in list(self.edits):
            self.save(file)

    def save_now(self) -> bool:
        """Write all edits before going on; False when one could not be written, which `failed` tells."""
        for file in list(self.edits):
            text = self.edits[file].strip()
            try:
                self._written(file, text, write_caption(Path(file), text, self._known[file]))
            except OSError as error:
                self._fail(file, str(error))
        return not self.edits

    def _written(self, file: str, text: str, found: str | None) -> None:
        if found is not None:
            self._known[file] = found
            sentence = f"{file} was changed by another program to {found!r}. "
            self._fail(file, sentence + "Revert to load it, or save again to overwrite it.")
            return
        self.reasons.pop(file, None)
        if self.edits.get(file, "").strip() == text:
            self.revert(file)
        else:  # typed on meanwhile
            self._known[file] = text
        self.saved.emit(file, text)

    def _fail(self, file: str, sentence: str) -> None:
        self.reasons[file] = sentence
        self.failed.emit(sentence)
        self.changed.emit(file)


def write_caption(file: Path, text: str, known: str) -> str | None:
    """Write a caption at once or not at all. Writes nothing and returns the file's text if it is neither `known`
    nor empty: somebody else has written it. Raises OSError with a sentence."""
    if file.exists():
        found = file.read_bytes().decode("utf-8-sig", errors="replace").strip()
        if found and found not in (known, text):
            return found
    saving = QSaveFile(str(file))
    content = (text + "\n" if text else "").encode()
    if not (saving.open(QIODevice.OpenModeFlag.WriteOnly) and saving.write(content) >= 0 and saving.commit()):
        raise OSError(f"{file} cannot be written: {saving.errorString()}; the caption stays unsaved")
    return None


def said_of(picture: Picture) -> str:
    """Where a caption comes from and what saving it does, where that is not its own text file."""
    if not picture.caption_file:
        return f"{FIXED.get(picture.source, 'From elsewhere')}. It cannot be edited here, as data.captions is set."
    return SOURCES.get(picture.source, "").format(ending=Path(picture.caption_file).suffix)


class CaptionText(QPlainTextEdit):
    """A text in which Ctrl+S means this caption, whatever it means elsewhere in the window."""

    save_wanted = Signal()

    def event(self, event: QEvent) -> bool:
        """Qt: takes the key from the window's shortcuts."""
        if isinstance(event, QKeyEvent) and event.matches(QKeySequence.StandardKey.Save):
            if event.type() == QEvent.Type.KeyPress:
                self.save_wanted.emit()
            event.accept()
            return True
        return super().event(event)


class CaptionEditor(QWidget):
    """The caption of the selected picture."""

    def __init__(self, captions: Captions, parent: QWidget | None = None):
        super().__init__(parent)
        self._captions = captions
        self.picture: Picture | None = None
        self.text = dressed(CaptionText(tabChangesFocus=True), name="Caption", placeholderText="Describe the picture")
        self.text.setAcceptDrops(False)  # folders may be dropped anywhere on the page
        self.source = dressed(QLabel(wordWrap=True), "muted")
        self.save = dressed(QPushButton("Save caption"), tip="Save to the picture's caption file (Ctrl+S)")
        self.revert = dressed(QPushButton("Revert"), tip="Discard the changes")
        down((self.text, 1), self.source, across(self.save, self.revert, None), of=self, margins=(0, 6, 0, 0))
        self.text.textChanged.connect(self.on_text_changed)
        self.save.clicked.connect(self.on_save)
        self.revert.clicked.connect(self.on_revert)
        self.text.save_wanted.connect(self.on_save)
        captions.changed.connect(self._show_state)
        self.show_picture(None)

    def show_picture(self, picture: Picture | None) -> None:
        """Edit the caption of another picture; what was typed for the one before is kept."""
        same = picture is not None and self.picture is not None and picture.key == self.picture.key
        self.picture = picture
        text = self._captions.edits.get(picture.caption_file, picture.caption) if picture else ""
        if not same or text.strip() != self.text.toPlainText().strip():
            with QSignalBlocker(self.text):
                self.text.setPlainText(text)
        self.setEnabled(picture is not None)
        self.text.setReadOnly(picture is not None and not picture.caption_file)
        self._show_state()

    def on_text_changed(self) -> None:
        """Typed."""
        if self.picture is not None:
            self._captions.edit(self.picture, self.text.toPlainText())
        self._show_state()

    def on_save(self) -> None:
        """Write the caption."""
        if self.picture is not None and self.picture.caption_file in self._captions.edits:
            self._captions.save(self.picture.caption_file)

    def on_revert(self) -> None:
        """Back to what the file says."""
        if self.picture is not None:
            self._captions.revert(self.picture.caption_file)
            self.show_picture(self.picture)

    def _show_state(self) -> None:
        picture = self.picture
        edited = picture is not None and picture.caption_file in self._captions.edits
        self.save.setEnabled(edited)
        self.revert.setEnabled(edited)
        sentences = [said_of(picture)] if picture else []
        if picture is not None and picture.too_long and not edited:
            sentences.append("Too long for the text encoder; “What the model sees” shows what is cut off.")
        reason = self._captions.reasons.get(picture.caption_file, "") if picture else ""
        if edited:
            sentences = [reason] if reason else [*sentences, "Not saved."]
        said = " ".join(sentence for sentence in sentences if sentence)
        say(self.source, said, "problem" if edited and reason else "muted")
