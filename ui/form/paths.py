"""What paths are edited with, and whether what they name is there. Looking happens on another thread."""

import re
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtWidgets import QFileDialog, QMenu, QPushButton, QWidget

from ui.core import places, workers
from ui.core.preset.field import Field
from ui.core.settings import Settings
from ui.form.inputs import Input, Line, Text
from ui.widgets.drops import Drops
from ui.widgets.making import dressed

LOCAL = re.compile(r"[./~\\]|[A-Za-z]:|.*\.(safetensors|ckpt|json)$", re.IGNORECASE)
"""Beginnings and ends that only paths on this machine have."""

HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What an id on the Hugging Face hub looks like."""

PAUSE = 300
"""Milliseconds without typing before the disk is asked."""

CHECKPOINTS = "Checkpoints (*.safetensors);;All files (*)"


class PathInput(Text):
    """A line for a path, with a button that opens the system's dialog. Folders and files can be dropped on it."""

    def __init__(self, field: Field, settings: Settings):
        self.edit: PathLine
        super().__init__(field, settings, PathLine())
        self.browse = dressed(QPushButton("Browse…"), name=f"{field.label}: browse")
        self.line.addWidget(self.browse)
        if field.kind == "model":
            menu = QMenu(self.browse)
            menu.addAction("Folder…", self.on_browse_folder)
            menu.addAction("Single file…", self.on_browse_file)
            self.browse.setMenu(menu)
        else:
            self.browse.clicked.connect(self.on_browse_file if field.kind == "file" else self.on_browse_folder)
        self.finder = Finder(self)
        self.edit.dropped.connect(self.on_dropped)
        self.edit.textEdited.connect(self.on_text)
        self.edit.entered.connect(self.on_entered)

    def show_value(self, value: Any) -> None:
        super().show_value(value)
        self.finder.look([self.edit.text()])

    def on_text(self, text: str) -> None:
        """Look for what is typed once typing pauses."""
        self.finder.look([text], PAUSE)

    def on_entered(self) -> None:
        """Offer the folders that were chosen lately."""
        if self.field.kind != "file":
            self.edit.offer(self.settings.recent_folders)

    def on_browse_folder(self) -> None:
        """Ask for a folder."""
        self._put(ask_folder(self, self.field.label, self.read(), self.settings))

    def on_browse_file(self) -> None:
        """Ask for a file."""
        self._put(ask_file(self, self.field.label, self.read()))

    def on_dropped(self, paths: list[str]) -> None:
        """Take the first of what was dropped."""
        if self.field.kind == "folder":
            self.settings.remember_folder(paths[0])
        self._put(paths[0])

    def _put(self, path: str) -> None:
        if path:
            self.edit.replace(path)
            self.edited.emit(path)
            self.left.emit()
            self.finder.look([path])


class PathLine(Drops, Line):
    """A line that takes dropped files and folders."""

    dropped = Signal(list)


class Finder(QObject):
    """Looks on another thread for what the paths in an input name; only the latest answer counts."""

    def __init__(self, input: Input):
        super().__init__(input)
        self.input = input
        self.paths: list[str] = []
        self.task: workers.Task | None = None
        self.timer = QTimer(self, singleShot=True)
        self.timer.timeout.connect(self.on_timeout)

    def look(self, paths: list[str], pause: int = 0) -> None:
        """Find out about these paths, after a pause in milliseconds."""
        self.paths = [path for path in paths if path]
        if self.task:
            self.task.cancel()
        self.input.found.emit("", "")
        if self.paths and self.paths != [self.input.field.default]:  # the default folders are made when they are needed
            self.timer.start(pause)
        else:
            self.timer.stop()

    def on_timeout(self) -> None:
        """Ask the disk."""
        found, kind = self.input.found, self.input.field.kind
        done, failed = (lambda answer: found.emit(*answer)), (lambda sentence: found.emit(sentence, ""))
        self.task = workers.run(remarks, kind, self.paths, done=done, failed=failed)
        self.destroyed.connect(self.task.cancel)


def remarks(kind: str, paths: list[str]) -> tuple[str, str]:
    """What is wrong with what the paths name, and what is only worth a remark."""
    answers = [remark(kind, path) for path in paths]
    return tuple("\n".join(filter(None, column)) for column in zip(*answers, strict=True))  # pyright: ignore


def remark(kind: str, path: str) -> tuple[str, str]:
    """The problem with a path, or a remark on it; ("", "") when all is well."""
    try:
        place = places.full(path)
    except RuntimeError:  # ~nobody
        return f"{path}: there is no such user", ""
    if place.is_dir():
        return (f"{path} is a folder; a file is needed" if kind in ("file", "files") else ""), ""
    if place.is_file():
        return (f"{path} is a file; a folder is needed" if kind in ("folder", "folders") else ""), ""
    if kind == "folder":  # it may be one that will be written to
        return "", f"There is no folder {path} yet."
    if kind == "folders":
        return f"there is no folder {path}", ""
    first = Path(path).parts[0]
    if kind == "model" and HUB.fullmatch(path) and not LOCAL.match(path) and not (places.ROOT / first).exists():
        return "", "Not found on this machine; used as a model id on the Hugging Face hub."
    return f"there is no {'file or folder' if kind == 'model' else 'file'} {path}", ""


def ask_file(parent: QWidget, title: str, now: str) -> str:
    """The file that the user chooses, as presets write it; empty if none."""
    path, _ = QFileDialog.getOpenFileName(parent, title, str(places.ROOT / now), CHECKPOINTS)
    return places.shown(Path(path)) if path else ""


def ask_folder(parent: QWidget, title: str, now: str, settings: Settings) -> str:
    """The folder that the user chooses, as presets write it; empty if none."""
    recent = settings.recent_folders
    start = str(places.ROOT / (now or (recent[0] if recent else "")))
    chosen = QFileDialog.getExistingDirectory(parent, title, start)
    if not chosen:
        return ""
    folder = places.shown(Path(chosen))
    settings.remember_folder(folder)
    return folder
