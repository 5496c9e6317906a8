"""The folders of a data set: listed, added, removed."""

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QMenu, QPushButton, QWidget

from ui.core import places, words
from ui.core.preset import entries
from ui.core.settings import Settings
from ui.form.paths import ask_folder
from ui.widgets.icons import icon
from ui.widgets.making import across, action, button, down, dressed

ROWS = 3
"""So many folders are in sight; more scroll."""


class FoldersBar(QWidget):
    """A short list with buttons; what is added or removed is decided by whoever listens."""

    added = Signal(list, str)
    """Folders to add, and their role; "" for the usual one of what is shown."""

    removed = Signal(list)
    """Places in data.folders of what to remove."""

    opened = Signal(int)
    """Place of a folder whose settings are to be edited."""

    def __init__(self, settings: Settings, parent: QWidget | None = None):
        super().__init__(parent)
        self._settings = settings
        self.list = dressed(QListWidget(), name="Folders")
        self.list.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.add = QPushButton("Add folder")
        self.menu = QMenu(self)
        self.menu.aboutToShow.connect(self.on_menu)
        self.add.setMenu(self.menu)
        tip = "Remove the selected folders from the data set"
        self.removal = action(self.list, "Remove", self.on_remove, keys="Del", tip=tip)
        tip = "Role, repeats, loss weight, resolution, captions, masks … of the selected folder"
        self.setting = action(self.list, "Settings…", self.on_settings, keys="Return", tip=tip)
        self.remove, self.settings = button(self.removal), button(self.setting)
        buttons = down(across(self.add, self.settings, self.remove), None)
        across((self.list, 1), buttons, of=self, margins=(0, 0, 0, 0))
        self.list.itemSelectionChanged.connect(self.on_selection_changed)
        self.list.itemDoubleClicked.connect(self.on_settings)
        self.set_folders({}, {})

    def set_folders(self, folders: Mapping[int, Any], counts: Mapping[tuple[int, str], int]) -> None:
        """Show these entries of data.folders, by their places; `counts`: how many pictures there are at a place and in
        a folder, as far as that is known."""
        chosen = {item.data(Qt.ItemDataRole.UserRole) for item in self.list.selectedItems()}
        self.list.clear()
        frame = 2 * self.list.frameWidth()
        size = QSize(0, self.add.sizeHint().height() - frame)
        for place, entry in folders.items():
            folder, said = entries.path(entry), entries.details(entry)
            if (number := counts.get((place, folder))) is not None:
                said.insert(1, words.plural(number, "picture"))
            item = QListWidgetItem(icon("folder"), f"{folder}   {' · '.join(said)}", self.list)
            item.setData(Qt.ItemDataRole.UserRole, place)
            item.setToolTip("\n".join([str(places.full(folder)), *said]))
            item.setSelected(place in chosen)
            item.setSizeHint(size)
        if not folders:
            item = QListWidgetItem("No picture folder chosen: add one, or drop folders on this page", self.list)
            item.setFlags(Qt.ItemFlag.NoItemFlags)
            item.setSizeHint(size)
        self.list.setFixedHeight(size.height() * min(ROWS, self.list.count()) + frame)
        self.on_selection_changed()

    def on_menu(self) -> None:
        """Offer the file dialog for each role, and the folders used lately."""
        self.menu.clear()
        for role, spoken in entries.SPOKEN.items():
            self.menu.addAction(f"Folder for {spoken}…", lambda role=role: self.on_choose(role))
        recent = [folder for folder in self._settings.recent_folders if folder]
        if recent:
            self.menu.addSeparator()
        for folder in recent:
            self.menu.addAction(folder, lambda folder=folder: self.added.emit([folder], ""))

    def on_choose(self, role: str) -> None:
        """Ask for a folder."""
        if folder := ask_folder(self, f"Folder with pictures for {entries.SPOKEN[role]}", "", self._settings):
            self.added.emit([folder], role)

    def on_remove(self) -> None:
        """Remove what is selected; afterwards nothing is, whatever has moved up."""
        chosen = self._chosen()
        self.list.clearSelection()
        self.removed.emit(chosen)

    def on_settings(self) -> None:
        """Edit the settings of the one that is selected."""
        if len(chosen := self._chosen()) == 1:
            self.opened.emit(chosen[0])

    def on_selection_changed(self) -> None:
        """Nothing to remove or edit without a selection."""
        self.removal.setEnabled(bool(self._chosen()))
        self.setting.setEnabled(len(self._chosen()) == 1)

    def _chosen(self) -> list[int]:
        """Places of the selected folders; with one folder it need not be selected."""
        items = self.list.selectedItems() or ([self.list.item(0)] if self.list.count() == 1 else [])
        return [place for item in items if (place := item.data(Qt.ItemDataRole.UserRole)) is not None]
