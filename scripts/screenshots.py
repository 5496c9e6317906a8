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
from PySide6.QtCore import QEventLoop, QStandardPaths, Qt, QTimer
from PySide6.QtWidgets import QApplication

from modules.answer import script
from ui.app import make_window
from ui.core import places
from ui.core.settings import Settings
from ui.frame.window import CHANGES, RUNS, Window
from ui.pages.pictures.pictures_page import PicturesPage
from ui.widgets import theme

SIZE = (1100, 740)
OUT = places.ROOT / "docs/images"
PATIENCE = 60_000
"""Milliseconds for a page to have everything it shows."""


def pause(milliseconds: int) -> None:
    """Let the window work for a while. (QTest.qWait would hold Python's lock against the window's workers.)"""
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def wait(condition) -> None:
    """Let the window work until a condition is true."""
    for _ in range(PATIENCE // 50):
        if condition():
            break
        pause(50)
    else:
        sys.exit(f"timeout waiting for {condition}")
    pause(700)


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
        pause(400)
        yield place.key.removeprefix("page ") or "general"
    window.document.set("samples.guidance", 3.5)
    window.document.set("training.learning_rate", 5e-4)
    window.document.set("training.steps", 0)
    window.show_page(CHANGES)
    pause(300)
    yield "changes"
    window.on_first_problem()
    pause(1500)
    yield "problem"
    window.document.undo.undo()
    wait(lambda: window.check.findings is not None)
    yield from runs(window)


def runs(window: Window) -> Iterator[str]:
    """The page of the runs, on the run of the open preset if there is one."""
    window.show_page(RUNS)
    live = window.runs.live
    if (places.RUNS / window.document.origin.name).is_dir():
        window.runs.show_run(places.RUNS / window.document.origin.name)
    wait(lambda: live.loaded and live.curves.curves is not None)
    for number in range(live.tabs.count()):
        live.tabs.setCurrentIndex(number)
        pause(1500)
        yield "runs_" + live.tabs.tabText(number).split(" ")[0].lower()
    live.tabs.setCurrentWidget(live.gallery)
    live.gallery.on_grid_opened(0, len(live.gallery.model.steps) - 1)
    pause(1500)
    yield "runs_before_after"
    live.tabs.setCurrentWidget(live.curves)
    live.curves.compare.setChecked(True)
    for item in [live.curves.panel.list.item(row) for row in range(min(2, live.curves.panel.list.count()))]:
        item.setCheckState(Qt.CheckState.Checked)
    pause(1500)
    yield "runs_compare"


def wait_for_pictures(page: PicturesPage) -> None:
    """Wait until the pictures are read; then choose the first one."""
    wait(lambda: page.model.rowCount() > 0)
    page.parts.grid.select(page.model.pictures[0].key)
    pause(1500)


def draw(window: Window, name: str) -> None:
    """One picture, with few colours, so that the repository stays small."""
    path = OUT / f"window_{name}.png"
    window.grab().save(str(path))
    full = Image.open(path).convert("RGB")
    often = sorted(full.getcolors(full.width * full.height) or [], reverse=True)[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for _, color in often for value in color])  # pyright: ignore
    full.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.relative_to(places.ROOT), f"{path.stat().st_size / 1024:.0f} KiB")


def main() -> int:
    """Draw all pages in both themes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default=None, help="the preset to show; default: a trainable one")
    parser.add_argument("--themes", nargs="+", default=["light", "dark"], choices=["light", "dark"])
    arguments = parser.parse_args()
    if not any(places.RUNS.glob("*/events.jsonl")):
        print(f"{places.RUNS} has no finished run; train one first", file=sys.stderr)
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
    sys.exit(script(main))
