"""Files that grow, are cut, are replaced: read completely, once, and without holding up the window."""

import json
from pathlib import Path

import pytest
from PySide6.QtCore import QTimer

from tests.ui.test_history import STEP
from ui.core.runs import tail as tails
from ui.core.runs.tail import Follower, LogTail, Tail, last_events


def line(step: int, time: str = "2026-11-22T12:00:00.000+00:00") -> str:
    return json.dumps({**STEP, "step": step, "time": time}) + "\n"


def steps(events: list[dict]) -> list[int]:
    return [event["step"] for event in events]


@pytest.fixture
def follower(tmp_path, qtbot, monkeypatch):
    monkeypatch.setattr(tails, "EVERY", 20)
    followers = []

    def follow(folder: Path = tmp_path) -> Follower:
        followers.append(Follower(folder))
        return followers[-1]

    yield follow
    for one in followers:
        one.close()


def test_only_complete_lines_count_and_each_counts_once(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.read(1000) == [] and not tail.restarted
    path.write_text(line(1) + line(2)[:40])
    assert steps(tail.read(1 << 20)) == [1]
    assert tail.read(1 << 20) == []
    path.write_text(line(1) + line(2) + "\n" + "no event\n[1]\n" + line(3))
    assert steps(tail.read(1 << 20)) == [2, 3] and tail.broken == 2
    assert tail.read(1 << 20) == [] and tail.broken == 0


@pytest.mark.parametrize("limit", (1, 300, 1000, 1 << 20))
def test_slices_lose_nothing_even_where_a_line_is_longer(tmp_path, limit):
    (tmp_path / "events.jsonl").write_text("".join(line(step) for step in range(1, 21)) + line(21)[:-1])
    tail, seen = Tail(tmp_path / "events.jsonl"), []
    for _ in range(30):
        seen += steps(tail.read(limit))
        if not tail.more:
            break
    assert seen == list(range(1, 21))


def test_the_unfinished_line_that_a_resumed_run_takes_back_is_no_new_file(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    path.write_text(line(1) + line(2)[:100])
    assert steps(tail.read(1 << 20)) == [1]
    path.write_text(line(1))
    assert tail.read(1 << 20) == [] and not tail.restarted
    path.write_text(line(1) + line(3))
    assert steps(tail.read(1 << 20)) == [3] and not tail.restarted


def test_another_file_in_its_place_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    path.write_text(line(1) + line(2))
    tail.read(1 << 20)
    path.write_text(line(5))
    assert steps(tail.read(1 << 20)) == [5] and tail.restarted
    path.write_text(line(6, "2026-11-23T12:00:00.000+00:00") * 5)
    assert len(tail.read(1 << 20)) == 5 and tail.restarted
    path.unlink()
    assert tail.read(1 << 20) == [] and tail.restarted
    assert tail.read(1 << 20) == [] and not tail.restarted


def test_a_follower_sees_what_comes_and_begins_anew_with_another_file(tmp_path, qtbot, follower):
    path = tmp_path / "events.jsonl"
    with qtbot.waitSignal(follower().loaded):
        pass
    one = follower()
    qtbot.waitUntil(lambda: one.is_loaded)
    with qtbot.waitSignal(one.grew):
        path.write_text(line(1) + line(2))
    assert one.history.step == 2
    with qtbot.waitSignal(one.grew), path.open("a") as file:
        file.write("broken\n" + line(3))
    assert one.history.step == 3 and one.history.broken_lines == 1
    with qtbot.waitSignal(one.grew):
        path.write_text(line(1))
    assert one.history.step == 1 and list(one.history.curves["loss"].steps) == [1]


def test_a_closed_follower_says_nothing(tmp_path, qtbot, follower):
    (tmp_path / "events.jsonl").write_text(line(1))
    one = follower()
    one.close()
    with qtbot.assertNotEmitted(one.grew, wait=100), qtbot.assertNotEmitted(one.loaded):
        pass


def test_a_file_that_cannot_be_read_is_said_once(tmp_path, qtbot, follower):
    (tmp_path / "events.jsonl").mkdir()
    one, said = follower(), []
    one.problem.connect(said.append)
    qtbot.waitUntil(lambda: bool(said))
    qtbot.wait(100)
    assert len(said) == 1 and "cannot be read" in said[0] and str(tmp_path) in said[0]


@pytest.mark.full
def test_a_long_run_loads_in_slices_between_which_the_window_answers(tmp_path, qtbot, follower):
    (tmp_path / "events.jsonl").write_text("".join(line(step) for step in range(1, 100_001)))
    seen, shown = [], []
    one = follower()
    timer = QTimer(interval=1)  # not 0: that never lets go of the interpreter, and the reading thread starves
    timer.timeout.connect(lambda: seen.append(one.history.step))
    timer.start()
    one.grew.connect(lambda: shown.append(one.history.step))
    with qtbot.waitSignal(one.loaded, timeout=20_000):
        pass
    timer.stop()
    assert one.history.step == 100_000 and shown[-1] == 100_000
    steps = sorted({0, *seen, 100_000})
    assert max(after - before for before, after in zip(steps, steps[1:], strict=False)) <= 5_000, "no slice is large"
    assert len(shown) < len(steps), "pages are not told of every slice"


def test_the_last_events_of_a_long_file(tmp_path):
    path = tmp_path / "events.jsonl"
    assert last_events(path, 1000) == ([], True)
    path.write_text("".join(line(step) for step in range(1, 101)) + "half")
    events, whole = last_events(path, 2000)
    assert not whole and steps(events) == list(range(101 - len(events), 101)) and len(events) >= 3
    events, whole = last_events(path, 1 << 20)
    assert whole and len(events) == 100


def test_a_log_gives_its_last_part_then_what_is_new(tmp_path):
    path = tmp_path / "log.txt"
    log = LogTail(path, last_bytes=25)
    assert log.read() == ""
    path.write_text("one\n" + "äöü größer\n" * 3 + "hal", encoding="utf-8")
    assert log.read() == "äöü größer\n" and log.skipped == 4 + 2 * len("äöü größer\n".encode())
    assert log.read() == ""
    with path.open("a", encoding="utf-8") as file:
        file.write("f\nnext\n")
    assert log.read() == "half\nnext\n" and not log.restarted
    path.write_text("new\n")
    assert log.read() == "new\n" and log.restarted
