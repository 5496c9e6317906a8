"""Events: every line is JSON with all fields of its kind, nothing is lost, and libraries are heard."""

import errno
import json
import logging
import os
import re
import subprocess
import warnings
from pathlib import Path

import pytest

from modules.training import lines
from modules.training.events import KINDS, Events, event_of, read_events

STEP = {
    "step": 1,
    "steps": 10,
    "epoch": 0.1,
    "loss": 0.5,
    "loss_average": 0.25,
    "learning_rate": 1e-4,
    "grad_norm": 2.0,
    "seconds": 1.0,
    "seconds_per_step": 1.0,
    "seconds_left": 9.0,
    "memory_mb": 100.0,
    "adapter": {"beta": 0.75},
}
STAGE = {"name": "load", "detail": "the model"}


@pytest.fixture
def events(tmp_path):
    with Events(tmp_path) as opened:
        yield opened


def written(folder: Path) -> list[dict]:
    return read_events(folder / "events.jsonl")


def test_each_event_is_readable_at_once(events, tmp_path):
    events.write("stage", STAGE)
    events.write("step", STEP)
    stage, step = written(tmp_path)
    assert stage.pop("time").endswith("+00:00")
    assert stage == {"event": "stage", **STAGE}
    assert step["adapter"] == {"beta": 0.75}


@pytest.mark.parametrize("kind, facts", [("stpe", STEP), ("stage", {"name": "x"}), ("stage", {**STAGE, "more": 1})])
def test_unknown_kinds_and_fields_are_refused(kind, facts, events, tmp_path):
    with pytest.raises(AssertionError):
        events.write(kind, facts)
    assert written(tmp_path) == []


def test_non_finite_numbers_become_null(events, tmp_path):
    step = {**STEP, "loss": float("nan"), "grad_norm": float("inf"), "adapter": {"beta": -float("inf")}}
    events.write("step", step)

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    read = json.loads(line, parse_constant=refuse)
    assert (read["loss"], read["grad_norm"], read["adapter"]["beta"]) == (None, None, None)


def test_paths_inside_the_folder_are_relative(events, tmp_path):
    facts = {"step": 1, "prompt": "ä cat", "base": "a base"}
    events.write("sample", {"path": tmp_path / "samples" / "a.png", **facts})
    events.write("sample", {"path": str(tmp_path.parent / "b.png"), **facts})
    events.write("finished", {"outcome": "stopped", "exit_code": 130, "step": 1, "path": None})
    inside, outside, none = written(tmp_path)
    assert inside["path"] == "samples/a.png"
    assert outside["path"] == (tmp_path.parent / "b.png").as_posix()
    assert none["path"] is None


def test_samples_of_earlier_versions_are_read(events, tmp_path):
    """They have no base."""
    events.write("sample", {"step": 1, "path": "a.png", "prompt": "a cat", "base": "a base"})
    line = json.loads((tmp_path / "events.jsonl").read_text())
    del line["base"]
    assert event_of(json.dumps(line).encode()) == line and event_of(json.dumps(line | {"base": 1}).encode()) is None


def test_resume_appends_after_a_half_written_line(tmp_path):
    with Events(tmp_path) as events:
        events.write("stage", STAGE)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": "2026')
    assert len(written(tmp_path)) == 1
    with Events(tmp_path) as events:
        events.write("stage", STAGE)
    assert len(written(tmp_path)) == 2


WHOLE = json.dumps({"time": "2026-11-29T00:00:00.000+00:00", "event": "stage", **STAGE})
END = {"time": "now", "event": "finished", "outcome": "done", "exit_code": 0, "step": 1, "path": None}
DAMAGE = {
    "nothing": b"\n",
    "zeros": b"\0" * 5000 + b"\n",
    "null": b"null\n",
    "empty": b"{}\n",
    "a half": b'{"time": "x", "event": "sta\n',
    "a list": b'["event", "stage"]\n',
    "deep": b"[" * 100_000 + b"\n",
    "deep and whole": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "a deep field": b'{"time": "x", "event": "stage", "name": ' + b"[" * 50_000 + b"]" * 50_000 + b', "detail": ""}\n',
    "no text": b"\xff\xfe\n",
    "kind is a list": b'{"time": "x", "event": []}\n',
    "no time": json.dumps({**END, "time": None}).encode() + b"\n",
    "no outcome": json.dumps({key: value for key, value in END.items() if key != "outcome"}).encode() + b"\n",
    "path is a list": json.dumps({**END, "path": ["a"]}).encode() + b"\n",
    "step is a text": json.dumps({**END, "step": "1"}).encode() + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_lines_are_skipped_and_counted(tmp_path, caplog, damage):
    path = tmp_path / "events.jsonl"
    path.write_bytes(WHOLE.encode() + b"\n" + damage + WHOLE.encode() + b"\n" + json.dumps(END).encode() + b"\n")
    assert [event["event"] for event in written(tmp_path)] == ["stage", "stage", "finished"]
    assert f"{path}: 1 damaged line is skipped" in caplog.text


def test_only_the_end_of_a_large_file_is_read_for_its_last_line(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    for tail in (b"", b"x" * 10, b"\0" * 3 * lines.BLOCK):
        path.write_bytes((WHOLE.encode() + b"\n") * 20_000 + tail)
        whole = path.stat().st_size - len(tail)
        monkeypatch.setattr(Path, "read_bytes", None)
        lines.drop_unfinished_line(path)
        monkeypatch.undo()
        assert path.stat().st_size == whole
    path.write_bytes(b"x" * 100_000)
    lines.drop_unfinished_line(path)
    assert path.read_bytes() == b""


@pytest.fixture
def full(monkeypatch):
    """A disk that takes no more bytes than it is told to."""
    write, room = os.write, [10**9]

    def limited(file: int, data: bytes) -> int:
        count = min(len(data), room[0])
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= count
        return write(file, data[:count])

    monkeypatch.setattr(os, "write", limited)
    return room


def test_events_wait_for_a_full_disk_and_none_is_cut(tmp_path, full):
    with Events(tmp_path) as events:
        events.write("stage", {**STAGE, "name": "first"})
        full[0] = 30  # a part of the next line
        for name in ("second", "third"):
            events.write("stage", {**STAGE, "name": name})
        assert [event["name"] for event in written(tmp_path)] == ["first"]
        assert (tmp_path / "events.jsonl").read_bytes().endswith(b"}\n")
        full[0] = 10**9
        events.write("stage", {**STAGE, "name": "fourth"})
        assert [event["name"] for event in written(tmp_path)] == ["first", "second", "third", "fourth"]


def test_lines_that_wait_are_not_kept_for_ever(tmp_path, full, monkeypatch):
    monkeypatch.setattr(lines, "KEPT", 3)
    with Events(tmp_path) as events:
        full[0] = 0
        for number in range(5):
            events.write("stage", {**STAGE, "name": str(number)})
        full[0] = 10**9
        events.write("stage", {**STAGE, "name": "5"})
    *kept, warning = written(tmp_path)
    assert [event["name"] for event in kept] == ["3", "4", "5"]
    assert warning["event"] == "warning" and "3 events could not be written" in warning["message"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounts a small disk")
def test_the_last_events_have_a_place_on_a_disk_that_is_full(tmp_path):
    """A real one of 256 KiB, filled up by something else."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mount is not allowed here")
    try:
        with Events(tmp_path / "run") as events:
            events.write("stage", STAGE)
            with (tmp_path / "filler").open("wb", 0) as filler, pytest.raises(OSError):
                while True:
                    filler.write(b"x" * 512)
            for step in range(1, 400):
                events.write("step", {**STEP, "step": step})
            events.write("error", {"message": "the disk is full", "detail": "x" * 8000})
            events.write("finished", {"outcome": "failed", "exit_code": 1, "step": 399, "path": None})
        *_, error, end = written(tmp_path / "run")
        assert (error["event"], end["event"], end["step"]) == ("error", "finished", 399)
        assert [path.name for path in (tmp_path / "run").iterdir() if "reserve" in path.name] == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("name", ["events.jsonl", "log.txt", "tensorboard"])
def test_something_else_in_a_file_s_place_stops_nothing(tmp_path, name, capsys):
    place = tmp_path / name
    place.write_text("a file") if name == "tensorboard" else place.mkdir()
    with Events(tmp_path) as events:
        for step in (1, 2):
            events.write("step", {**STEP, "step": step})
    said = capsys.readouterr().err
    assert said.count("warning: TensorBoard curves end at step 1") == (name == "tensorboard")
    assert "Traceback" not in said and "Logging error" not in said
    if name != "events.jsonl":
        assert [e["step"] for e in written(tmp_path) if e["event"] == "step"] == [1, 2]


def test_texts_that_utf8_lacks_come_back(events, tmp_path):
    events.write("stage", {"name": "caf\udce9.png", "detail": "\x1b[31m"})
    assert written(tmp_path)[0]["name"] == "caf\udce9.png"
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "caf\\udce9.png" in log and "\\u001b[31m" in log and "\x1b" not in log


def test_a_warning_is_given_once_for_each_subject(events, tmp_path, capsys):
    for message in ("first", "second"):
        events.warn_once("grid", message)
    events.warn_once("curves", "third")
    assert [event["message"] for event in written(tmp_path)] == ["first", "third"]
    assert capsys.readouterr().err.splitlines() == ["warning: first", "warning: third"]


def test_a_step_before_any_finite_loss_is_logged(events, tmp_path):
    events.write("step", {**STEP, "loss": float("inf"), "loss_average": None})
    assert "average unknown" in (tmp_path / "log.txt").read_text()


def test_other_processes_write_nothing(tmp_path):
    with Events(tmp_path / "run", main=False) as events:
        events.write("step", STEP)
    assert list(tmp_path.iterdir()) == []


def test_the_log_hears_events_libraries_and_warnings(events, tmp_path):
    events.write("step", STEP)
    events.write("error", {"message": "no memory left", "detail": "line 3"})
    logging.getLogger("some.library").info("it downloads")
    deaf = logging.getLogger("diffusers")
    propagated, deaf.propagate = deaf.propagate, False
    deaf.warning("a deprecation")
    deaf.propagate = propagated
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"a {'python'} warning", stacklevel=1)  # the log shows this line as well
    text = (tmp_path / "log.txt").read_text()
    for part in ("step 1 of 10: loss 0.5", "beta 0.75", "ERROR modules.training.events: no memory left: line 3"):
        assert part in text
    for part in ("it downloads", "a deprecation", "a python warning"):
        assert text.count(part) == 1


def test_warnings_of_our_own_modules_become_events_once(events, tmp_path):
    logging.getLogger("modules.training.state").warning("state %s is damaged", 3)
    logging.getLogger("some.library").warning("not ours")
    events.write("warning", {"message": "direct", "detail": ""})
    assert [event["message"] for event in written(tmp_path)] == ["state 3 is damaged", "direct"]


def test_closing_leaves_logging_as_it_was(tmp_path):
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    events = Events(tmp_path)
    events.close()
    events.close()
    events.write("stage", STAGE)
    assert (list(root.handlers), root.level) == before
    assert written(tmp_path) == []


def test_tensorboard_draws_steps_and_validation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last in (4, 3):  # the second run resumes at step 2
        with Events(tmp_path) as events:
            for step in range(1 if last == 4 else 2, last + 1):
                events.write("step", {**STEP, "step": step, "loss": last})
            events.write("validation", {"step": last, "loss": 0.5, "baseline": None})
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert {"loss", "learning_rate", "adapter/beta", "validation_loss"} <= set(curves.Tags()["scalars"])
    assert [(point.step, point.value) for point in curves.Scalars("loss")] == [(1, 4), (2, 3), (3, 3)]


def test_the_manual_lists_every_kind_and_field():
    text = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", text, re.DOTALL | re.MULTILINE))
    documented = {kind: tuple(re.findall(r"^\| `(\w+)`", body, re.MULTILINE)) for kind, body in sections.items()}
    assert documented == KINDS
