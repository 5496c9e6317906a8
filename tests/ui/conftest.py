"""What the window's tests share: a memory of their own, and a document."""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest
from PySide6.QtCore import QCoreApplication, QStandardPaths
from PySide6.QtWidgets import QFileDialog, QMessageBox

from ui.core import places


@pytest.fixture(autouse=True)
def own_memory(tmp_path_factory, monkeypatch):
    """Settings, caches and own presets of the tests are not the user's."""
    home = tmp_path_factory.mktemp("home")
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home / name))
    QCoreApplication.setApplicationName("gimbal-tests")
    monkeypatch.setattr(
        QStandardPaths, "writableLocation", staticmethod(lambda location: str(home / f"location-{location.value}"))
    )
    monkeypatch.setattr(places, "OWN_PRESETS", home / "own")
    monkeypatch.setattr(places, "RUNS", home / "runs")
    return home


@pytest.fixture(autouse=True)
def unanswered_questions(monkeypatch):
    """A question that a test does not answer fails it, instead of waiting for ever."""

    def ask(*given):
        raise AssertionError(f"nobody answers: {given}")

    for name in ("question", "warning", "critical", "information"):
        monkeypatch.setattr(QMessageBox, name, staticmethod(ask))
    for name in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
        monkeypatch.setattr(QFileDialog, name, staticmethod(ask))


@pytest.fixture
def document(qapp):
    """A document opened on a demo preset."""
    from ui.core.preset import files
    from ui.core.preset.document import Document
    from ui.core.preset.schema import Schema

    schema = Schema.load()
    document = Document(schema)
    document.open(files.read(places.PRESETS / "wora_demo.json", schema))
    return document


@pytest.fixture
def open_window(qapp, qtbot, monkeypatch):
    """Makes windows that are closed in the end without a question, and do not ask the trainer."""
    from ui.app import make_window
    from ui.core.settings import Settings

    windows = []
    monkeypatch.setattr("ui.core.check.Check.on_quiet", lambda self: None)

    def opened(preset: str = "wora_demo"):
        window = make_window(Settings(), preset)
        qtbot.addWidget(window, before_close_func=lambda one: one.document.mark_saved(one.document.origin))
        windows.append(window)
        window.show()
        return window

    return opened
