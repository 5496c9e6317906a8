"""Recorded runs, replayed: what the window knows after reading their events."""

import json
import math
from pathlib import Path

import pytest

from modules.training.events import KINDS
from ui.core.runs.history import STEP_CURVES, History
from ui.core.runs.tail import Tail

RECORDED = Path(__file__).parent / "recorded"
STEP = {
    "time": "2026-11-22T12:00:00.000+00:00",
    "event": "step",
    "step": 1,
    "steps": 100_000,
    "epoch": 0.25,
    "loss": 0.0649198144,
    "loss_average": 0.0649198144,
    "learning_rate": 0.0001,
    "grad_norm": 0.0205517932,
    "seconds": 8.62811055,
    "seconds_per_step": 0.96833792,
    "seconds_left": 231.43276479,
    "memory_mb": 713.28906,
    "adapter": {},
}


def replayed(name: str) -> History:
    tail, history = Tail(RECORDED / f"{name}.jsonl"), History()
    history.apply(tail.read(1 << 30))
    history.broken_lines += tail.broken
    return history


def test_a_good_run():
    history = replayed("good")
    assert (history.step, history.steps, history.unknown, history.broken_lines) == (240, 240, {}, 0)
    assert history.finished is not None and history.finished.outcome == "done"
    assert history.exported == "wora_demo.safetensors"
    assert [saved.what for saved in history.saved] == ["state", "state", "state", "adapter", "export"]
    assert len(history.samples) == 12 and [sample.index for sample in history.samples] == [0, 1, 2, 3] * 3
    assert {sample.step for sample in history.samples} == {0, 120, 240}
    assert history.samples[5].prompt == "cat face, noto style"
    assert list(history.curves["validation"].steps) == [0, 60, 120, 240]
    assert history.baseline == history.curves["validation"].values[0]
    assert set(STEP_CURVES) < set(history.curves)
    assert any(name.startswith("adapter/") for name in history.curves)
    for name, curve in history.curves.items():
        assert len(curve.steps) == len(curve.values) > 0, name
        assert list(curve.steps) == sorted(set(curve.steps)), name
    assert history.latest is not None and history.latest["seconds_left"] == 0
    assert history.last_time > history.saved[0].time


def test_a_failed_run():
    history = replayed("failed")
    assert history.finished is not None and (history.finished.outcome, history.finished.exit_code) == ("failed", 1)
    assert [message.kind for message in history.messages] == ["warning", "error"]
    assert history.messages[1].message.startswith("The loss is not a finite number at step 8")
    assert "Traceback" in history.messages[1].detail
    assert history.exported is None
    assert math.isnan(history.curves["loss"].values[-1]) and not math.isnan(history.curves["loss"].values[0])


def test_a_line_that_is_still_being_written_does_not_count():
    history = replayed("truncated")
    assert (history.step, history.broken_lines) == (7, 0)


def test_an_unknown_kind_of_event_is_counted_and_nothing_else_is_lost():
    history, whole = replayed("unknown"), replayed("truncated")
    assert history.unknown == {"weather": 2}
    assert history.step == whole.step and history.curves == whole.curves and history.samples == whole.samples


def test_a_resumed_run_replaces_what_it_repeats():
    history = replayed("resumed")
    losses = history.curves["loss"]
    assert list(losses.steps) == list(range(1, 14))
    assert list(losses.values[10:]) == [12, 13, 14]
    assert list(history.curves["validation"].steps) == [0], "the one at step 15 has not come again"
    assert all(sample.step == 0 for sample in history.samples)
    assert history.finished is not None and history.finished.outcome == "stopped"
    assert all(curve.steps[-1] <= 13 for curve in history.curves.values())


def test_going_on_clears_the_end_and_repeating_a_validation_before_the_first_step_turns_back():
    history = replayed("failed")
    history.apply([{"time": "2026-11-22T14:00:00+00:00", "event": "stage", "name": "load", "detail": "demo/base"}])
    assert history.finished is None and history.step == 7
    history.apply([{"time": "x", "event": "validation", "step": 0, "loss": 0.2, "baseline": 0.2}])
    assert history.step == 0 and history.latest is None and list(history.curves["validation"].values) == [0.2]
    assert not history.curves["loss"].steps
    again = {"time": "x", "event": "sample", "step": 0, "path": "samples/step-000000_01.png", "prompt": "another"}
    history.apply([again])
    assert [sample.prompt for sample in history.samples if sample.index == 1] == ["another"]
    history.apply([{**STEP, "step": 1}])
    assert list(history.curves["loss"].steps) == [1]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_that_the_trainer_writes_is_known_and_one_without_its_fields_is_no_crash(kind):
    history = History()
    history.apply([{"time": "x", "event": kind}])
    assert (history.broken_lines, history.unknown) == (1, {})


def test_an_event_of_the_wrong_kind_leaves_the_curves_in_step():
    history = History()
    history.apply([{**STEP, "loss": "high"}, {**STEP, "step": "two"}, {**STEP, "step": 2}])
    assert history.broken_lines == 2
    assert all(len(curve.steps) == len(curve.values) for curve in history.curves.values())


@pytest.mark.full
def test_a_hundred_thousand_steps_are_read_in_slices(tmp_path):
    lines = [json.dumps({**STEP, "step": step, "loss": 1 / step}) for step in range(1, 100_001)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    tail, history, slices = Tail(tmp_path / "events.jsonl"), History(), 0
    while slices == 0 or tail.more:
        history.apply(tail.read(1 << 17))
        slices += 1
    assert history.step == 100_000 and len(history.curves["loss"].steps) == 100_000
    assert slices > 50


@pytest.mark.parametrize("broken", [{"time": 7}, {"epoch": None, "adapter": None}, {"event": ["step"]}])
def test_an_event_that_is_damaged_is_counted_and_leaves_nothing_behind(broken):
    history = History()
    history.apply([{name: value for name, value in {**STEP, **broken}.items() if value is not None}])
    assert history.broken_lines == 1 and not history.curves and history.latest is None and history.step == 0
