"""The page of presets: look at them, open, copy, rename, delete, import and export them."""

from pathlib import Path

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QFileDialog, QLabel, QLineEdit, QMenu, QPushButton, QWidget

from ui.core import places, reading, workers
from ui.core.preset import files
from ui.core.preset.document import Document
from ui.core.preset.files import Entry, Opened
from ui.core.settings import Settings
from ui.pages.presets.details import Looked, PresetDetails, look
from ui.pages.presets.keeper import PresetKeeper
from ui.pages.presets.tree import PresetTree
from ui.widgets import dialogs
from ui.widgets.drops import Drops
from ui.widgets.elided import Elided
from ui.widgets.making import across, action, button, dressed, panel, plain, say, split, with_icon

OPENABLE = "Presets (*.json *.safetensors)"
PRESETS = "Presets (*.json)"
FOLDER = "preset_folder"
"""The folder that files were last chosen in, among the settings."""


class PresetsPage(Drops, QWidget):
    """All presets at the left, the chosen one at the right. It opens nothing itself, but asks for it."""

    open_requested = Signal(Path)
    dropped = Signal(list)
    renamed = Signal(Path, Path)
    """The own preset at the first path is now at the second."""

    def __init__(self, document: Document, settings: Settings, parent: QWidget | None = None):
        super().__init__(parent)
        self._document, self._settings = document, settings
        self._listing: workers.Task | None = None
        self._looking: workers.Task | None = None
        self._looked: Looked | None = None
        self.entries: list[Entry] = []
        self.tree, self.details = PresetTree(), PresetDetails()
        wanted = "Filter presets"
        self.filter = dressed(QLineEdit(clearButtonEnabled=True), name=wanted, placeholderText=wanted)
        self.nothing = QLabel("No matching presets", wordWrap=True)
        self.nothing.hide()
        self.name, self.where, self.description = dressed(Elided(), "title"), dressed(Elided(), "muted"), plain()
        self.description.setMinimumWidth(1)  # a word that is longer than the page must not widen the window
        self.keeper = PresetKeeper(document.schema, self)
        self._make_actions()
        self._lay_out()
        self.setAcceptDrops(True)
        self.dropped.connect(self.on_dropped)
        self.tree.currentItemChanged.connect(self.on_current_changed)
        self.tree.itemActivated.connect(lambda: self.open_action.trigger())
        self.filter.textChanged.connect(lambda text: self.nothing.setVisible(not self.tree.narrow(text)))
        self.filter.returnPressed.connect(self.tree.setFocus)
        self.keeper.kept.connect(self.refresh)
        self.keeper.deleted.connect(lambda: self.refresh())
        self.keeper.renamed.connect(self.renamed)
        document.origin_changed.connect(self.on_origin_changed)

    def refresh(self, chosen: Path | None = None) -> None:
        """Read the list of presets anew; `chosen` becomes the current one."""
        if self._listing:
            self._listing.cancel()
        failed = lambda sentence: self.details.show_text(f"Cannot list the presets: {sentence}", "problem")  # noqa: E731
        self._listing = workers.run(files.listing, done=lambda entries: self._fill(entries, chosen), failed=failed)

    # -- what the user does --------------------------------------------------------------------------------------------

    def on_current_changed(self) -> None:
        """Show the chosen preset."""
        if self._looking:
            self._looking.cancel()
        entry, self._looked = self.tree.entry(), None
        self._enable()
        say(self.name, entry.name if entry else "")
        say(self.where, _where(entry) if entry else "")
        say(self.description, entry.description if entry else "")
        if entry is None:
            self.details.show_text("Select a preset to see its settings." if self.entries else "No presets")
            return
        self._looking = workers.run(
            look,
            entry.path,
            self._document.schema,
            done=lambda looked: self._show(entry, looked),
            failed=self._unreadable,
        )

    def on_origin_changed(self) -> None:
        """Mark the open preset, and choose it if it is listed."""
        if self.isVisible():
            self.refresh(self._document.origin.path)

    def on_export(self) -> None:
        """Write the chosen preset into a file anywhere."""
        opened = self._opened()
        suggested = Path(self._folder()) / f"{opened.origin.name}.json"
        chosen, _ = QFileDialog.getSaveFileName(self, "Export preset", str(suggested), PRESETS)
        if chosen:
            self._settings.keep(FOLDER, str(Path(chosen).parent))
            self.keeper.export(opened, Path(chosen))

    def on_import(self) -> None:
        """Copy a preset file to the own presets."""
        chosen, _ = QFileDialog.getOpenFileName(self, "Import preset", self._folder(), PRESETS)
        if chosen:
            self._settings.keep(FOLDER, str(Path(chosen).parent))
            self.keeper.import_file(Path(chosen))

    def on_open_file(self) -> None:
        """Open a preset from any file."""
        chosen, _ = QFileDialog.getOpenFileName(self, "Open preset", self._folder(), OPENABLE)
        if chosen:
            self._request(Path(chosen))

    def on_open_run(self) -> None:
        """Open the preset of a run."""
        chosen = QFileDialog.getExistingDirectory(self, "Open the preset of a run", str(places.RUNS))
        if chosen:
            self._request(Path(chosen))

    # -- files ---------------------------------------------------------------------------------------------------------

    def on_dropped(self, paths: list[str]) -> None:
        """Open what is dropped."""
        if len(paths) == 1:
            self._request(places.full(paths[0]))
        else:
            dialogs.say_error(self, "Open preset", f"{len(paths)} files were dropped; only one preset can be open.")

    def _request(self, path: Path) -> None:
        if reading.is_folder(path) and not reading.is_file(path / "preset.json"):
            dialogs.say_error(self, "Open preset", f"{path} is not a run folder: it has no preset.json.")
        elif reading.is_file(path) and path.suffix not in (".json", ".safetensors"):
            sentence = f"{path.name} is not a preset; presets are .json files, run folders and .safetensors files."
            dialogs.say_error(self, "Open preset", sentence)
        else:
            self._settings.keep(FOLDER, str(path.parent))
            self.open_requested.emit(path)

    def _entry(self) -> Entry:
        entry = self.tree.entry()
        assert entry  # or the action is disabled
        return entry

    def _opened(self) -> Opened:
        assert self._looked  # or the action is disabled
        return self._looked.opened

    def _folder(self) -> str:
        return self._settings.text(FOLDER, str(Path.home()))

    # -- showing -------------------------------------------------------------------------------------------------------

    def showEvent(self, event: QShowEvent) -> None:
        """Files may have come meanwhile."""
        super().showEvent(event)
        self.refresh()

    def hideEvent(self, event: QHideEvent) -> None:
        """Nobody looks any more, or the window is about to go."""
        super().hideEvent(event)
        for task in (self._listing, self._looking):
            if task:
                task.cancel()

    def _fill(self, entries: list[Entry], chosen: Path | None) -> None:
        before, opened = self.tree.entry(), self._document.origin.path
        self.entries = entries
        chosen = chosen if chosen in {entry.path for entry in entries} else None
        with QSignalBlocker(self.tree):
            self.tree.fill(entries, opened, chosen or (before.path if before else opened))
        self.on_current_changed()

    def _show(self, entry: Entry, looked: Looked) -> None:
        self._looked = looked
        self.details.show_preset(entry, looked)
        self._enable()

    def _unreadable(self, sentence: str) -> None:
        self.details.show_text(sentence, "problem")
        self.open_action.setEnabled(False)

    def _enable(self) -> None:
        entry = self.tree.entry()
        own = entry is not None and entry.kind == "own"
        self.open_action.setEnabled(entry is not None)
        for one in (self.duplicate_action, self.export_action):
            one.setEnabled(self._looked is not None)
        for one in (self.rename_action, self.delete_action):
            one.setEnabled(own)

    def _make_actions(self) -> None:
        tree, keeper = self.tree, self.keeper
        self.open_action = action(tree, "&Open", lambda: self.open_requested.emit(self._entry().path))
        duplicate = lambda: keeper.duplicate(self._opened())  # noqa: E731
        self.duplicate_action = action(tree, "&Duplicate…", duplicate, "copy", "Ctrl+D")
        self.rename_action = action(tree, "Re&name…", lambda: keeper.rename(self._entry()), "edit", "F2")
        self.delete_action = action(tree, "De&lete…", lambda: keeper.delete(self._entry()), "delete", "Del")
        self.export_action = action(tree, "E&xport…", self.on_export, "export")

    def _lay_out(self) -> None:
        both = split((self._left(), 0), (self._right(), 0))
        both.setSizes([400, 500])
        across(both, of=self)

    def _left(self) -> QWidget:
        import_button = with_icon(QPushButton("&Import…"), "add")
        import_button.clicked.connect(self.on_import)
        tip = "Open the preset of a run folder, an exported file or any preset file"
        from_button = with_icon(dressed(QPushButton("Open fro&m…"), name="Open from a run or file", tip=tip), "folder")
        menu = QMenu(from_button)
        menu.addAction("&File…", self.on_open_file)
        menu.addAction("&Run folder…", self.on_open_run)
        from_button.setMenu(menu)
        buttons = across(import_button, from_button, None)
        return panel(self.filter, self.nothing, (self.tree, 1), buttons, margins=(0, 0, 8, 0))

    def _right(self) -> QWidget:
        for label in (self.name, self.where):
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        own = (self.duplicate_action, self.rename_action, self.delete_action, self.export_action)
        buttons = across(button(self.open_action, "primary"), *map(button, own), None)
        labels = (self.name, self.where, self.description)
        return panel(*labels, buttons, 6, (self.details, 1), margins=(8, 0, 0, 0))


def _where(entry: Entry) -> str:
    return f"Your preset · {places.shown(entry.path)}" if entry.kind == "own" else "Comes with Gimbal"
