"""The program: one window, opened on a preset."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PySide6.QtWidgets import QApplication

from ui.core import places, reading
from ui.core.preset import files
from ui.core.preset.document import Document
from ui.core.preset.files import Opened
from ui.core.preset.schema import Schema
from ui.core.settings import Settings
from ui.frame.window import Window
from ui.widgets import icons, theme


def main(argv: Sequence[str]) -> int:
    """Show the window until it is closed; the exit code."""
    parser = argparse.ArgumentParser(prog="train_ui.py", description="Edit presets, train them, watch the trainings.")
    parser.add_argument("preset", nargs="?", help="a preset's name or file, a run folder, a .safetensors of Gimbal")
    arguments = parser.parse_args(list(argv))
    app = QApplication(sys.argv[:1])
    app.setApplicationName("gimbal")
    app.setApplicationDisplayName("Gimbal")
    settings = Settings()
    theme.apply(app, settings.theme)
    app.setWindowIcon(icons.icon("target", theme.colors().accent))
    window = make_window(settings, arguments.preset or "")
    window.show()
    return app.exec()


def make_window(settings: Settings, preset: str = "") -> Window:
    """The window on a preset (name, file, run folder), on what a crash has left, or on what was open last."""
    document = Document(Schema.load())
    window = Window(document, settings)
    if not preset and window.unsaved.restore(newest=True):
        restored = document.origin.name or "a new preset"
        window.banners.say(f"Unsaved changes to {restored} have been restored.")
    else:
        open_first(window, preset)
    return window


def open_first(window: Window, preset: str) -> None:
    """Open what was asked for, else what was open last, else a preset that can be trained on this machine."""
    last = window.settings.text("last_preset")
    if preset and window.opening.take(files.named(preset) or Path(preset).absolute()):
        return
    if last and files.is_there(Path(last)) and window.opening.take(Path(last)):
        return
    first = None
    for one in readable(window.document.schema):
        if not one.problems and reading.is_there(places.full(one.values["base"]["path"])):
            window.document.open(one)
            return
        first = first or (None if one.problems else one)
    if first is not None:
        window.document.open(first)


def readable(schema: Schema) -> Iterator[Opened]:
    """The presets that there are, but for those that cannot be read; their page says why."""
    for entry in files.listing():
        with suppress(ValueError):
            yield files.read(entry.path, schema)
