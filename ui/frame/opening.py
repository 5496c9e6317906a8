"""Opening and saving the document, with the questions that keep unsaved changes from being lost."""

from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QFileDialog, QWidget

from ui.core import places
from ui.core.preset import files
from ui.core.preset.document import Document
from ui.core.preset.files import Opened, Origin
from ui.core.settings import Settings
from ui.widgets import dialogs

OPENABLE = "Presets, and files made by Gimbal (*.json *.safetensors)"


class Opening(QObject):
    """What the File menu does. `parent` is the window that questions belong to."""

    said = Signal(str)
    """What is worth showing, a sentence a line, e.g. which option of a file has another name now; "" for nothing."""

    def __init__(self, document: Document, settings: Settings, parent: QWidget):
        super().__init__(parent)
        self.document, self.settings, self.window = document, settings, parent

    def open(self, path: Path) -> bool:
        """Open a preset, a run folder or an exported file, after asking about unsaved changes."""
        return self.may_replace() and self.take(path)

    def take(self, path: Path) -> bool:
        """The same without asking."""
        try:
            opened = files.read(path, self.document.schema)
        except (OSError, ValueError) as error:
            dialogs.say_error(self.window, "Cannot open", str(error))
            return False
        if opened.problems:
            if not self._accepts(opened):
                return False
            opened = replace(opened, values=self.document.schema.allowed(opened.values))
        self.document.open(opened)
        self.settings.keep("last_preset", str(path))
        self.said.emit("\n".join(opened.notes))
        return True

    def choose_file(self) -> None:
        """Ask for a file, and open it."""
        path, _ = QFileDialog.getOpenFileName(self.window, "Open preset", str(places.PRESETS), OPENABLE)
        if path:
            self.open(Path(path))

    def choose_run(self) -> None:
        """Ask for a run folder, and open its preset."""
        path = QFileDialog.getExistingDirectory(self.window, "Open a run's preset", str(places.RUNS))
        if path:
            self.open(Path(path))

    def save(self) -> bool:
        """Save an own preset under its name, anything else under a new one."""
        if self.document.origin.kind != "own":
            return self.save_as()
        return self._save(self.document.origin.name)

    def save_as(self) -> bool:
        """Save under another name, as a preset of one's own."""
        taken = {entry.name for entry in files.listing()}
        proposed = files.free_name(self.document.origin.name or "preset", taken)
        name = dialogs.ask_name(self.window, "Save preset as", proposed)
        return bool(name) and self._save(name)

    def export(self) -> None:
        """Write the preset to a JSON file anywhere."""
        proposed = str(Path.home() / f"{self.document.origin.name or 'preset'}.json")
        path, _ = QFileDialog.getSaveFileName(self.window, "Export the preset", proposed, "Presets (*.json)")
        if not path:
            return
        try:
            files.export(self.document.values, Path(path), self.document.schema)
        except (OSError, ValueError) as error:
            dialogs.say_error(self.window, "Cannot export preset", str(error))

    def may_replace(self) -> bool:
        """Whether the document may be given up: asks when it has unsaved changes."""
        if not self.document.is_modified():
            return True
        answer = dialogs.ask_unsaved(self.window, self.document)
        return self.save() if answer == dialogs.SAVE else answer == dialogs.DISCARD

    def on_renamed(self, old: Path, new: Path) -> None:
        """The open preset's file has another name: saving must go there."""
        if self.document.origin.path == old:
            self.document.move_to(Origin(self.document.origin.kind, new.stem, new))
            self.settings.keep("last_preset", str(new))

    def _save(self, name: str) -> bool:
        try:
            path = files.save(self.document.values, name, self.document.schema, overwrite=True)
        except (OSError, ValueError) as error:
            dialogs.say_error(self.window, "Cannot save preset", str(error))
            return False
        self.document.mark_saved(Origin("own", name, path))
        self.settings.keep("last_preset", str(path))
        return True

    def _accepts(self, opened: Opened) -> bool:
        """Whether the user opens a file without what is not understood in it."""
        problems = dialogs.enumerated(opened.problems, "\n", dialogs.LISTED)
        title, question = f"{opened.origin.name} has unknown settings", f"Open {opened.origin.name} without them?"
        details = f"{problems}\n\nUnknown settings are left out; invalid values get their default, if there is one."
        answers = {dialogs.OK: "&Open without them", dialogs.CANCEL: "&Cancel"}
        box = dialogs.Question(self.window, title, question, details, answers, usual=dialogs.CANCEL)
        return box.ask() == dialogs.OK
