"""From the window to exported files, with the real trainer: queued, watched, closed and reopened, killed, resumed."""

import json
import re
import shutil
import time
from pathlib import Path

import psutil
import pytest

from ui.app import make_window
from ui.core import places
from ui.core.runs import states
from ui.core.runs.states import State
from ui.core.settings import Settings
from ui.frame.window import RUNS, Window
from ui.widgets import dialogs

PATIENCE = 150_000
"""Milliseconds that a training may take to get somewhere on a busy machine."""


@pytest.fixture
def open_window(qapp, qtbot, monkeypatch):
    """Makes windows whose dialogs are accepted and whose check stays quiet."""
    monkeypatch.setattr("ui.core.check.Check.on_quiet", lambda self: None)
    monkeypatch.setattr(dialogs.QueueDialog, "exec", lambda self: True)
    monkeypatch.setattr(dialogs, "ask_unsaved", lambda parent, document: "discard")

    def opened() -> Window:
        window = make_window(Settings(), "wora_demo")
        qtbot.addWidget(window)
        window.show()
        return window

    return opened


def set_up(window: Window, runs: Path, steps: int) -> None:
    """A small training of the demo, on four of its pictures."""
    pictures = runs.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    for picture in sorted((places.ROOT / "demo/dataset").glob("*.png"))[:4]:
        for path in (picture, picture.with_suffix(".txt")):
            shutil.copy(path, pictures)
    for path, value in {
        "adapter.rank": 3,
        "training.steps": steps,
        "training.warmup": 2,
        "training.batch_size": 2,
        "samples.enabled": False,
        "validation.every": 0,
        "saving.state_every": 3,
        "saving.folder": str(runs),
        "data.folders": [str(pictures)],
        "data.cache_folder": str(runs.parent / "cache"),
    }.items():
        window.document.set(path, value)


def wait_for(qtbot, window: Window, folder: Path, *wanted: State, step: int = 0) -> None:
    """Until the window's list says that a run is in one of these states, and has come to a step."""

    def there() -> bool:
        seen = window.library.glance(folder)
        return seen is not None and seen.status.state in wanted and seen.step >= step

    last = time.monotonic() + PATIENCE / 1000
    while not there() and time.monotonic() < last:
        qtbot.wait(200)  # `waitUntil` asks each 10 ms, which takes as much time as the training has
    assert there(), window.library.glance(folder)


@pytest.mark.full
def test_two_jobs_run_while_the_window_is_closed_and_opened(open_window, qtbot, tmp_path):
    runs = places.RUNS
    first = open_window()
    set_up(first, runs, steps=12)
    first.on_train()
    set_up(first, runs, steps=4)
    first.document.set("adapter.method", "doft")
    first.document.set("name", "second")
    first.on_train()
    one, two = runs / "wora_demo", runs / "second"
    wait_for(qtbot, first, one, State.RUNNING, step=2)
    assert [job.name for job in first.queue.jobs] == ["wora_demo", "second"]
    assert first.queue.jobs[0].running and first.queue.jobs[1].waiting, "one at a time on one device"
    first.close()

    again = open_window()
    again.show_page(RUNS)
    wait_for(qtbot, again, one, State.RUNNING, State.FINISHED)
    wait_for(qtbot, again, one, State.FINISHED)
    assert (one / "wora_demo.safetensors").exists()
    wait_for(qtbot, again, two, State.FINISHED)
    assert (two / "second.safetensors").exists()
    kept = json.loads((one / "preset.json").read_text())
    assert kept["adapter"]["rank"] == 3 and kept["training"]["steps"] == 12 and kept["name"] == "wora_demo"
    again.runs.show_run(one)
    qtbot.waitUntil(lambda: again.runs.live.follower.history.step == 12, timeout=10_000)
    assert len(again.runs.live.follower.history.curves["loss"].steps) == 12
    qtbot.waitUntil(lambda: not again.queue.jobs, timeout=10_000)


@pytest.mark.full
def test_a_killed_trainer_is_told_and_resumed(open_window, qtbot):
    window = open_window()
    set_up(window, places.RUNS, steps=2000)
    window.on_train()
    folder = places.RUNS / "wora_demo"
    wait_for(qtbot, window, folder, State.RUNNING, step=7)
    trainer = psutil.Process(states.glance(folder).process.pid)
    trainer.kill()
    wait_for(qtbot, window, folder, State.VANISHED)
    seen = window.library.glance(folder)
    assert seen.resumable and "killed, crashed" in seen.status.sentence
    killed_at = seen.step
    window.show_page(RUNS)
    window.runs.show_run(folder)
    resume = next(action for action in window.runs.run_actions if "Resume" in action.text().replace("&", ""))
    qtbot.waitUntil(resume.isEnabled, timeout=5_000)
    resume.trigger()
    wait_for(qtbot, window, folder, State.RUNNING, step=killed_at + 1)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    resumed = next(i for i, event in enumerate(events) if event["event"] == "stage" and event["name"] == "resume")
    before, after = ([e["step"] for e in part if e["event"] == "step"] for part in (events[:resumed], events[resumed:]))
    kept = int(re.findall(r"step (\d+)", events[resumed]["detail"])[0])
    assert kept > 0 and kept % 3 == 0, "from a state, which is kept every three steps"
    assert before[-1] - 3 <= kept <= before[-1] and after[0] == kept + 1, "the last one; no step is left out"
    stop = next(action for action in window.runs.run_actions if action.text().replace("&", "").startswith("Stop"))
    qtbot.waitUntil(stop.isEnabled, timeout=5_000)
    stop.trigger()
    wait_for(qtbot, window, folder, State.STOPPED)
