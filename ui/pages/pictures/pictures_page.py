"""The data page: folders, thumbnails with captions, buckets, and what the model sees."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from PySide6.QtCore import QByteArray, Qt, QTimer, Signal
from PySide6.QtGui import QHideEvent, QKeySequence, QShortcut, QShowEvent
from PySide6.QtWidgets import QMessageBox, QWidget

from ui.core import places, words
from ui.core.look import Look
from ui.core.preset import entries
from ui.core.preset.document import Document
from ui.core.settings import Settings
from ui.core.unsaved import CrashCopy
from ui.pages.pictures.captions import Captions
from ui.pages.pictures.data_set import Picture, PictureModel
from ui.pages.pictures.folder_dialog import FolderDialog
from ui.pages.pictures.layout import Parts
from ui.pages.pictures.thumbnails import Thumbnails
from ui.widgets import theme
from ui.widgets.drops import Drops

MATTERS = ("family", "base.path", "base.config", "base.texts", "base.vae", "data", "training.batch_size")
"""Options that change what the trainer says about pictures."""

PICTURES, SEES = "pictures", "sees"
"""The questions to scripts/look.py."""

NOTHING: dict[str, Any] = {"pictures": [], "buckets": [], "problems": [], "notes": []}
"""The answer where there is no folder."""

SPLITTER = "pictures_splitter"


class PicturesPage(Drops, QWidget):
    """Everything about the pictures of the preset that is edited."""

    dropped = Signal(list)
    folders_only = True

    def __init__(self, document: Document, settings: Settings, look: Look | None = None, parent: QWidget | None = None):
        super().__init__(parent)
        self._document, self._settings = document, settings
        self._stale, self._answer = True, {}
        self.look = look or Look()
        if self.look.parent() is None:
            self.look.setParent(self)
        self.captions = captions = Captions(self)
        kept_in = settings.config_folder / "captions"
        self.kept = CrashCopy(kept_in, "captions", captions.to_unsaved, captions.restore, self)
        self.model = PictureModel(self.captions.edits)
        self.thumbnails = Thumbnails(self)
        self.parts = Parts(self, self.model, self.thumbnails, self.captions, settings)
        self.setAcceptDrops(True)
        self.dropped.connect(self.add_folders)
        self._soon = QTimer(self, singleShot=True, interval=600)
        self._soon.timeout.connect(self.on_quiet)
        self._connect()
        self._show_folders()
        self._restored = len(self.captions.edits) if self.kept.restore() else 0
        self._show_edits()
        self.parts.splitter.restoreState(settings.state(SPLITTER))

    @property
    def training(self) -> bool:
        """Whether the training pictures are shown, not those for validation."""
        return self.parts.training.isChecked()

    @property
    def which(self) -> str:
        """The set that is shown."""
        return "training" if self.training else "validation"

    def folders(self) -> dict[int, Any]:
        """The entries of data.folders that are shown, by their places."""
        return {place: one for place, one in enumerate(self._entries()) if entries.of_set([one], self.which)}

    def _entries(self) -> list[Any]:
        return list(self._document.value("data.folders") or [])

    def add_folders(self, folders: Iterable[str], role: str = "") -> None:
        """Add folders of a role, by default the usual one of the data set that is shown; one undo step."""
        role = role or entries.ROLES[self.which][0]
        new = [places.shown(places.full(folder)) for folder in folders]
        for folder in reversed(new):
            self._settings.remember_folder(folder)
        known = {places.full(entries.path(one)) for one in self._entries() if entries.role(one) == role}
        added = [{"path": one, "role": role} for one in dict.fromkeys(new) if places.full(one) not in known]
        self._set("data.folders", [*self._entries(), *added])
        self.parts.set_of(role).setChecked(True)

    def remove_folders(self, gone: Collection[int]) -> None:
        """Take the entries at these places out of data.folders; the files stay."""
        self._set("data.folders", [one for place, one in enumerate(self._entries()) if place not in gone])

    def edit_folder(self, place: int) -> None:
        """Ask for the settings of the entry at a place; one undo step."""

        def take() -> None:
            known = self._entries()
            self._set("data.folders", [*known[:place], dialog.entry(), *known[place + 1 :]])

        dialog = self.dialog = FolderDialog(self._document, self._settings, place, self)
        dialog.accepted.connect(take)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def refresh(self) -> None:
        """Look at folders and pictures again."""
        self._soon.stop()
        self._stale = False
        self.thumbnails.forget()
        if not self.folders():
            self._take(NOTHING)
            self._show_numbers()
            self._say("No picture folder chosen" if self.training else "No validation folder chosen", "muted")
            return
        self._say("Reading pictures…", "muted")
        self.parts.progress.setRange(0, 0)
        self.parts.progress.show()
        self.ask(PICTURES, {})

    def may_leave(self) -> bool:
        """Whether the window may close: asks when captions are not saved."""
        number = len(self.captions.edits)
        if not number:
            return True
        button = QMessageBox.StandardButton
        answer = QMessageBox.question(
            self,
            "Unsaved captions",
            f"{words.plural(number, 'caption')} {'has' if number == 1 else 'have'} unsaved changes.",
            button.SaveAll | button.Discard | button.Cancel,
            button.SaveAll,
        )
        if answer == button.SaveAll:
            saved = self.captions.save_now()
            if not saved:  # the page may not be in sight
                QMessageBox.warning(self, "Captions not saved", self.parts.status.text())
            return saved
        return answer == button.Discard

    def end(self) -> None:
        """Stop the process that looks at pictures and the reading of thumbnails; remember the layout."""
        self._soon.stop()
        self._stale = True
        self.look.close()
        self.thumbnails.close()
        self.parts.panel.show_picture(None)  # it may be reading one
        self.kept.discard()
        self._settings.keep(SPLITTER, QByteArray(self.parts.splitter.saveState()))

    # -- what happens -------------------------------------------------------------------------------------------------

    def on_document_changed(self, path: str) -> None:
        """A value of the preset has changed."""
        if path and not any(path == one or path.startswith(one + ".") or one.startswith(path + ".") for one in MATTERS):
            return
        self._show_folders()
        self._stale = True
        if self.isVisible():
            self._soon.start()

    def on_quiet(self) -> None:
        """The preset has not changed for a moment."""
        if self.isVisible():
            self.refresh()
            self.parts.panel.soon.start()

    def on_switched(self) -> None:
        """Training or validation."""
        self._take(NOTHING)
        self.refresh()

    def on_filter(self) -> None:
        """Other words or marks are sought; the selected picture stays selected if it is still shown."""
        chosen = self.parts.panel.picture
        self.model.set_filter(self.parts.search.text(), self.parts.problems_only.isChecked())
        if chosen is not None:
            self.parts.grid.select(chosen.key)
        self._show_numbers()

    def on_chosen(self, picture: Picture | None) -> None:
        """Another picture was selected; a picture that only the filter hides stays in the panel."""
        if picture != self.parts.panel.picture and (picture is not None or not self.model.shown):
            self.parts.panel.show_picture(picture)

    def ask(self, kind: str, question: Mapping[str, Any]) -> None:
        """Ask the trainer, PICTURES or SEES."""
        self.look.ask(kind, {"preset": self._document.values, "which": self.which, **question})

    def on_progressed(self, kind: str, done: int, total: int) -> None:
        """The trainer's eyes are at work."""
        if kind == PICTURES:
            self.parts.progress.setRange(0, total)
            self.parts.progress.setValue(done)

    def on_answered(self, kind: str, answer: dict[str, Any]) -> None:
        """An answer has come."""
        if kind == SEES:
            self.parts.panel.set_answer(answer)
        elif kind == PICTURES:
            self._take(answer)
            self._show_numbers()

    def on_refused(self, kind: str, sentence: str) -> None:
        """There is no answer."""
        if kind == SEES:
            self.parts.panel.set_problem(sentence)
        elif kind == PICTURES:
            self.parts.progress.hide()
            self._say(sentence, "problem")

    def on_caption_saved(self, file: str, text: str) -> None:
        """A caption is in its file: show that now, ask the trainer soon."""
        self.model.replace(file, text)
        chosen = self.parts.panel.picture
        if chosen is not None and chosen.caption_file == file:
            self.parts.panel.show_picture(next(one for one in self.model.pictures if one.key == chosen.key))
        self._soon.start()

    # -- Qt -----------------------------------------------------------------------------------------------------------

    def showEvent(self, event: QShowEvent) -> None:
        """Qt: look at the pictures when the page is shown and something may have changed."""
        super().showEvent(event)
        if self._stale and not event.spontaneous():
            self.refresh()

    def hideEvent(self, event: QHideEvent) -> None:
        """Qt: files may change while nobody looks."""
        super().hideEvent(event)
        if not event.spontaneous():
            self._stale = True

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        parts, look, captions = self.parts, self.look, self.captions
        self._document.changed.connect(self.on_document_changed)
        look.answered.connect(self.on_answered)
        look.refused.connect(self.on_refused)
        look.progressed.connect(self.on_progressed)
        captions.changed.connect(self.model.update)
        captions.changed.connect(self._show_edits)
        captions.changed.connect(self.kept.on_edited)
        self.kept.failed.connect(captions.failed)
        captions.saved.connect(self.on_caption_saved)
        captions.failed.connect(lambda sentence: self._say(sentence, "problem"))
        theme.notifier().changed.connect(self._show_folders)
        parts.folders.added.connect(self.add_folders)
        parts.folders.removed.connect(self.remove_folders)
        parts.folders.opened.connect(self.edit_folder)
        parts.training.toggled.connect(self.on_switched)
        parts.refresh.clicked.connect(self.refresh)
        parts.save_all.clicked.connect(captions.save_all)
        parts.search.textChanged.connect(self.on_filter)
        parts.problems_only.toggled.connect(self.on_filter)
        parts.grid.chosen.connect(self.on_chosen)
        parts.panel.asked.connect(partial(self.ask, SEES))
        parts.panel.editor.revert.clicked.connect(self._soon.start)  # the file may say something else by now
        context = Qt.ShortcutContext.WidgetWithChildrenShortcut
        QShortcut(QKeySequence.StandardKey.Refresh, self, context=context).activated.connect(self.refresh)

    def _set(self, path: str, value: Any) -> None:
        """An undo step of its own."""
        self._document.seal()
        self._document.set(path, self._document.field(path).understood(value))
        self._document.seal()

    def _take(self, answer: dict[str, Any]) -> None:
        """Show an answer; what was selected and in sight stays."""
        parts, chosen = self.parts, self.parts.panel.picture
        place = parts.grid.verticalScrollBar().value()
        pictures = [Picture.understood(entry) for entry in answer["pictures"]]
        parts.progress.hide()
        self._answer = answer
        if pictures != self.model.pictures:
            self.model.set_pictures(pictures)
        self.captions.settle(pictures)
        key = chosen.key if chosen is not None else None
        found = next((picture for picture in pictures if picture.key == key), pictures[0] if pictures else None)
        if found is not None and self.model.row_of(found.key) >= 0:
            parts.grid.select(found.key)
        if parts.panel.picture != found:
            parts.panel.show_picture(found)
        QTimer.singleShot(0, parts.grid, lambda: parts.grid.verticalScrollBar().setValue(place))
        batch = int(self._document.value("training.batch_size") or 1)
        parts.histogram.set_buckets(answer["buckets"], batch)
        parts.bucket_line.setText(bucket_words(answer["buckets"], batch))
        small = sum(parts.histogram.is_small(bucket) for bucket in answer["buckets"])
        number = len(answer["problems"]) + len(answer["notes"])
        parts.views.setTabText(1, f"Buckets ({small} small)" if small else "Buckets")
        parts.views.setTabText(2, f"Problems and notes ({number})" if number else "Problems and notes")
        parts.notes.set_sentences(answer["problems"], answer["notes"])
        self._show_folders()

    def _show_numbers(self) -> None:
        """How many pictures, and how many of them are worth a look."""
        total, shown = len(self.model.pictures), len(self.model.shown)
        marked = sum(bool(picture.marks()) for picture in self.model.pictures)
        text = words.plural(total, "picture")
        if shown != total:
            text = f"{words.count(shown)} of {text}"
        problems = len(self._answer.get("problems", ()))
        if problems:
            text += f", {words.plural(problems, 'problem')}"
        if self._restored and self.captions.edits:
            text += f"; {words.plural(self._restored, 'unsaved caption')} restored"
        self._say(text, "problem" if problems else "muted")
        self.parts.grid.words = self._why_empty()
        self.parts.grid.viewport().update()
        self.parts.problems_only.setText(f"Only problems ({words.count(marked)})" if marked else "Only problems")

    def _why_empty(self) -> str:
        if self.model.pictures:
            return "No matching pictures"
        return "No pictures in the folders" if self.folders() else "Drop folders with pictures here"

    def _show_folders(self) -> None:
        counts = Counter((one["entry"], one["folder"]) for one in self._answer.get("pictures", ()))
        self.parts.folders.set_folders(self.folders(), counts)

    def _show_edits(self) -> None:
        number = len(self.captions.edits)
        self.parts.save_all.setText(f"Save all captions ({number})" if number else "Save all captions")
        self.parts.save_all.setEnabled(number > 0)

    def _say(self, sentence: str, role: str) -> None:
        self.parts.status.setText(sentence)
        theme.set_role(self.parts.status, role)


def bucket_words(buckets: list[dict[str, Any]], batch: int) -> str:
    """What the bars mean."""
    if not buckets:
        return "No pictures"
    filled = sum(bucket["filled"] for bucket in buckets)
    text = f"{words.plural(len(buckets), 'bucket')}; each batch has {words.plural(batch, 'picture')} of one bucket."
    if filled:
        text += f" {words.plural(filled, 'picture')} repeated per epoch to fill last batches (pale)."
    return text
