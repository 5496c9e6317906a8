"""The queue: order, devices, what it keeps, and jobs that go wrong. The trainer is tests/ui/fake_trainer.py."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ui.core import places, reading
from ui.core.runs import jobs as making
from ui.core.runs import launch
from ui.core.runs.devices import MACHINE, Device, Devices
from ui.core.runs.queue import Queue
from ui.core.runs.states import OUTPUT, State, glance

FAKE = Path(__file__).parent / "fake_trainer.py"


@pytest.fixture(autouse=True)
def fake_trainer(monkeypatch):
    monkeypatch.setattr(places, "TRAIN", FAKE)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def of(*ids: str) -> Devices:
    devices = Devices()
    devices.all = tuple(Device(id, "GPU") for id in ids) or (MACHINE,)
    return devices


@pytest.fixture
def window(tmp_path, qtbot):
    """A function that opens the queue as a window would; the clock is turned by hand."""
    queues = []

    def open_queue(devices: Devices | None = None) -> Queue:
        queue = Queue(tmp_path / "runs/.queue", devices or of())
        queue._timer.stop()
        queues.append(queue)
        return queue

    yield open_queue
    for queue in queues:
        for job in queue.jobs:
            if job.process is not None:
                launch.kill(job.process)
        queue.close()


def preset(tmp_path: Path, mode: str = "good", steps: int = 3, pause: float = 0.01) -> dict:
    how = {"mode": mode, "steps": steps, "pause": pause}
    return {"name": "", "family": "sdxl", "saving": {"folder": str(tmp_path / "runs")}, "fake": how}


def names(queue: Queue) -> list[str]:
    return [job.name for job in queue.jobs]


def drive(qtbot, queue: Queue, until) -> None:
    def look() -> bool:
        queue.tick()
        return until()

    qtbot.waitUntil(look, timeout=15_000)


def state(tmp_path: Path, name: str) -> State:
    return glance(tmp_path / "runs" / name).status.state


def test_jobs_run_one_after_the_other_and_a_failed_one_does_not_block_the_next(window, tmp_path, qtbot):
    queue, most = window(), []
    for name, mode in (("größer werden", "good"), ("b", "fail"), ("c", "refuse"), ("d", "crash"), ("e", "good")):
        queue.add(preset(tmp_path, mode), name)

    def done() -> bool:
        most.append(sum(job.running for job in queue.jobs))
        return not queue.jobs

    drive(qtbot, queue, done)
    assert max(most) == 1
    assert state(tmp_path, "größer werden") is state(tmp_path, "e") is State.FINISHED
    assert state(tmp_path, "b") is State.FAILED
    refused, crashed = queue.ended
    assert refused.ended is not None and refused.ended.state is State.REFUSED
    assert refused.ended.sentence == "data.folders pictures: no such folder\nLook for it.\ntraining.steps: too many"
    assert crashed.ended is not None and crashed.ended.state is State.FAILED
    assert "exit code 1" in crashed.ended.sentence and "RuntimeError: no such library" in crashed.ended.sentence
    assert "step 3" in (tmp_path / "runs/e" / OUTPUT).read_text()
    kept = sorted(path.name for path in queue.folder.iterdir() if path.suffix in (".json", ".out"))
    assert kept == sorted(["queue.json", *(f"{job.id}.{end}" for job in queue.ended for end in ("json", "out"))])
    for job in queue.ended:
        queue.remove(job.id)
    assert [path.name for path in queue.folder.iterdir() if path.suffix in (".json", ".out")] == ["queue.json"]


def test_a_frozen_preset_has_its_name_and_does_not_change(window, tmp_path):
    queue, values = window(), preset(tmp_path)
    job = queue.add(values, "a b")
    values["fake"]["mode"] = "fail"
    frozen = json.loads(job.preset.read_text("utf-8"))
    assert frozen["name"] == "a b" and frozen["fake"]["mode"] == "good" and values["name"] == ""
    assert job.folder == tmp_path / "runs/a b"


def test_order(window, tmp_path):
    queue = window()
    queue.paused = True
    a, b, c = (queue.add(preset(tmp_path), name) for name in "abc")
    queue.add(preset(tmp_path), "first", next=True)
    assert names(queue) == ["first", "a", "b", "c"]
    queue.run_next(c.id)
    queue.move(a.id, 99)
    queue.move(b.id, 1)
    assert names(queue) == ["c", "b", "first", "a"]
    queue.tick()
    assert not any(job.running for job in queue.jobs), "a paused queue starts nothing"
    assert queue.waits(c) == "The queue is paused."
    queue.remove(b.id)
    assert not b.preset.exists() and names(queue) == ["c", "first", "a"]
    queue.paused = False
    assert [job.running for job in queue.jobs] == [True, False, False]
    running, waiting = queue.jobs[:2]
    assert queue.waits(waiting) == "Waiting for c to finish."
    assert queue.waits(queue.jobs[2]) == "1 job before it."
    for refused in (lambda: queue.remove(running.id), lambda: queue.move(running.id, 1), lambda: queue.remove(b.id)):
        with pytest.raises(ValueError, match="running|not waiting|no longer"):
            refused()


def waiting(id: str, device: str) -> making.Job:
    return making.Job(id, id, Path(), Path(), Path(), device, False, "", Path())


def running(id: str, *on: str) -> making.Job:
    return replace(waiting(id, "any"), process=launch.Process(1, 0, ""), places=on)


@pytest.mark.parametrize(
    "jobs, starting",
    (
        ([waiting("a", "any"), waiting("b", "any"), waiting("c", "any")], {"a": "0", "b": "1"}),
        ([waiting("a", "1"), waiting("b", "any"), waiting("c", "1")], {"a": "1", "b": "0"}),
        ([waiting("a", "all"), waiting("b", "any")], {"a": "01"}),
        ([running("r", "1"), waiting("a", "all"), waiting("b", "any")], {}),
        ([running("r", "0"), waiting("a", "0"), waiting("b", "any"), waiting("c", "any")], {"b": "1"}),
        ([running("r", "0", "1"), waiting("a", "any")], {}),
        ([waiting("a", "7"), waiting("b", "any")], {"b": "0"}),
    ),
)
def test_devices(jobs, starting):
    assert {job.id: "".join(devices) for job, devices in making.ready(jobs, ["0", "1"])} == starting


def test_nothing_starts_before_the_devices_are_known_and_a_missing_one_is_said(window, tmp_path, qtbot):
    unknown = Devices()
    queue = window(unknown)
    job = queue.add(preset(tmp_path), "a", device="3")
    queue.tick()
    assert job.waiting
    unknown.on_found((Device("0", "GPU"), Device("1", "GPU")))
    queue.tick()
    assert "GPU 3 is not in this machine" in queue.waits(job)
    queue.remove(job.id)
    job = queue.add(preset(tmp_path), "a", device="1")
    queue.tick()
    drive(qtbot, queue, lambda: not queue.jobs)
    assert "on GPUs 1" in (job.folder / OUTPUT).read_text()


def test_stopping_and_going_on(window, tmp_path, qtbot):
    queue = window()
    job = queue.add(preset(tmp_path, steps=30, pause=0.03), "größer werden")
    drive(qtbot, queue, lambda: glance(job.folder).step >= 2)
    assert state(tmp_path, job.name) is State.RUNNING
    queue.stop(job.id)
    assert state(tmp_path, job.name) in (State.STOPPING, State.STOPPED)
    drive(qtbot, queue, lambda: not queue.jobs)
    seen = glance(job.folder)
    assert seen.status.state is State.STOPPED and seen.resumable and not queue.ended
    again = queue.resume(job.folder)
    with pytest.raises(ValueError, match="in the queue already"):
        queue.resume(job.folder)
    assert again.cwd == places.ROOT
    drive(qtbot, queue, lambda: not queue.jobs)
    seen = glance(job.folder)
    assert seen.status.state is State.FINISHED and seen.starts == 2
    assert f"resuming from step {seen.step}" not in (job.folder / "events.jsonl").read_text()
    assert "resuming from step" in (job.folder / "events.jsonl").read_text()


def test_a_killed_trainer_has_vanished_and_can_be_queued_again(window, tmp_path, qtbot):
    queue = window()
    job = queue.add(preset(tmp_path, steps=100, pause=0.03), "a")
    drive(qtbot, queue, lambda: glance(job.folder).step >= 1)
    queue.kill(job.id)
    drive(qtbot, queue, lambda: not queue.jobs)
    assert state(tmp_path, "a") is State.VANISHED and "Last output: step" in glance(job.folder).status.sentence
    queue.resume(job.folder)
    drive(qtbot, queue, lambda: state(tmp_path, "a").alive)


def test_a_job_that_is_stopped_before_its_run_begins_is_simply_gone(window, tmp_path, qtbot):
    queue = window()
    job = queue.add(preset(tmp_path, "mute"), "a")
    queue.tick()
    assert not queue.stop(job.id), "ended at once, not asked"
    drive(qtbot, queue, lambda: not queue.jobs)
    assert not queue.ended and not job.folder.exists() and not job.preset.exists()


def test_one_that_is_killed_before_its_run_begins_has_vanished_and_can_be_tried_again(window, tmp_path, qtbot):
    queue = window()
    job = queue.add(preset(tmp_path, "mute"), "a")
    queue.tick()
    queue.kill(job.id)
    drive(qtbot, queue, lambda: not queue.jobs)
    assert [ended.ended.state for ended in queue.ended if ended.ended] == [State.VANISHED]
    queue.run_next(job.id)
    assert names(queue) == ["a"] and not queue.ended
    queue.tick()
    assert queue.jobs[0].running


def test_names_that_are_taken_are_refused(window, tmp_path):
    queue = window()
    queue.add(preset(tmp_path), "a")
    (tmp_path / "runs/run").mkdir()
    (tmp_path / "runs/run/preset.json").touch()
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/other/picture.png").touch()
    (tmp_path / "runs/empty").mkdir()
    for name, reason in (("a", "in the queue"), ("run", "or resume it"), ("other", "not a run folder"), (" ", "name")):
        assert reason in queue.problem_with(preset(tmp_path), name)
        with pytest.raises(ValueError, match=reason):
            queue.add(preset(tmp_path), name)
    assert queue.problem_with(preset(tmp_path), "empty") == "" and names(queue) == ["a"]


def test_everything_is_kept(window, tmp_path, qtbot):
    queue = window()
    queue.add(preset(tmp_path, pause=0.5), "a b")
    queue.add(preset(tmp_path), "ä", device="all")
    queue.tick()
    queue.paused = True
    before = queue.jobs
    queue.close()
    again = window()
    assert again.drives and again.paused and again.jobs == before and again.jobs[0].running
    ended = replace(before[1], ended=making.Status(State.REFUSED, "no"))
    assert making.from_json(json.loads(json.dumps(making.to_json(ended)))) == ended


def test_a_second_window_only_watches_until_the_first_has_gone(window, tmp_path, qtbot):
    first, second = window(), window()
    assert first.drives and not second.drives and "Another window" in second.watching_sentence
    first.paused = True
    job = first.add(preset(tmp_path), "a")
    with qtbot.waitSignal(second.changed):
        second.tick()
    assert second.jobs == first.jobs and second.paused
    for change in (lambda: second.add(preset(tmp_path), "b"), lambda: second.remove(job.id)):
        with pytest.raises(ValueError, match="controls the queue"):
            change()
    first.close()
    second.tick()
    assert second.drives and second.watching_sentence == ""
    second.remove(job.id)


def test_an_unreadable_queue_is_put_aside_and_said(window, tmp_path, qtbot):
    folder = tmp_path / "runs/.queue"
    folder.mkdir(parents=True)
    for content, aside in (("{", "queue.broken.json"), ('{"jobs": [{}]}', "queue.broken_2.json")):
        (folder / "queue.json").write_text(content)
        queue = window()
        with qtbot.waitSignal(queue.problem) as said:
            pass
        assert aside in said.args[0] and (folder / aside).read_text() == content and not queue.jobs
        queue.add(preset(tmp_path), "a")
        queue.close()
    assert (folder / "queue.broken.json").read_text() == "{"


def test_a_full_disk_is_a_sentence_and_nothing_is_lost(window, tmp_path, qtbot, monkeypatch):
    queue, said = window(), []
    queue.problem.connect(said.append)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reading, "write_whole", full)
        with pytest.raises(ValueError, match="No space left"):
            queue.add(preset(tmp_path), "a")
        queue.paused = True
        queue.tick()
        qtbot.waitUntil(lambda: len(said) == 1)
    assert "No space left" in said[0] and names(queue) == []
    queue.tick()
    assert making.read(queue.folder / "queue.json")[1], "written as soon as it can be"
    job = queue.add(preset(tmp_path), "a")
    with monkeypatch.context() as patch:
        patch.setattr(launch, "start", full)
        queue.paused = False
        qtbot.waitUntil(lambda: len(said) == 2)
    assert "cannot be started" in said[1] and queue.paused and queue.job(job.id) == job
    queue.paused = False
    drive(qtbot, queue, lambda: not queue.jobs)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_window_leaves_its_jobs_and_the_next_window_finds_them(window, tmp_path, qtbot):
    code = (
        "import sys; from pathlib import Path; from PySide6.QtCore import QCoreApplication\n"
        "from ui.core import places; from ui.core.runs.devices import MACHINE, Devices\n"
        "from ui.core.runs.queue import Queue\n"
        f"places.TRAIN = Path({str(FAKE)!r}); app = QCoreApplication([]); devices = Devices()\n"
        f"devices.all = (MACHINE,); queue = Queue(Path({str(tmp_path / 'runs/.queue')!r}), devices)\n"
        f"queue.add({preset(tmp_path, steps=25, pause=0.05)!r}, 'a'); queue.add({preset(tmp_path)!r}, 'b')\n"
        "queue.tick(); print('started', flush=True); app.exec()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], cwd=places.ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "started\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    queue = window()
    assert queue.drives and [job.running for job in queue.jobs] == [True, False]
    assert queue.jobs[0].process is not None and launch.alive(queue.jobs[0].process)
    drive(qtbot, queue, lambda: not queue.jobs)
    assert state(tmp_path, "a") is state(tmp_path, "b") is State.FINISHED
