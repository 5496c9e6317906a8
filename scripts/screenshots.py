"""Draw every page of the window from real runs into docs/images: `python scripts/screenshots.py`.

Needs finished runs in runs/, such as `python scripts/train.py --preset wora_demo` leaves. No screen is needed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from PySide6.QtCore import QStandardPaths
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from ui import places, theme
from ui.app import make_window
from ui.pages.pictures import PicturesPage
from ui.settings import Settings
from ui.window import CHANGES, RUNS, Window

SIZE = (1100, 740)
OUT = places.ROOT / "docs/images"
PATIENCE = 60_000
"""Milliseconds for a page to have everything it shows."""


def wait(condition) -> None:
    """Let the window work until something is so."""
    for _ in range(PATIENCE // 50):
        if condition():
            break
        QTest.qWait(50)
    else:
        sys.exit(f"gave up waiting for {condition}")
    QTest.qWait(700)


def states(window: Window) -> Iterator[str]:
    """Bring the window from one state to the next; the name of each picture."""
    wait(lambda: window.check.findings is not None)
    for place in window.navigation.places:
        if place.key is None or place.key in (CHANGES, RUNS):
            continue
        window.show_page(place.key)
        page = window.stack.currentWidget()
        if isinstance(page, PicturesPage):
            wait_for_pictures(page)
        QTest.qWait(400)
        yield place.key.removeprefix("page ") or "general"
    window.document.set("adapter.rank", 24)
    window.document.set("training.learning_rate", 5e-4)
    window.document.set("training.steps", 0)
    window.show_page(CHANGES)
    QTest.qWait(300)
    yield "changes"
    window.on_first_problem()
    QTest.qWait(1500)
    yield "problem"
    window.document.undo.undo()
    window.show_page(RUNS)
    live = window.runs.live
    wait(lambda: live.loaded and live.tabs.currentWidget().isVisible())
    QTest.qWait(3000)  # the plots are being loaded
    for number in range(live.tabs.count()):
        live.tabs.setCurrentIndex(number)
        QTest.qWait(1500)
        yield "runs_" + live.tabs.tabText(number).split(" ")[0].lower()


def wait_for_pictures(page: PicturesPage) -> None:
    """Until the trainer's eyes have answered; then choose the first picture."""
    wait(lambda: page.model.rowCount() > 0)
    page.parts.grid.select(page.model.pictures[0].path)
    QTest.qWait(1500)


def draw(window: Window, name: str) -> None:
    """One picture, with few colours, so that the repository stays small."""
    path = OUT / f"window_{name}.png"
    window.grab().save(str(path))
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.relative_to(places.ROOT), f"{path.stat().st_size / 1024:.0f} KiB")


def main() -> int:
    """Draw all pages in both themes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default=None, help="the preset to show; default: one that can be trained here")
    parser.add_argument("--themes", nargs="+", default=["light", "dark"], choices=["light", "dark"])
    arguments = parser.parse_args()
    if not any(places.RUNS.glob("*/events.jsonl")):
        print(f"{places.RUNS} has no run to show; train one first", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as home:  # not the user's settings
        QStandardPaths.writableLocation = staticmethod(lambda location: f"{home}/{location.value}")
        app = QApplication([])
        for name in arguments.themes:
            theme.apply(app, name)
            window = make_window(Settings(), arguments.preset or "")
            window.resize(*SIZE)
            window.show()
            for state in states(window):
                assert window.size().toTuple() == SIZE, f"{state} needs {window.size().toTuple()}"
                draw(window, f"{state}_{name}")
            window.document.mark_saved(window.document.origin)
            window.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
