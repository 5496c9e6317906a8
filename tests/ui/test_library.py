"""The list of runs: every run folder, joined with what the queue knows, and cheap to keep up to date."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ui.test_history import RECORDED
from tests.ui.test_queue import drive, fake_trainer, preset, window  # noqa: F401  fixtures
from ui.core.runs import launch
from ui.core.runs import library as lists
from ui.core.runs.jobs import Job
from ui.core.runs.library import Library, scan
from ui.core.runs.states import State, glance


def recorded(folder: Path, name: str, time: str = "2026-11-22T12:40:12+00:00") -> Path:
    folder.mkdir(exist_ok=True)
    run = folder.parent / f"{name}.new"  # moved there when it is complete: somebody may be looking
    run.mkdir()
    (run / "preset.json").write_text(json.dumps({"family": "sdxl", "adapter": {"method": "wora"}}))
    (run / "environment.json").write_text(json.dumps([{"time": time}]))
    shutil.copy(RECORDED / "good.jsonl", run / "events.jsonl")
    return run.rename(folder / name)


@pytest.fixture
def library(tmp_path, window, qtbot, monkeypatch):  # noqa: F811
    monkeypatch.setattr(lists, "EVERY", 50)
    (tmp_path / "runs").mkdir(exist_ok=True)
    library = Library([tmp_path / "runs"], window())
    yield library
    library.close()


def shown(library: Library) -> dict[str, State]:
    return {seen.name: seen.status.state for seen in library.glances}


def test_runs_are_found_newest_first_and_other_folders_are_not(tmp_path, library, qtbot):
    recorded(tmp_path / "runs", "old", "2026-01-01T00:00:00+00:00")
    (tmp_path / "runs/no run").mkdir()
    recorded(tmp_path / "runs", "größer werden", "2026-02-01T00:00:00+00:00")
    recorded(tmp_path / "other", "new", "2026-03-01T00:00:00+00:00")
    qtbot.waitUntil(lambda: len(library.glances) == 2)
    library.runs_folders.append(tmp_path / "other")
    qtbot.waitUntil(lambda: len(library.glances) == 3)
    assert [seen.name for seen in library.glances] == ["new", "größer werden", "old"]
    assert library.glance(tmp_path / "other/new") == library.glances[0] and library.glance(tmp_path) is None
    shutil.rmtree(tmp_path / "runs/old")
    qtbot.waitUntil(lambda: len(library.glances) == 2)


def test_nothing_is_read_again_that_has_not_changed(tmp_path, monkeypatch):
    run, known, looks = recorded(tmp_path, "a"), {}, []

    def counted(folder: Path):
        looks.append(folder)
        return glance(folder)

    monkeypatch.setattr(lists, "glance", counted)
    first = scan([tmp_path], [], known)
    assert scan([tmp_path], [], known) == first and looks == [run]
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-11-22T14:00:00+00:00", "event": "stage", "name": "load", "detail": ""}\n')
    assert scan([tmp_path], [], known) != first and looks == [run, run]


def test_the_last_words_of_a_vanished_run_are_shown_when_the_queue_has_put_them_there(tmp_path):
    run, known = recorded(tmp_path, "a"), {}
    (run / "events.jsonl").write_text((run / "events.jsonl").read_text().split("\n")[0] + "\n")
    assert scan([tmp_path], [], known)[0][0].status.state is State.VANISHED
    (run / "output.txt").write_text("Killed by the machine: no memory is left\n")
    assert "no memory is left" in scan([tmp_path], [], known)[0][0].status.sentence


def test_a_job_that_was_stopped_before_it_began_does_not_vanish_for_a_moment(tmp_path):
    of_old = launch.Process(999999999, 5.0, launch.HOST)
    job = Job("id", "a", tmp_path / "a.json", tmp_path / "a", tmp_path / "a.out", "any", False, "", tmp_path, of_old)
    assert lists.joined(lists.of_job(job), job).status.state is State.VANISHED
    job = replace(job, stop_asked=True)
    assert lists.joined(lists.of_job(job), job).status.state is State.STOPPING


def test_no_signal_comes_when_nothing_has_changed(tmp_path, library, qtbot):
    recorded(tmp_path / "runs", "a")
    qtbot.waitUntil(lambda: len(library.glances) == 1)
    with qtbot.assertNotEmitted(library.changed, wait=250):
        pass


def test_a_folder_that_cannot_be_read_is_a_sentence_and_the_others_are_shown(tmp_path, library, qtbot):
    recorded(tmp_path / "runs", "a")
    with qtbot.waitSignal(library.problem) as said:
        library.runs_folders.append(tmp_path / "gone")
    assert str(tmp_path / "gone") in said.args[0]
    assert list(shown(library)) == ["a"]


def test_a_job_from_start_to_end(tmp_path, library, qtbot):
    queue = library._queue
    job = queue.add(preset(tmp_path, steps=10, pause=0.05), "größer werden")
    seen = []

    def look() -> bool:
        for one in library.glances:
            if not seen or seen[-1] is not one.status.state:
                seen.append(one.status.state)
        return bool(seen) and seen[-1] is State.FINISHED and not queue.jobs

    drive(qtbot, queue, look)
    assert [one for one in seen if one is not State.STARTING] == [State.RUNNING, State.FINISHED]
    assert seen[0] is State.STARTING
    one = library.glances[0]
    assert one.folder == job.folder and one.step == one.steps == 10 and one.exported is not None


def test_a_job_that_never_began_shows_why_and_goes_when_it_is_removed(tmp_path, library, qtbot):
    queue = library._queue
    job = queue.add({**preset(tmp_path, "refuse"), "adapter": {"method": "wora"}, "description": "d"}, "a")
    drive(qtbot, queue, lambda: shown(library) == {"a": State.REFUSED})
    one = library.glances[0]
    assert "no such folder" in one.status.sentence and (one.job, one.method) == (job.id, "wora")
    queue.remove(job.id)
    qtbot.waitUntil(lambda: not library.glances)


def test_a_run_that_waits_to_go_on_and_one_whose_going_on_was_refused(tmp_path, library, qtbot):
    queue = library._queue
    run = recorded(tmp_path / "runs", "a")
    values = {**preset(tmp_path, "refuse"), "adapter": {"method": "wora"}}
    (run / "preset.json").write_text(json.dumps(values))
    lines = (run / "events.jsonl").read_text().splitlines()[:30]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    (run / "state/step-000060").mkdir(parents=True)
    qtbot.waitUntil(lambda: shown(library) == {"a": State.VANISHED})
    assert library.glances[0].resumable
    queue.paused = True
    queue.resume(run)
    qtbot.waitUntil(lambda: shown(library) == {"a": State.WAITING})
    assert not library.glances[0].resumable
    queue.paused = False
    drive(qtbot, queue, lambda: shown(library) == {"a": State.REFUSED})
    assert library.glances[0].resumable and run.exists()
    queue.remove(queue.ended[0].id)
    qtbot.waitUntil(lambda: shown(library) == {"a": State.VANISHED})
    assert (run / "preset.json").exists(), "removing a resumed job deletes nothing of its run"
