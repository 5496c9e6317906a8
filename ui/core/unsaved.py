"""A copy of unsaved edits on disk, so that a window that crashes does not take them along."""

import json
from pathlib import Path

import psutil
from PySide6.QtCore import QObject, QTimer, Signal

from ui.core import reading
from ui.core.preset.document import Document

DELAY = 700
"""Milliseconds from an edit to its copy."""


class Unsaved(QObject):
    """Keeps one file per window, named after its process; a file whose process is gone belongs to a crash."""

    failed = Signal(str)

    def __init__(self, document: Document, folder: Path, parent: QObject | None = None):
        super().__init__(parent)
        self.document, self.folder = document, folder
        me = psutil.Process()
        self.file = folder / f"{me.pid}-{int(me.create_time())}.json"
        self._timer = QTimer(self, singleShot=True, interval=DELAY)
        self._timer.timeout.connect(self.on_quiet)
        document.changed.connect(lambda: self._timer.start())
        document.origin_changed.connect(lambda: self._timer.start())

    def restore(self) -> str:
        """Take over the newest edits that a crash has left. Their preset's name, or "" if there are none."""
        left = [file for file in self.folder.glob("*.json") if not _alive(file.stem)] if self.folder.is_dir() else []
        for file in sorted(left, key=lambda file: file.stat().st_mtime, reverse=True):
            try:
                self.document.restore(reading.read_json(file))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                broken = file.replace(file.with_suffix(".broken"))
                self.failed.emit(f"Edits that a crash has left are damaged; what is left of them is kept in {broken}.")
                continue
            self.on_quiet()
            file.unlink()
            return self.document.origin.name or "a new preset"
        return ""

    def on_quiet(self) -> None:
        """Write the copy; without unsaved edits there is none."""
        try:
            if not self.document.is_modified():
                self.file.unlink(missing_ok=True)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".part")
            temporary.write_text(json.dumps(self.document.to_unsaved()), encoding="utf-8")
            temporary.replace(self.file)
        except OSError as error:
            self.failed.emit(f"Unsaved edits cannot be kept in case of a crash: {self.folder}: {error.strerror}.")

    def discard(self) -> None:
        """The window closes in an orderly way: nothing is to be restored."""
        self._timer.stop()
        self.file.unlink(missing_ok=True)


def _alive(name: str) -> bool:
    """Whether the window that a file is named after still runs."""
    pid, _, created = name.partition("-")
    try:
        return int(psutil.Process(int(pid)).create_time()) == int(created)
    except (psutil.Error, ValueError):
        return False
