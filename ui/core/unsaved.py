"""A copy of unsaved edits on disk, so that a window that crashes does not take them along."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from PySide6.QtCore import QObject, QTimer, Signal

from ui.core import reading
from ui.core.preset.document import Document
from ui.core.runs import launch

DELAY = 700
"""Milliseconds from an edit to its copy."""


class CrashCopy(QObject):
    """Keeps one file per window, named after its process; a file whose process is gone belongs to a crash."""

    failed = Signal(str)

    def __init__(self, folder: Path, things: str, edits: Callable[[], Any], take: Callable[[Any], object],
                 parent: QObject | None = None):  # fmt: skip
        """`things`: what is edited, for sentences. `edits`: the unsaved ones as JSON, empty if there are none. `take`:
        take over such; it may raise ValueError, KeyError, TypeError or AttributeError."""
        super().__init__(parent)
        self.folder, self.things, self.edits, self.take = folder, things, edits, take
        me = psutil.Process()
        self.file = folder / f"{me.pid}-{me.create_time():.0f}.json"
        self._timer = QTimer(self, singleShot=True, interval=DELAY)
        self._timer.timeout.connect(self.on_quiet)

    def on_edited(self) -> None:
        """Something was edited: write the copy soon."""
        self._timer.start()

    def restore(self, newest: bool = False) -> int:
        """Take over what crashes have left, or only the newest of it; how many files."""
        left = [file for file in self.folder.glob("*.json") if not _alive(file.stem)]
        found = 0
        for file in sorted(left, key=lambda file: file.stat().st_mtime, reverse=newest):
            try:
                self.take(reading.read_json(file))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                aside = file.replace(file.with_suffix(".broken"))
                self.failed.emit(f"Unsaved {self.things} from a crash cannot be read; the file is now {aside}.")
                continue
            self.on_quiet()
            file.unlink()
            found += 1
            if newest:
                break
        return found

    def on_quiet(self) -> None:
        """Write the copy; without unsaved edits there is none."""
        edits = self.edits()
        try:
            if not edits:
                self.file.unlink(missing_ok=True)
                return
            reading.write_whole(self.file, json.dumps(edits))
        except OSError as error:
            why = f"{self.folder}: {error.strerror}"
            self.failed.emit(f"Unsaved {self.things} cannot be backed up: {why}.")

    def discard(self) -> None:
        """The window closes in an orderly way: nothing is to be restored."""
        self._timer.stop()
        self.file.unlink(missing_ok=True)


def of_document(document: Document, folder: Path, parent: QObject | None = None) -> CrashCopy:
    """The copy of a preset's unsaved edits."""
    edits = lambda: document.to_unsaved() if document.is_modified() else None  # noqa: E731
    copy = CrashCopy(folder, "edits", edits, document.restore, parent)
    document.changed.connect(copy.on_edited)
    document.origin_changed.connect(copy.on_edited)
    return copy


def _alive(name: str) -> bool:
    """Whether the window that a file is named after still runs."""
    pid, _, created = name.partition("-")
    return pid.isdigit() and created.isdigit() and launch.alive(launch.Process(int(pid), int(created), launch.HOST))
