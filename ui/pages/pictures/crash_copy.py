"""A copy of unsaved captions on disk, so that a window that crashes does not take them along."""

import json
import os
from pathlib import Path

import psutil
from PySide6.QtCore import QObject, QTimer

from ui.core import reading
from ui.core.runs import launch
from ui.pages.pictures.captions import Captions

DELAY = 700
"""Milliseconds from an edit to its copy."""


class KeptCaptions(QObject):
    """Keeps one file per window, named after its process; a file whose process is gone belongs to a crash."""

    def __init__(self, captions: Captions, folder: Path, parent: QObject | None = None):
        super().__init__(parent)
        self.captions, self.folder = captions, folder
        self.file = folder / f"{os.getpid()}-{psutil.Process().create_time():.0f}.json"
        self._timer = QTimer(self, singleShot=True, interval=DELAY)
        self._timer.timeout.connect(self.on_quiet)
        captions.changed.connect(lambda: self._timer.start())

    def restore(self) -> int:
        """Take over what crashes have left; how many captions."""
        found = 0
        for file in sorted(self.folder.glob("*.json"), key=lambda file: file.stat().st_mtime):
            if _alive(file.stem):
                continue
            try:
                left = reading.read_json(file)
                edits = {str(path): (str(text), str(known)) for path, (text, known) in left.items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                aside = file.replace(file.with_suffix(".broken"))
                self.captions.failed.emit(
                    f"Captions that a crash has left cannot be read ({error!r}); they are in {aside}."
                )
                continue
            found += len(edits)
            self.captions.restore(edits)
            self.on_quiet()
            file.unlink()
        return found

    def on_quiet(self) -> None:
        """Write the copy; without unsaved captions there is none."""
        edits = {file: (text, self.captions.known(file)) for file, text in self.captions.edits.items()}
        try:
            if not edits:
                self.file.unlink(missing_ok=True)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".part")
            temporary.write_text(json.dumps(edits), encoding="utf-8")
            temporary.replace(self.file)
        except OSError as error:
            self.captions.failed.emit(
                f"Unsaved captions cannot be kept in case of a crash: {self.folder}: {error.strerror}."
            )

    def discard(self) -> None:
        """The window closes in an orderly way: nothing is to be restored."""
        self._timer.stop()
        self.file.unlink(missing_ok=True)


def _alive(name: str) -> bool:
    """Whether the window that a file is named after still runs."""
    pid, _, created = name.partition("-")
    return pid.isdigit() and created.isdigit() and launch.alive(launch.Process(int(pid), int(created), launch.HOST))
