"""Whether the window stays quick with much to show: `python benchmarks/window_load.py`.

A run of 100,000 steps is opened and scrolled through, and a folder of 2,000 pictures. Printed are the seconds until all
is there, and the longest time for which the window answered nothing, from a timer that should tick every 5 ms.
"""

import json
import os
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from PySide6.QtCore import QEventLoop, QStandardPaths, QTimer
from PySide6.QtWidgets import QApplication

from ui.app import make_window
from ui.core import places
from ui.core.settings import Settings
from ui.frame.window import PICTURES, RUNS, Window
from ui.widgets import theme

STEPS, PICTURE_COUNT = 100_000, 2_000


class Heartbeat:
    """The times between the ticks of a timer on the window's thread."""

    def __init__(self):
        self.last, self.gaps = time.perf_counter(), [0.0]
        self.timer = QTimer(interval=5)
        self.timer.timeout.connect(self.on_timeout)
        self.timer.start()

    def on_timeout(self) -> None:
        """A tick."""
        now = time.perf_counter()
        self.gaps.append(now - self.last)
        self.last = now

    def report(self, what: str, since: float) -> None:
        """Print what it has seen since the last report."""
        gaps = sorted(self.gaps)
        print(
            f"{what:44} {time.perf_counter() - since:6.2f} s   longest without an answer {gaps[-1] * 1e3:5.0f} ms, "
            f"99 % of the time below {gaps[int(len(gaps) * 0.99)] * 1e3:4.0f} ms"
        )
        self.gaps = [0.0]


def pause(milliseconds: int) -> None:
    """Let the window work for a while. (QTest.qWait would hold Python's lock against the window's workers.)"""
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def wait(condition) -> None:
    """Let the window work until something is so."""
    while not condition():
        pause(5)


def write_run(folder: Path, steps: int) -> None:
    """A finished run."""
    folder.mkdir(parents=True)
    (folder / "preset.json").write_text("{}")
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
    with (folder / "events.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            facts = {"step": step, "steps": steps, "epoch": step / 100, "loss": 0.1 + 0.05 * (step * 7919 % 101) / 101}
            facts |= {"loss_average": 0.12, "learning_rate": 1e-4, "grad_norm": 0.3, "seconds": step * 0.5}
            facts |= {"seconds_per_step": 0.5, "seconds_left": (steps - step) * 0.5, "memory_mb": 9000.0, "adapter": {}}
            if step % 100 == 0:
                facts["adapter"] = {"alpha": 1 + step / steps, "beta": 1 - step / steps}
            time_ = (moment + timedelta(seconds=step / 2)).isoformat(timespec="milliseconds")
            file.write(json.dumps({"time": time_, "event": "step", **facts}) + "\n")
        end = {"event": "finished", "outcome": "done", "exit_code": 0, "step": steps, "path": None}
        file.write(json.dumps({"time": moment.isoformat(), **end}) + "\n")


def write_pictures(folder: Path) -> None:
    """Many pictures of several shapes, with captions."""
    folder.mkdir(parents=True)
    for number in range(PICTURE_COUNT):
        size = ((512, 512), (640, 384), (384, 640))[number % 3]
        Image.new("RGB", size, (number % 256, number // 8 % 256, 128)).save(folder / f"{number:04}.jpg", quality=80)
        (folder / f"{number:04}.txt").write_text(f"picture number {number}, a colour")


def run_of_many_steps(window: Window, beat: Heartbeat) -> None:
    """Open the run, then look at one part after another."""
    window.show_page(RUNS)
    live = window.runs.live
    live.tabs.setCurrentIndex(0)
    start = time.perf_counter()
    wait(lambda: live.curves.curves is not None)
    pause(500)
    beat.report("the plots' library, once", start)
    write_run(places.RUNS / "long", STEPS)
    beat.gaps, beat.last, start = [0.0], time.perf_counter(), time.perf_counter()
    window.runs.show_run(places.RUNS / "long")
    wait(lambda: live.loaded)
    pause(50)
    beat.report(f"a run of {STEPS:,} steps", start)
    curves, start = live.curves.curves, time.perf_counter()
    assert curves is not None
    for place in range(60):
        curves.loss_plot.setXRange(place * 1000, place * 1000 + 40_000, padding=0)
        curves.grab()
        pause(1)
    print(f"{'scrolling through it':44} {(time.perf_counter() - start) / 60 * 1e3:6.0f} ms for each full picture")
    beat.gaps = [0.0]


def many_pictures(window: Window, beat: Heartbeat, folder: Path) -> None:
    """Open the folder, then scroll through it."""
    window.document.set("data.folders", [str(folder)])
    start = time.perf_counter()
    window.show_page(PICTURES)
    page = window.page(PICTURES)
    wait(lambda: page.model.rowCount() == PICTURE_COUNT)  # pyright: ignore[reportAttributeAccessIssue]
    pause(300)
    beat.report(f"{PICTURE_COUNT:,} pictures, with the trainer's start", start)
    bar, start = page.parts.grid.verticalScrollBar(), time.perf_counter()  # pyright: ignore[reportAttributeAccessIssue]
    for place in range(100):
        bar.setValue(bar.maximum() * place // 99)
        pause(20)
    beat.report("scrolling through them", start)


def main() -> None:
    """Make the material, open the window, measure."""
    with tempfile.TemporaryDirectory() as home:
        QStandardPaths.writableLocation = staticmethod(lambda location: f"{home}/{location.value}")
        places.RUNS = Path(home) / "runs"
        write_run(places.RUNS / "short", 100)
        write_pictures(Path(home) / "pictures")
        app = QApplication([])
        settings = Settings()
        theme.apply(app, "light")
        window = make_window(settings)
        window.resize(1100, 740)
        window.show()
        wait(lambda: window.check.findings is not None)  # not to measure the trainer's check beside it
        beat = Heartbeat()
        run_of_many_steps(window, beat)
        many_pictures(window, beat, Path(home) / "pictures")
        window.document.mark_saved(window.document.origin)
        window.close()


if __name__ == "__main__":
    main()
