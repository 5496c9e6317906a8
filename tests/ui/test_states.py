"""States are told honestly: from the last events, the last start and whether its process lives."""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest

from tests.ui.test_history import RECORDED, STEP
from ui.core.runs import launch, states
from ui.core.runs.states import State, glance

LATER = "2026-11-22T15:00:00+00:00"
PRESET = {"family": "sdxl", "adapter": {"method": "wora"}, "description": "A demo."}


def own_process(host: str = launch.HOST) -> dict:
    me = psutil.Process()
    return {"pid": me.pid, "created": me.create_time(), "host": host, "folder": str(Path.cwd())}


def dead_process() -> dict:
    child = subprocess.Popen([sys.executable, "-c", ""])
    facts = {**own_process(), "pid": child.pid, "created": psutil.Process(child.pid).create_time()}
    child.wait()
    return facts


@pytest.fixture
def run(tmp_path):
    """A function that makes a run folder of a recorded event file and starts."""

    def make(recorded: str, *starts: dict, name: str = "größer werden") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "preset.json").write_text(json.dumps(PRESET))
        (folder / "environment.json").write_text(json.dumps(starts))
        if recorded:
            shutil.copy(RECORDED / f"{recorded}.jsonl", folder / "events.jsonl")
        return folder

    return make


def start(process: dict | None, time: str = "2026-11-22T12:40:12+00:00") -> dict:
    return {"time": time, **({"process": process} if process else {})}


def test_a_finished_run(run):
    folder = run("good", start(None))
    (folder / "wora_demo.safetensors").touch()
    seen = glance(folder)
    assert (seen.name, seen.family, seen.method, seen.description) == ("größer werden", "sdxl", "wora", "A demo.")
    assert (seen.step, seen.steps, seen.starts) == (240, 240, 1)
    assert seen.status.state is State.FINISHED and "wora_demo.safetensors" in seen.status.sentence
    assert seen.exported == folder / "wora_demo.safetensors" and not seen.resumable and not seen.problem
    seen.exported.unlink()
    assert glance(folder).exported is None and "no longer exists" in glance(folder).status.sentence


def test_a_failed_run_says_the_error_and_can_be_resumed_from_a_state(run):
    folder = run("failed", start(None))
    seen = glance(folder)
    assert seen.status.state is State.FAILED
    assert seen.status.sentence.startswith("The loss is not a finite number at step 8")
    assert not seen.resumable
    (folder / "state/step-000005.partial").mkdir(parents=True)
    assert not glance(folder).resumable
    (folder / "state/step-000005").mkdir()
    assert glance(folder).resumable


def test_a_stopped_run_counts_from_its_last_start(run):
    seen = glance(run("resumed", start(None), start(dead_process(), "2026-11-22T13:00:00+00:00")))
    assert seen.status.state is State.STOPPED and "step 13 of 240" in seen.status.sentence and seen.starts == 2


@pytest.mark.parametrize("recorded", ("truncated", "unknown", "resumed", "failed"))
def test_a_process_that_is_gone_without_a_final_event_has_vanished(run, recorded):
    seen = glance(run(recorded, start(dead_process(), LATER if recorded in ("resumed", "failed") else STEP["time"])))
    assert seen.status.state is State.VANISHED, "also if an earlier process ended properly"
    assert "unexpectedly" in seen.status.sentence and f"step {seen.step}" in seen.status.sentence


def test_a_run_of_old_without_process_facts_has_vanished_and_another_process_of_its_number_is_not_it(run):
    assert glance(run("truncated", start(None))).status.state is State.VANISHED
    reused = {**own_process(), "created": psutil.Process().create_time() - 3600}
    assert glance(run("truncated", start(reused))).status.state is State.VANISHED


def test_a_living_process_starts_runs_and_stops(run):
    folder = run("resumed", start(own_process(), LATER))
    assert glance(folder).status.state is State.STARTING, "what an earlier process said does not count"
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": LATER, "event": "stage", "name": "load", "detail": "loading demo/base"}) + "\n")
    assert glance(folder).status == states.Status(State.RUNNING, "Preparing: loading demo/base.")
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({**STEP, "time": LATER, "step": 14}) + "\n")
    assert glance(folder).status == states.Status(State.RUNNING, "At step 14 of 100,000.")
    (folder / "requests").mkdir()
    launch.request(folder, "stop")
    assert glance(folder).status.state is State.STOPPING
    (folder / "requests/stop").unlink()
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": LATER, "event": "stage", "name": "stopping", "detail": ""}) + "\n")
    assert glance(folder).status.state is State.STOPPING


def test_a_zombie_is_gone(run):
    child = subprocess.Popen([sys.executable, "-c", ""])
    facts = {**own_process(), "pid": child.pid, "created": psutil.Process(child.pid).create_time()}
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert glance(run("truncated", start(facts))).status.state is State.VANISHED
    child.wait()


def test_a_run_of_another_machine_is_told_apart_and_resumable_only_after_long_silence(run):
    folder = run("truncated", start(own_process("elsewhere-7")))
    (folder / "state/step-000005").mkdir(parents=True)
    seen = glance(folder)
    assert seen.status.state is State.ELSEWHERE and "elsewhere-7" in seen.status.sentence
    recent = (datetime.now(timezone.utc) - timedelta(minutes=5)).isoformat()
    with (folder / "events.jsonl").open("wb") as file:
        file.write(json.dumps({**STEP, "time": recent}).encode() + b"\n")
    assert not glance(folder).resumable
    (folder / "events.jsonl").write_text(json.dumps({**STEP, "time": "2020-01-01T00:00:00+00:00"}) + "\n")
    assert glance(folder).resumable


def test_a_finished_run_that_was_started_again_is_still_finished(run):
    folder = run("good", start(dead_process()), start(dead_process(), LATER))
    (folder / "wora_demo.safetensors").touch()
    assert glance(folder).status.state is State.FINISHED


def test_what_the_process_printed_last_is_told_when_it_vanished(run):
    folder = run("truncated", start(dead_process()))
    (folder / states.OUTPUT).write_text("CUDA error: device lost\nx:  3%| 3/240 [00:01<00:01, 1.2step/s]\r", "utf-8")
    assert "CUDA error: device lost" in glance(folder).status.sentence


def test_damaged_files_are_sentences(run):
    folder = run("", start(None))
    for content in ("{", "7", "[[]]", '[{"time": 3, "process": {"pid": "x"}}]', "\x00"):
        (folder / "environment.json").write_text(content)
        (folder / "preset.json").write_text(content)
        (folder / "events.jsonl").write_text('{"event": 3}\n{"event": "step", "step": "x"}\n[]\nno\n')
        seen = glance(folder)
        assert seen.status.state is State.VANISHED and "preset.json" in seen.problem and "damaged" in seen.problem


def test_a_step_before_a_very_long_error_is_still_found(run):
    folder = run("truncated", start(None))
    with (folder / "events.jsonl").open("ab") as file:
        file.truncate(0)
        file.write(json.dumps({**STEP, "step": 9}).encode() + b"\n")
        file.write(
            json.dumps({"time": "x", "event": "error", "message": "m", "detail": "d" * 200_000}).encode() + b"\n"
        )
    assert glance(folder).step == 9
