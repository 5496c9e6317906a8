"""The folders of a data set: listed, added, removed."""

from collections.abc import Mapping, Sequence

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QMenu, QPushButton, QWidget

from ui.core import places, words
from ui.core.settings import Settings
from ui.form.paths import ask_folder
from ui.widgets.icons import icon
from ui.widgets.making import across, action, button, down, dressed

ROWS = 3
"""So many folders are in sight; more scroll."""


class FoldersBar(QWidget):
    """A short list with buttons; what is added or removed is decided by whoever listens."""

    added = Signal(list)
    """Folders to add."""

    removed = Signal(list)
    """Folders to remove, as they are written in the preset."""

    def __init__(self, settings: Settings, parent: QWidget | None = None):
        super().__init__(parent)
        self._settings = settings
        self.list = dressed(QListWidget(), name="Folders")
        self.list.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.add = QPushButton("Add folder")
        self.menu = QMenu(self)
        self.menu.aboutToShow.connect(self.on_menu)
        self.add.setMenu(self.menu)
        tip, remove = "Remove the selected folders from the data set", lambda: self.removed.emit(self._chosen())
        self.removal = action(self.list, "Remove", remove, keys="Del", tip=tip)
        self.remove = button(self.removal)
        buttons = down(across(self.add, self.remove), None)
        across((self.list, 1), buttons, of=self, margins=(0, 0, 0, 0))
        self.list.itemSelectionChanged.connect(self.on_selection_changed)
        self.set_folders([], {})

    def set_folders(self, folders: Sequence[str], counts: Mapping[str, int]) -> None:
        """Show these; `counts`: how many pictures are in a folder, as far as that is known."""
        chosen = {item.data(Qt.ItemDataRole.UserRole) for item in self.list.selectedItems()}
        self.list.clear()
        frame = 2 * self.list.frameWidth()
        size = QSize(0, self.add.sizeHint().height() - frame)
        for folder in folders:
            number = f"   {words.plural(counts[folder], 'picture')}" if folder in counts else ""
            item = QListWidgetItem(icon("folder"), folder + number, self.list)
            item.setData(Qt.ItemDataRole.UserRole, folder)
            item.setToolTip(str(places.full(folder)))
            item.setSelected(folder in chosen)
            item.setSizeHint(size)
        if not folders:
            item = QListWidgetItem("No picture folder chosen: add one, or drop folders on this page", self.list)
            item.setFlags(Qt.ItemFlag.NoItemFlags)
            item.setSizeHint(size)
        self.list.setFixedHeight(size.height() * min(ROWS, self.list.count()) + frame)
        self.on_selection_changed()

    def on_menu(self) -> None:
        """Offer the file dialog and the folders used lately."""
        self.menu.clear()
        self.menu.addAction("Choose a folder…", self.on_choose)
        recent = [folder for folder in self._settings.recent_folders if folder]
        if recent:
            self.menu.addSeparator()
        for folder in recent:
            self.menu.addAction(folder, lambda folder=folder: self.added.emit([folder]))

    def on_choose(self) -> None:
        """Ask for a folder."""
        if folder := ask_folder(self, "Folder with pictures", "", self._settings):
            self.added.emit([folder])

    def on_selection_changed(self) -> None:
        """Nothing to remove without a selection."""
        self.removal.setEnabled(bool(self._chosen()))

    def _chosen(self) -> list[str]:
        """The selected folders; with one folder it need not be selected."""
        items = self.list.selectedItems() or ([self.list.item(0)] if self.list.count() == 1 else [])
        return [folder for item in items if (folder := item.data(Qt.ItemDataRole.UserRole))]
