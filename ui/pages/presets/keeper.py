"""What is done with preset files: import, duplicate, rename, delete, export. Every question is asked here."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QFile, QObject, Signal
from PySide6.QtWidgets import QWidget

from ui.core import places, workers
from ui.core.preset import files
from ui.core.preset.files import Entry, Opened
from ui.core.preset.schema import Schema, Values, at, with_value
from ui.widgets import dialogs


class PresetKeeper(QObject):
    """Does it, and says what went wrong. Nothing here waits for an answer."""

    kept = Signal(Path)
    """An own preset is new, or has a new name."""
    deleted = Signal(Path)
    renamed = Signal(Path, Path)
    """The own preset at the first path is now at the second."""

    def __init__(self, schema: Schema, parent: QWidget):
        super().__init__(parent)
        self._schema, self._window = schema, parent

    def import_file(self, path: Path) -> None:
        """Make an own preset from a file; what cannot be understood in it is asked about."""
        workers.run(
            files.read,
            path,
            self._schema,
            done=lambda opened: self._adopt(opened, "Import preset", "&Import", ask=False),
            failed=lambda sentence: self._say("Import preset", sentence),
        )

    def duplicate(self, opened: Opened) -> None:
        """Make an own preset with the same settings."""
        self._adopt(opened, "Duplicate preset", "&Duplicate", ask=True)

    def rename(self, entry: Entry) -> None:
        """Give an own preset another name."""
        dialog = dialogs.NameDialog(self._window, "Rename preset", entry.name, "Re&name")
        dialog.accepted.connect(lambda: self._rename(entry, dialog.name))
        dialog.open()

    def delete(self, entry: Entry) -> None:
        """Delete an own preset, if the answer is yes."""
        question = f"Delete your preset {entry.name}?"
        details = "Moves it to the bin. Where there is no bin, it is deleted permanently."
        dialogs.confirm(self._window, "Delete preset", question, details, "De&lete", lambda: self._delete(entry))

    def export(self, opened: Opened, path: Path) -> None:
        """Write a preset into a file anywhere."""
        path = path if path.suffix else path.with_suffix(".json")
        self._try("Export preset", files.export, opened.values, path, self._schema)

    def _adopt(self, opened: Opened, title: str, accept: str, ask: bool) -> None:
        """`ask`: for the name in any case, not only if it is taken."""
        name = opened.origin.name
        if not opened.problems:
            self._adopt_as(opened.values, name, title, accept, ask)
            return
        problems = dialogs.enumerated(opened.problems, "\n", dialogs.LISTED)
        try:
            values = understood(opened.values, self._schema)
        except ValueError as error:
            self._say(title, f"{name} cannot be used: {error}.\n\n{problems}")
            return
        question = f"{name} has unknown or invalid settings:"
        without = lambda: self._adopt_as(values, name, title, accept, ask)  # noqa: E731
        dialogs.confirm(self._window, title, question, problems, f"{accept} without them", without)

    def _adopt_as(self, values: Values, name: str, title: str, accept: str, ask: bool) -> None:
        if not ask and not files.name_problem(name) and not dialogs.own_preset(name).exists():
            self._try(title, self._save, values, name)
            return
        dialog = dialogs.NameDialog(self._window, title, free_name(name), accept)
        dialog.accepted.connect(lambda: self._try(title, self._save, values, dialog.name))
        dialog.open()

    def _save(self, values: Values, name: str) -> None:
        self.kept.emit(files.save(values, name, self._schema))

    def _rename(self, entry: Entry, name: str) -> None:
        path = entry.path.with_name(f"{name}.json")
        if path != entry.path and self._try("Rename preset", entry.path.rename, path):
            self.kept.emit(path)
            self.renamed.emit(entry.path, path)

    def _delete(self, entry: Entry) -> None:
        if QFile.moveToTrash(str(entry.path)) or self._try("Delete preset", files.delete, entry):
            self.deleted.emit(entry.path)

    def _try(self, title: str, function: Callable, *arguments: object) -> bool:
        """Whether it worked; if not, that was said."""
        try:
            function(*arguments)
        except (OSError, ValueError) as error:
            self._say(title, str(error))
            return False
        return True

    def _say(self, title: str, sentence: str) -> None:
        dialogs.say_error(self._window, title, sentence)


def free_name(name: str) -> str:
    """`name`, or the first that is free with a number behind it. Nothing is composed but presets of such names."""
    taken = {path.stem for path in places.OWN_PRESETS.glob("*.json")}
    while True:
        free = files.free_name(name, taken)
        try:
            if not files.named(free.lower()):
                return free
        except ValueError:  # damaged parts, which the list tells: no preset comes with Gimbal
            return free
        taken.add(free)


def understood(values: Values, schema: Schema) -> Values:
    """Complete values with the default for each that the schema refuses. Raises ValueError if one has no default."""
    for path, field in schema.fields(values).items():
        problem = field.problem(at(values, path))
        if problem and field.required:
            raise ValueError(f"{path}: {problem}")
        if problem:
            values = with_value(values, path, field.default)
    return schema.complete(values)[0]
