"""Events: every line is JSON with all fields of its kind, nothing is lost, and libraries are heard."""

import json
import logging
import re
import warnings
from pathlib import Path

import pytest

from modules.training.events import KINDS, Events, read_events

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


def test_numbers_that_are_none_become_null(events, tmp_path):
    step = {**STEP, "loss": float("nan"), "grad_norm": float("inf"), "adapter": {"beta": -float("inf")}}
    events.write("step", step)

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    read = json.loads(line, parse_constant=refuse)
    assert (read["loss"], read["grad_norm"], read["adapter"]["beta"]) == (None, None, None)


def test_paths_inside_the_folder_are_relative(events, tmp_path):
    facts = {"step": 1, "prompt": "ä cat"}
    events.write("sample", {"path": tmp_path / "samples" / "a.png", **facts})
    events.write("sample", {"path": str(tmp_path.parent / "b.png"), **facts})
    events.write("finished", {"outcome": "stopped", "exit_code": 130, "step": 1, "path": None})
    inside, outside, none = written(tmp_path)
    assert inside["path"] == "samples/a.png"
    assert outside["path"] == (tmp_path.parent / "b.png").as_posix()
    assert none["path"] is None


def test_resume_appends_after_a_half_written_line(tmp_path):
    with Events(tmp_path) as events:
        events.write("stage", STAGE)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": "2026')
    assert len(written(tmp_path)) == 1
    with Events(tmp_path) as events:
        events.write("stage", STAGE)
    assert len(written(tmp_path)) == 2


def test_damage_in_the_middle_is_reported(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "stage"}\n{"half\n{}\n')
    with pytest.raises(ValueError, match=r"events\.jsonl, line 2"):
        written(tmp_path)


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
