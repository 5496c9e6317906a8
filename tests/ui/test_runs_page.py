"""The runs page on recorded runs: what the user sees, which buttons can be pressed, and what pressing them does."""

import json
import os
import shutil
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest
from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QPushButton

from ui.core.runs import launch
from ui.core.runs import library as libraries
from ui.core.runs.devices import Devices
from ui.core.runs.library import Library
from ui.core.runs.queue import Queue
from ui.core.runs.states import Glance, State, Status
from ui.core.settings import Settings
from ui.pages.runs import side as sides
from ui.pages.runs.controls import Controls, Subject
from ui.pages.runs.row_list import RunList
from ui.pages.runs.runs_page import RunsPage

RECORDED = Path(__file__).parent / "recorded"
PRESET = {
    "family": "sdxl",
    "adapter": {"method": "wora"},
    "description": "",
    "samples": {"enabled": True},
}
STARTED = "2026-11-22T12:40:12+00:00"


def made_run(folder: Path, recorded: str, alive: bool = False, state: bool = True) -> Path:
    """A run folder with recorded events; alive: this very process is its trainer."""
    folder.mkdir(parents=True)
    shutil.copy(RECORDED / f"{recorded}.jsonl", folder / "events.jsonl")
    (folder / "log.txt").write_text("first line\nsomething happened\nlast line\n")
    me = psutil.Process(os.getpid())
    process = {"pid": me.pid, "created": me.create_time() if alive else 1.0, "host": launch.HOST, "folder": str(folder)}
    (folder / "environment.json").write_text(json.dumps([{"time": STARTED, "process": process}]))
    (folder / "requests").mkdir()
    if state:
        (folder / "state/step-000005").mkdir(parents=True)
        (folder / "state/step-000005/state.json").write_text("{}")
    (folder / "preset.json").write_text(json.dumps(PRESET))
    return folder


def running(folder: Path) -> Path:
    """A run that works: the recorded good one, before its end."""
    made_run(folder, "good", alive=True)
    lines = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.jsonl").write_text("\n".join(lines[:25]) + "\n")
    return folder


def add_events(folder: Path, *events: dict) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps({"time": now, **event}) + "\n" for event in events)


@pytest.fixture
def page(tmp_path, qtbot, monkeypatch):
    """Makes the page on the runs in tmp_path/runs. No device is known, so that the queue starts nothing."""
    monkeypatch.setattr(libraries, "EVERY", 100)
    made: list[RunsPage] = []

    def make() -> RunsPage:
        (tmp_path / "runs").mkdir(exist_ok=True)
        queue = Queue(tmp_path / "queue", Devices())
        page = RunsPage(queue, Library([tmp_path / "runs"], queue), Settings())
        made.append(page)
        qtbot.addWidget(page)
        page.resize(900, 660)
        page.show()
        qtbot.waitUntil(lambda: page.library.is_loaded)
        return page

    yield make
    for page in made:
        page.live.close_run()
        page.library.close()
        page.queue.close()


def shown(page: RunsPage, qtbot, folder: Path) -> RunsPage:
    """The page when it has read the run in a folder."""
    page.show_run(folder)
    follower = page.live.follower
    assert follower and follower.folder == folder
    qtbot.waitUntil(lambda: follower.history.last_time != "")
    page.live.on_grew()
    return page


def buttons(widget) -> dict[str, bool]:
    """The buttons that are seen, and whether they can be pressed."""
    found = [one for one in widget.findChildren(QPushButton) if not one.isHidden() and one.text()]
    return {one.text(): one.isEnabled() for one in found}


def messages(page: RunsPage) -> list[str]:
    tree = page.live.messages.list
    return [item.text(1) for row in range(tree.topLevelItemCount()) if (item := tree.topLevelItem(row))]


# -- what is seen of a run


def test_without_runs_the_page_says_what_to_do(page):
    page = page()
    assert page.empty.isVisible() and "Train" in page.empty.text()
    assert page.side.no_runs.isVisible() and page.side.no_jobs.isVisible()


def test_a_good_run(page, tmp_path, qtbot):
    run = made_run(tmp_path / "runs/good one", "good")
    (run / "wora_demo.safetensors").write_bytes(b"x")
    page = shown(page(), qtbot, run)
    live = page.live
    assert (live.name.text(), live.word.text()) == ("good one", "finished")
    assert "Finished" in live.sentence.text() and live.progress.text().startswith("Step 2")
    assert live.bar.value() == live.follower.history.step
    assert live.facts["Time left"].text() == "–" and "(-" in live.facts["Validation"].text()
    assert "MiB" in live.facts["Memory"].text()
    assert live.gallery.model.columnCount() >= 2 and live.gallery.model.rowCount() >= 1
    assert any(text.startswith("Saved ") and "B," in text for text in messages(page))
    assert "Resume" not in buttons(live) and "Stop" not in buttons(live)
    live.controls.copy.trigger()
    assert QGuiApplication.clipboard().text().endswith("wora_demo.safetensors")


def test_a_failed_run_says_its_error_and_leads_to_the_log(page, tmp_path, qtbot):
    page = shown(page(), qtbot, made_run(tmp_path / "runs/bad", "failed"))
    live = page.live
    qtbot.waitUntil(lambda: live.word.text() == "failed")
    assert "The loss is not a finite number at step 8" in live.sentence.text()
    assert live.tabs.tabText(2) == "Messages (2)"
    assert live.facts["Loss"].text() != "non-finite", "the average is still a number"
    assert buttons(live)["Resume"] and buttons(live)["Show log"]
    live.controls.log.trigger()
    assert live.log.isVisible()
    qtbot.waitUntil(lambda: "something happened" in live.log.text.toPlainText())


def test_a_vanished_run_can_be_resumed(page, tmp_path, qtbot):
    run = made_run(tmp_path / "runs/gone", "truncated")
    page = shown(page(), qtbot, run)
    qtbot.waitUntil(lambda: page.live.word.text() == "crashed")
    assert "killed" in page.live.sentence.text()
    assert page.live.progress.text() == "Step 7 of 240", "the half line does not count"
    page.live.controls.resume.trigger()
    assert [(job.folder, job.resume) for job in page.queue.jobs] == [(run, True)]
    qtbot.waitUntil(lambda: page.live.word.text() == "waiting")


def test_unknown_events_and_broken_lines_are_told(page, tmp_path, qtbot):
    run = made_run(tmp_path / "runs/odd", "unknown")
    with (run / "events.jsonl").open("a") as file:
        file.write("this is no event\n")
    page = shown(page(), qtbot, run)
    qtbot.waitUntil(lambda: any("cannot be read" in text for text in messages(page)))
    assert any("2 events of the kind “weather”" in text for text in messages(page))


def test_a_resumed_run_shows_each_step_once(page, tmp_path, qtbot):
    page = shown(page(), qtbot, made_run(tmp_path / "runs/again", "resumed"))
    steps = list(page.live.follower.history.curves["loss"].steps)
    qtbot.waitUntil(lambda: page.live.curves.curves is not None)
    drawn = page.live.curves.curves.lines[page.live.folder, "raw"].getOriginalDataset()[0]
    assert list(drawn) == steps == sorted(set(steps))


def test_a_run_is_followed_while_it_grows(page, tmp_path, qtbot):
    run = running(tmp_path / "runs/growing")
    page = shown(page(), qtbot, run)
    before = page.live.follower.history.step
    qtbot.waitUntil(lambda: page.live.word.text() == "running")
    step = dict(page.live.follower.history.latest, step=before + 1)
    step.pop("time")
    add_events(run, step, {"event": "warning", "message": "Something to know.", "detail": "and more"})
    qtbot.waitUntil(lambda: page.live.progress.text() == f"Step {before + 1} of {step['steps']}")
    qtbot.waitUntil(lambda: "Something to know." in messages(page))
    tree = page.live.messages.list
    tree.setCurrentItem(tree.topLevelItem(messages(page).index("Something to know.")))
    assert page.live.messages.detail.toPlainText() == "Something to know.\n\nand more"


@pytest.mark.full
def test_a_hundred_thousand_steps_do_not_block_the_window(page, tmp_path, qtbot):
    run = made_run(tmp_path / "runs/long", "good")
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["event"] == "step")
    with (run / "events.jsonl").open("w") as file:
        file.writelines(json.dumps({**step, "step": n, "steps": 100_000}) + "\n" for n in range(1, 100_001))
    page = page()
    page.show_run(made_run(tmp_path / "runs/short", "good"))
    qtbot.waitUntil(lambda: page.live.curves.curves is not None)
    seen: set[int] = set()
    timer = QTimer(interval=1, timeout=lambda: seen.add(page.live.follower.history.step))
    timer.start()
    page.show_run(run)
    qtbot.waitUntil(lambda: page.live.follower.history.step == 100_000, timeout=20_000)
    timer.stop()
    assert len(seen) > 20, "the window answers between small slices"
    assert len(page.live.curves.curves.lines[run, "raw"].getOriginalDataset()[0]) > 50_000
    page.live.loaded = False
    page.live.on_slow()
    assert "Reading" in page.live.curves.note.text() and page.live.curves.note.isVisible(), "not another run's curves"


# -- the buttons

ALIVE = {"Stop": True, "Save now": True, "Sample now": True}


@pytest.mark.parametrize(
    "state, resumable, samples, expected",
    [
        (State.RUNNING, False, True, ALIVE),
        (State.RUNNING, False, False, ALIVE | {"Sample now": False}),
        (State.STARTING, False, True, ALIVE | {"Save now": False, "Sample now": False}),
        (State.STOPPING, False, True, {"End now …": True, "Save now": False, "Sample now": False}),
        (State.FINISHED, False, True, {}),
        (State.WAITING, False, True, {}),
        (State.ELSEWHERE, False, True, {}),
        (State.STOPPED, True, True, {"Resume": True, "Show log": True}),
        (State.FAILED, True, True, {"Resume": True, "Show log": True}),
        (State.VANISHED, False, True, {"Start again": True, "Show log": True}),
        (State.REFUSED, False, True, {"Try again": True, "Show log": True}),
    ],
)
def test_buttons_are_there_when_they_can_do_something(tmp_path, qtbot, state, resumable, samples, expected):
    controls = Controls(Queue(tmp_path / "queue", Devices()))
    qtbot.addWidget(controls)
    process = launch.Process(1, 1.0, launch.HOST)
    glance = Glance(tmp_path, "run", Status(state, "."), resumable=resumable, process=process)
    controls.show_subject(Subject(tmp_path, state, glance, None, samples))
    always = {"Open folder": True, "Open preset": True, "TensorBoard": True}
    assert buttons(controls) == expected | always
    controls.queue.close()


def test_requests_are_files_and_are_answered(page, tmp_path, qtbot):
    run = running(tmp_path / "runs/busy")
    page = shown(page(), qtbot, run)
    live = page.live
    qtbot.waitUntil(lambda: live.word.text() == "running")
    live.controls.save.trigger()
    assert [path.name for path in (run / "requests").iterdir()] == ["save"]
    assert "saved after this step" in live.answer.text() and not buttons(live)["Save now"]
    assert buttons(live)["Sample now"], "other things can still be asked"
    live.controls.sample.trigger()
    assert {path.name for path in (run / "requests").iterdir()} == {"save", "sample"}
    add_events(run, {"event": "saved", "what": "state", "path": "state/step-000011", "step": 11, "bytes": 2048})
    qtbot.waitUntil(lambda: "State saved" in live.answer.text())
    assert buttons(live)["Save now"] and not buttons(live)["Sample now"]


def test_after_stop_the_run_can_be_ended_at_once_but_only_when_asked_twice(page, tmp_path, qtbot, monkeypatch):
    run = running(tmp_path / "runs/busy")
    page = shown(page(), qtbot, run)
    live, killed = page.live, []
    qtbot.waitUntil(lambda: live.word.text() == "running")
    assert "End now …" not in buttons(live)
    live.controls.stop.trigger()
    assert (run / "requests/stop").exists() and "Stop" not in buttons(live)
    qtbot.waitUntil(lambda: live.word.text() == "stopping")
    monkeypatch.setattr(launch, "kill", killed.append)
    live.controls.end.trigger()
    press("&Cancel")
    assert not killed
    live.controls.end.trigger()
    press("&End now")
    assert [process.pid for process in killed] == [os.getpid()]


def press(text: str) -> None:
    """Answer the question that is open."""
    box = QApplication.activeModalWidget()
    next(button for button in box.findChildren(QPushButton) if button.text() == text).click()


def test_a_request_that_cannot_be_written_is_a_sentence(page, tmp_path, qtbot):
    run = running(tmp_path / "runs/busy")
    shutil.rmtree(run / "requests")
    (run / "requests").write_text("")
    page = shown(page(), qtbot, run)
    qtbot.waitUntil(lambda: page.live.word.text() == "running")
    page.live.controls.save.trigger()
    assert "requests" in page.live.answer.text() and buttons(page.live)["Save now"]


# -- the lists


def names(rows: RunList) -> list[str]:
    return [row.name for row in rows.rows()]


@pytest.fixture
def three(page, tmp_path):
    """The page with three waiting jobs and a past run."""
    made_run(tmp_path / "runs/past", "good")
    page = page()
    for name in ("one", "two", "three"):
        page.queue.add({**PRESET, "saving": {"folder": str(tmp_path / "runs")}}, name)
    return page


def test_jobs_are_moved_by_buttons_and_keys(three, qtbot):
    side = three.side
    assert names(side.jobs) == ["one", "two", "three"]
    side.jobs.setCurrentRow(2)
    side.up.trigger()
    assert names(side.jobs) == ["one", "three", "two"] and side.jobs.current().name == "three"
    side.first.trigger()
    assert names(side.jobs) == ["three", "one", "two"]
    assert not side.up.isEnabled() and not side.first.isEnabled() and side.down.isEnabled()
    side.jobs.setFocus()
    qtbot.keyClick(side.jobs, Qt.Key.Key_Down, Qt.KeyboardModifier.AltModifier)
    assert [job.name for job in three.queue.jobs] == ["one", "three", "two"]


def test_a_dragged_job_is_moved_in_the_queue(three, qtbot):
    jobs = three.side.jobs
    jobs.model().moveRow(jobs.model().index(0, 0).parent(), 0, jobs.model().index(0, 0).parent(), 3)
    qtbot.waitUntil(lambda: [job.name for job in three.queue.jobs] == ["two", "three", "one"])
    assert names(jobs) == ["two", "three", "one"]


def test_taking_a_job_out_asks_first(three):
    three.side.jobs.setCurrentRow(1)
    three.side.cancel.trigger()
    press("&Cancel")
    assert len(three.queue.jobs) == 3
    three.side.cancel.trigger()
    press("&Remove")
    assert [job.name for job in three.queue.jobs] == ["one", "three"]


def test_only_one_list_has_a_choice_and_the_right_shows_it(three, qtbot):
    qtbot.waitUntil(lambda: names(three.side.runs) == ["past"])
    three.side.jobs.setCurrentRow(1)
    assert three.live.name.text() == "two" and three.live.word.text() == "waiting"
    assert three.side.runs.current() is None and three.live.sentence.text()
    three.side.runs.setCurrentRow(0)
    assert three.live.name.text() == "past" and three.side.jobs.current() is None


def test_the_filter_finds_by_name_and_method(three, qtbot):
    qtbot.waitUntil(lambda: names(three.side.runs) == ["past"])
    three.side.filter.setText("WORA")
    assert names(three.side.runs) == ["past"]
    three.side.filter.setText("nothing of that kind")
    assert names(three.side.runs) == [] and three.side.no_runs.text() == sides.NO_MATCH


def test_what_runs_is_chosen_at_the_start(page, tmp_path):
    made_run(tmp_path / "runs/a past one", "good")
    run = running(tmp_path / "runs/working")
    assert page().live.folder == run


def test_a_second_window_only_watches(three, tmp_path, qtbot):
    queue = Queue(tmp_path / "queue", Devices())
    library = Library([tmp_path / "runs"], queue)
    second = RunsPage(queue, library, Settings())
    qtbot.addWidget(second)
    second.show()
    assert second.side.watching.isVisible() and "controls the queue" in second.side.watching.text()
    second.side.jobs.setCurrentRow(1)
    assert not second.side.cancel.isEnabled() and not second.side.pause.isEnabled()
    second.live.close_run()
    library.close()
    queue.close()
