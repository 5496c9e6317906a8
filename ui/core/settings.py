"""What the window remembers between starts."""

from pathlib import Path

from PySide6.QtCore import QByteArray, QSettings, QStandardPaths

from ui.core import places

RECENT = 12
"""How many folders are remembered."""

THEMES = ("system", "light", "dark")


class Settings:
    """The window's memory: a small file in the user's configuration folder."""

    def __init__(self) -> None:
        location = QStandardPaths.StandardLocation
        self.config_folder = Path(QStandardPaths.writableLocation(location.AppConfigLocation))
        self.cache_folder = Path(QStandardPaths.writableLocation(location.CacheLocation))
        self.config_folder.mkdir(parents=True, exist_ok=True)
        self.cache_folder.mkdir(parents=True, exist_ok=True)
        self._file = QSettings(str(self.config_folder / "window.ini"), QSettings.Format.IniFormat)

    @property
    def theme(self) -> str:
        """`system`, `light` or `dark`."""
        theme = self.text("theme", THEMES[0])
        return theme if theme in THEMES else THEMES[0]

    @property
    def recent_folders(self) -> list[str]:
        """Folders that were chosen somewhere, the latest first."""
        return self.texts("recent_folders")

    def remember_folder(self, folder: str) -> None:
        """Put a folder first in `recent_folders`."""
        self.keep("recent_folders", [folder, *(old for old in self.recent_folders if old != folder)][:RECENT])

    @property
    def runs_folders(self) -> list[str]:
        """Folders that runs are looked for in, the usual one first."""
        usual = str(places.RUNS)
        return [usual, *(folder for folder in self.texts("runs_folders") if folder != usual)]

    def remember_runs_folder(self, folder: str) -> None:
        """Look for runs there, too."""
        if folder not in self.runs_folders:
            self.keep("runs_folders", [*self.texts("runs_folders"), folder])

    def text(self, name: str, otherwise: str = "") -> str:
        """A text kept under a name."""
        return str(self._file.value(name, otherwise))

    def texts(self, name: str) -> list[str]:
        """A list of texts kept under a name."""
        kept = self._file.value(name, [], list)  # an INI file has a list of one as a text
        return kept if isinstance(kept, list) else []

    def flag(self, name: str, otherwise: bool = False) -> bool:
        """A yes or no kept under a name."""
        return bool(self._file.value(name, otherwise, bool))

    def state(self, name: str) -> QByteArray:
        """Geometry of a window or a splitter; empty if none is kept."""
        kept = self._file.value(name, QByteArray())
        return kept if isinstance(kept, QByteArray) else QByteArray()

    def keep(self, name: str, thing: str | bool | list[str] | QByteArray) -> None:
        """Remember something under a name."""
        self._file.setValue(name, thing)
