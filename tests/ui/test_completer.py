"""Completing paths from the folders that were chosen lately, as a user types."""

import subprocess
import sys
from pathlib import Path

import pytest

TYPED = """
import sys
from PySide6.QtCore import QStandardPaths, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QVBoxLayout, QWidget

QStandardPaths.writableLocation = staticmethod(lambda location: f"{sys.argv[1]}/{location.value}")
app = QApplication([])
from ui.core.preset.field import plain
from ui.form.row import make
from ui.core.settings import Settings

settings = Settings()
settings.remember_folder("/data/pics")
kind, *texts = sys.argv[2:]
field = plain("some.thing", {"title": "T", "description": "D.", "type": "string", "kind": kind, "default": ""}, False)
inputs = [make(field, settings), make(field, settings)]
page = QWidget()
box = QVBoxLayout(page)
for one in inputs:
    box.addWidget(one)
    one.show_value("")
page.show()
QTest.qWaitForWindowActive(page)
for text in texts:
    for one in inputs:
        one.edit.setFocus()
        app.processEvents()
        kept = one.edit.completer()
        one.edit.selectAll()
        for letter in text:
            popup = app.activePopupWidget()
            QTest.keyClicks(popup if popup else one.edit, letter, delay=5)
        QTest.keyClick(one.edit, Qt.Key.Key_Escape)
        app.processEvents()
        assert one.edit.completer() is kept
        assert kept.model().stringList() == ["/data/pics"]
settings.remember_folder("/data/more")
inputs[1].edit.setFocus()
inputs[0].edit.setFocus()
assert inputs[0].edit.completer().model().stringList() == ["/data/more", "/data/pics"]
print("typed")
"""


@pytest.mark.parametrize("kind", ["folder", "model"])
def test_typing_past_what_is_offered_does_not_end_the_window(tmp_path, kind):
    """In a process of its own: what went wrong was a segmentation fault."""
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", TYPED, str(tmp_path), kind, "/dax", "/data/pics/x", "/d", "pix"]
    done = subprocess.run(
        words, cwd=root, env={"QT_QPA_PLATFORM": "offscreen", "PATH": "", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=100,
    )
    assert done.returncode == 0 and done.stdout == "typed\n", (done.returncode, done.stderr[-2000:])
