"""The settings of one folder of data.folders: a form made from the schema, like the pages of options."""

from typing import Any

from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QWidget

from ui.core.preset import entries
from ui.core.preset.document import Document
from ui.core.settings import Settings
from ui.form.form_page import FormPage
from ui.widgets.making import down, dressed, plain

FOLDERS = "data.folders"
LIKE_ALL = "As for all folders"
SIZE = (120, 42)
"""Width in letters and height in lines."""


class FolderDialog(QDialog):
    """Edits a copy of the entry at a place; whoever opened it takes `entry` when it is accepted."""

    def __init__(self, document: Document, settings: Settings, place: int, parent: QWidget | None = None):
        super().__init__(parent)
        self._field, given = document.field(FOLDERS), document.value(FOLDERS)[place]
        self.setWindowTitle(f"Settings of {entries.path(given)}")
        self.document = Document(document.schema.of_entry(FOLDERS, document.values, LIKE_ALL), self)
        values = given if isinstance(given, dict) else {"path": given}
        origin = {"kind": "new", "name": "", "path": None}
        self.document.restore({"origin": origin, "values": values, "baseline": {"path": entries.path(given)}})
        self.page = FormPage(self.document, "", settings)
        self.page.title.hide()
        kinds = QDialogButtonBox.StandardButton
        self.buttons = QDialogButtonBox(kinds.Ok | kinds.Cancel)
        self.ok = dressed(self.buttons.button(kinds.Ok), "primary", default=True)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        self.document.changed.connect(self.on_changed)
        self.page.unread_changed.connect(self.on_changed)
        undo = self.document.undo
        for keys, slot in ((QKeySequence.StandardKey.Undo, undo.undo), (QKeySequence.StandardKey.Redo, undo.redo)):
            QShortcut(keys, self).activated.connect(slot)
        said = f"What is “{LIKE_ALL.lower()}” follows the page Data, whose value stands beside it in grey."
        said += " A resolution of its own also replaces the several resolutions of that page."
        down(dressed(plain(said), "muted"), (self.page, 1), self.buttons, of=self)
        letter, line = self.fontMetrics().averageCharWidth(), self.fontMetrics().lineSpacing()
        self.resize(SIZE[0] * letter, SIZE[1] * line)
        self.on_changed()

    def entry(self) -> Any:
        """The folder with its settings; its path alone where it has none."""
        return self._field.understood([self.document.values])[0]

    def on_changed(self) -> None:
        """Only what the trainer would take can be accepted."""
        self.ok.setEnabled(not self.document.problems() and not self.page.unread())
