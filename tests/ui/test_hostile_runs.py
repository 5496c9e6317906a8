"""Runs whose files are damaged in every way: the window shows them, and goes on."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.mutating import HOSTILE
from tests.ui.test_runs_page import RECORDED, made_run, page, shown  # noqa: F401  a fixture
from ui.core import places, words
from ui.core.preset import files
from ui.core.runs import jobs
from ui.core.runs.events import FIELDS
from ui.core.runs.history import History
from ui.core.runs.library import scan
from ui.core.runs.states import State, glance
from ui.core.runs.tail import LogTail, Tail, last_events

SOUND = {
    event["event"]: event for event in map(json.loads, (RECORDED / "good.jsonl").read_text().splitlines())
} | {event["event"]: event for event in map(json.loads, (RECORDED / "failed.jsonl").read_text().splitlines())}
SOUND["due"] = {**SOUND["validation"], "event": "due", "what": "sample", "minute": 10.0}
SOUND["judged"] = {**SOUND["validation"], "event": "judged", "subject": 0.9, "style": 0.5, "unnamed": 0.0}
SPECTRUM = {"spectral_norm": 0.1, "stable_rank": 2.0, "effective_rank": 3.0}
SOUND["spectrum"] = {**SOUND["validation"], "event": "spectrum", **SPECTRUM}
"""One event of each kind."""


def damaged_lines() -> list[str]:
    """Every field of every kind of event with every hostile value, and without it; and lines that are no events."""
    lines = ["null", "{}", "[]", "3", '"x"', "\0" * 50, "{"]
    lines += ["[" * 100_000, '{"event":' * 100_000, "[" * 300 + "]" * 300]
    for event in SOUND.values():
        for name in event:
            lines.append(json.dumps({key: value for key, value in event.items() if key != name}))
            lines += [json.dumps({**event, name: value}) for value in HOSTILE]
            lines.append(json.dumps({**event, name: "DEEP"}).replace('"DEEP"', "[" * 30_000 + "]" * 30_000))
    return lines


LINES = damaged_lines()


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A sound run with all of them before its last event."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    made_run(folder, "good")
    lines = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.jsonl").write_text("\n".join([*lines[:-1], *LINES, lines[-1]]) + "\n")
    return folder


def test_every_kind_is_here():
    assert SOUND.keys() >= FIELDS.keys() and len(LINES) > 1500


def test_damaged_events_are_counted_and_the_others_stay(events):
    tail, history = Tail(events / "events.jsonl"), History()
    while history.last_time == "" or tail.more:
        history.apply(tail.read(1 << 19))
        history.broken_lines += tail.broken
    assert history.broken_lines > 1000
    assert history.finished is not None and history.finished.outcome == "done"
    assert history.curves and all(len(curve.steps) == len(curve.values) for curve in history.curves.values())
    for message in history.messages:
        words.when(message.time)


@pytest.mark.parametrize("first", range(0, 24, 3))
def test_a_run_that_ends_with_a_damaged_event_is_told(tmp_path, first):
    """Each third of them as the last line, without the run's own end."""
    run = made_run(tmp_path / "run", "good")
    lines = (run / "events.jsonl").read_text().splitlines()
    for last in LINES[first::24]:
        (run / "events.jsonl").write_text("\n".join([*lines[:-1], last]) + "\n")
        seen = glance(run)
        assert seen.status.sentence and seen.step >= 0 and isinstance(seen.last_time, str), last
        if seen.seconds_left is not None:
            words.duration(seen.seconds_left)
        words.count(seen.step), words.count(seen.steps), words.when(seen.last_time)


def test_the_page_shows_the_run(page, tmp_path, qtbot, events):  # noqa: F811
    (tmp_path / "runs").mkdir()
    run = events.rename(tmp_path / "runs/run")
    opened = shown(page(), qtbot, run)
    follower = opened.live.follower
    assert follower
    qtbot.waitUntil(lambda: follower.is_loaded, timeout=30_000)
    for number in range(opened.live.tabs.count()):
        opened.live.tabs.setCurrentIndex(number)
        qtbot.wait(20)
    assert [seen.name for seen in opened.library.glances] == ["run"]
    run.rename(events)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("file", ["preset.json", "environment.json"])
def test_other_files_of_a_run(tmp_path, file, value):
    run = made_run(tmp_path / "runs/run", "good")
    (run / "environment.json").write_text(json.dumps([{"time": "2026-11-22T12:40:12+00:00"}]))
    sound = json.loads((run / file).read_text())
    whole = [value, [value], [{"time": value}], [{"process": value}]]
    whole += [[{"process": {"pid": 1, "created": 1.0, "host": "x", "folder": "/", name: value}}]
              for name in ("pid", "created", "host", "folder")]
    whole += [{**sound, name: value} for name in sound] if isinstance(sound, dict) else []
    for content in whole:
        (run / file).write_text(json.dumps(content))
        [seen], said = scan([tmp_path / "runs"], [], {})
        assert seen.name == "run" and seen.status.sentence and not said
        assert isinstance(seen.family, str) and isinstance(seen.method, str) and isinstance(seen.started, str)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\0" * 9, "\ufeff{}", '{"a": 1, "a": 2}', "1" * 5000])
def test_a_preset_that_is_none_leaves_the_run_in_the_list(tmp_path, text):
    run = made_run(tmp_path / "runs/run", "good")
    (run / "preset.json").write_text(text)
    [seen], said = scan([tmp_path / "runs"], [], {})
    assert seen.status.state is State.FINISHED or seen.status.state is State.VANISHED
    assert not said


@pytest.mark.parametrize("name", ["events.jsonl", "environment.json", "log.txt", "output.txt", "state", "requests"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device", "file"])
def test_something_else_in_the_place_of_a_file(tmp_path, name, kind):
    run = made_run(tmp_path / "runs/run", "good", state=False)
    path = run / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.write_text("x")
    [seen], _ = scan([tmp_path / "runs"], [], {})
    assert seen.status.sentence
    for read in (lambda: Tail(run / "events.jsonl").read(1000), lambda: LogTail(run / "log.txt").read(),
                 lambda: last_events(run / "events.jsonl", 1000)):
        try:
            read()
        except OSError as error:
            assert error.strerror


def test_a_hole_of_a_power_cut_is_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text("")
    os.truncate(path, 40 << 20)
    good = (RECORDED / "good.jsonl").read_text()
    with path.open("a") as file:
        file.write("\n" + good)
    tail, history = Tail(path), History()
    for _ in range(10):
        history.apply(tail.read(1 << 19))
    assert history.finished is not None


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_a_damaged_queue_is_refused_in_words(tmp_path, value):
    path = tmp_path / "queue.json"
    job = jobs.Job("a", "x", tmp_path / "x", tmp_path, tmp_path / "o", "any", False, "", tmp_path)
    told = jobs.to_json(job)
    for content in [value, {"jobs": value, "paused": False}, {"jobs": [value], "paused": False},
                    *({"jobs": [{**told, name: value}], "paused": False} for name in told)]:
        path.write_text(json.dumps(content))
        try:
            found, _ = jobs.read(path)
        except ValueError:
            continue
        assert all(isinstance(one.name, str) and isinstance(one.starts, int) for one in found)
        jobs.ready(found, ["0"])


@pytest.mark.parametrize("based_on", ["x" * 300, "a\0b", "\ud800", "../" * 2000])
def test_a_preset_based_on_no_name_leaves_the_list_whole(own_memory, based_on):
    places.OWN_PRESETS.mkdir(parents=True, exist_ok=True)
    (places.OWN_PRESETS / "odd.json").write_text(json.dumps({"based_on": based_on}))
    [entry] = [entry for entry in files.listing() if entry.kind == "own"]
    assert entry.problem


def test_unreadable_folders_hide_nothing_else(tmp_path, monkeypatch):
    made_run(tmp_path / "runs/run", "good")
    (tmp_path / "runs/closed").mkdir()
    (tmp_path / "runs/x").write_text("no folder")
    stat = Path.stat

    def denied(self, **options):
        if "closed" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", denied)
    seen, said = scan([tmp_path / "runs"], [], {})
    assert [one.name for one in seen] == ["run"] and not said
