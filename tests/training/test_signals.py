"""Ctrl-C, SIGTERM and SIGHUP at any time: exit code 130, no trace, and a run that goes on to the same adapter."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modules.training import loop, stopping
from modules.training.state import latest_state, load_state
from tests.training import pair
from tests.training.runs import Place, equal, launch, wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

STEPS = ("--training.steps", "12")


def listening(process: subprocess.Popen) -> Callable[[], bool]:
    """Whether a program has begun to listen to SIGTERM, which Python by itself does not."""

    def reached() -> bool:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    return reached


def steps_done(place: Place, name: str) -> int:
    path = place.runs / name / "events.jsonl"
    return path.read_text(encoding="utf-8").count('"event": "step"') if path.exists() else 0


# -- from the first second --------------------------------------------------------------------------------------------


@pytest.mark.short("0.0-2")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_a_start_is_stopped_at_once(place: Place, number, seconds):
    """While torch is imported, mostly; the later one in whatever comes then."""
    check = ["--check"] if seconds else []
    process = place.start("early", *check)
    wait_for(process, listening(process), lambda: time.sleep(seconds))
    process.send_signal(number)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "Exception ignored" not in err and "Stopped" in err
    for event in place.events("early")[-1:] if (place.runs / "early" / "events.jsonl").exists() else ():
        assert (event["event"], event["outcome"]) == ("finished", "stopped")


@pytest.mark.short("2")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_start_is_stopped_while_torch_is_imported(place: Place, number):
    """Whatever of the program listens by then: the library is in the process's memory, and nothing is trained yet."""
    process = place.start("early")
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(process, lambda: "libtorch_python" in maps.read_text(), lambda: process.send_signal(number))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "Stopped" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_was_ignored_at_the_start_stays_so(number, monkeypatch):
    """As with nohup, and in the background of a shell."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stopping.deferred(True):
            os.kill(os.getpid(), number)
            assert not stopping.asked() and signal.getsignal(signal.SIGTERM) is stopping.on_signal
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_preparations_are_stopped_and_the_run_says_so(place: Place, monkeypatch):
    """Encoding, loading: before a step there is nothing to save."""
    monkeypatch.setattr("modules.training.preparing.fill_caches", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert place.train("soon") == 130
    end = place.events("soon")[-1]
    assert (end["event"], end["outcome"], end["exit_code"]) == ("finished", "stopped", 130)


# -- in the steps -----------------------------------------------------------------------------------------------------


def stopped_behind_tee(place: Place, name: str, at: int, *more: str) -> None:
    """`train.py ... 2>&1 | tee log`, and Ctrl-C as a terminal sends it after `at` steps: tee dies of it first. The
    training ends with 130 and has its state."""
    command = shlex.join([sys.executable, "scripts/train.py", *place.command(name, *STEPS, *more)])
    log = shlex.quote(str(place.runs / f"{name}.log"))
    process = launch(["bash", "-c", f"trap : INT; {command} 2>&1 | tee {log}; exit ${{PIPESTATUS[0]}}"])
    wait_for(process, lambda: steps_done(place, name) >= at, lambda: os.killpg(process.pid, signal.SIGINT))
    _, err = process.communicate(timeout=500)
    assert process.returncode == 130, err
    end = place.events(name)[-1]
    assert (end["outcome"], end["exit_code"]) == ("stopped", 130) and end["step"] >= at
    state = latest_state(place.runs / name)
    assert state and load_state(state).step == end["step"]


@pytest.fixture(scope="module")
def twelve(stage, tmp_path_factory):
    """The adapter of twelve steps without a break."""
    place = Place(stage, tmp_path_factory.mktemp("twelve"))
    assert place.train("whole", *STEPS) == 0
    return place.adapter("whole")


@pytest.mark.full
def test_ctrl_c_behind_tee_loses_nothing(place: Place, twelve):
    at = random.randint(1, 8)
    stopped_behind_tee(place, "tee", at)
    assert place.train("tee", *STEPS) == 0
    assert equal(place.adapter("tee"), twelve), at


@pytest.mark.full
def test_a_terminal_that_is_closed_saves_and_nohup_goes_on(place: Place, twelve):
    process = place.start("hung", *STEPS)
    wait_for(process, lambda: place.stepping("hung"), lambda: process.send_signal(signal.SIGHUP))
    for pipe in (process.stdout, process.stderr):  # the terminal is gone too
        assert pipe is not None
        pipe.close()
    assert process.wait(timeout=500) == 130
    state = latest_state(place.runs / "hung")
    assert state and 1 <= load_state(state).step == place.events("hung")[-1]["step"] < 12
    words = ["nohup", sys.executable, "scripts/train.py", *place.command("hung", *STEPS)]
    process = launch(words)
    done = steps_done(place, "hung")
    wait_for(process, lambda: steps_done(place, "hung") > done, lambda: process.send_signal(signal.SIGHUP))
    assert process.wait(timeout=500) == 0
    assert equal(place.adapter("hung"), twelve)


@pytest.mark.short("adamw-validate")
@pytest.mark.parametrize("function", ["validate", "sample", "export_now"])
@pytest.mark.parametrize("optimizer", ["adamw", "schedulefree_adamw"])
def test_a_stop_does_not_wait_for_what_comes_beside_the_steps(place: Place, monkeypatch, function, optimizer):
    """The signal comes while it is under way. It is given up, the state of the step is saved, and it is made later. A
    schedule-free optimizer has other weights in the parameters meanwhile."""
    more = ["--samples.enabled", "--samples.every", "2", "--validation.every", "2"]
    more += ["--saving.export_every", "2"] if function == "export_now" else []
    chosen = {"optimizer": {"name": optimizer}}
    assert place.train("whole", *more, **chosen) == 0
    inside = getattr(loop, function)

    def interrupted(session, *given):
        if session.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return inside(session, *given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, function, interrupted)
        assert place.train("late", *more, **chosen) == 130
    kinds = [event["event"] for event in place.events("late") if event.get("step") == 2]
    missing = {"validate": "validation", "sample": "sample"}.get(function)
    assert missing not in kinds and not (place.runs / "late" / "late-step-000002.safetensors").exists()
    assert load_state(latest_state(place.runs / "late")).step == 2
    assert place.events("late")[-1]["step"] == 2
    assert place.train("late", *more, **chosen) == 0
    assert equal(place.adapter("whole"), place.adapter("late"))
    for kind in ("validation", "sample"):
        assert [e["step"] for e in place.events("late", kind)] == [e["step"] for e in place.events("whole", kind)]
    assert (place.runs / "late" / "late-step-000002.safetensors").exists() == (function == "export_now")


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    monkeypatch.setattr(stopping, "ONE_CTRL_C", 0.0)
    with pytest.raises(KeyboardInterrupt), stopping.deferred(False):
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked() and not stopping.insisted()
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    assert stopping.insisted()
    stopping.forget()
    assert not stopping.asked()


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(place: Place):
    command = place.command("pair", "--training.steps", "200", "--training.batch_size", "1")
    both = pair.begin(command, place.runs)
    end = time.monotonic() + 240
    while steps_done(place, "pair") < 3 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(both.pids[1], signal.SIGTERM)
    codes, said = both.wait()
    assert codes == [130, 130] and "Process 1 failed" not in said, said
    assert said.count("Stopped. The same command resumes from") == 1, said
    end = place.events("pair")[-1]
    assert (end["outcome"], end["exit_code"]) == ("stopped", 130)
    state = load_state(latest_state(place.runs / "pair"))
    assert state.step == end["step"] == place.events("pair", "step")[-1]["step"]
    assert state.facts["processes"] == 2
