"""Two processes on the CPU: accelerate's launcher, and the gradients of one process with twice the batch."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from modules.training.processes import HOW, asked_for, companions, missing_processes, promised
from modules.training.state import latest_state, load_state
from tests.training import pair
from tests.training.runs import Place, launch, wait_for

LAUNCHER = [str(Path(sys.executable).with_name("accelerate")), "launch"]

LAUNCHED = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What the launcher sets for several processes on the CPU, of which it starts one."""


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6 * max(1e-3, float(tensor.abs().max())))


@pytest.mark.full
def test_two_processes_are_one_with_twice_the_batch(place: Place):
    """An optimizer with plain steps: Adam would blow rounding up where a gradient is near zero."""
    more = ["--training.steps", "3", "--optimizer.eps", "1.0", "--saving.state_every", "1"]
    command = place.command("two", *more, "--training.batch_size", "1")
    codes, said = pair.train(command, place.runs)
    assert codes == [0, 0] and said.count("Done:") == 1 and "Traceback" not in said, said
    assert load_state(latest_state(place.runs / "two")).facts["processes"] == 2
    assert place.train("one", *more, "--training.batch_size", "2") == 0
    close(place.adapter("two"), place.adapter("one"))
    losses = [[event["loss"] for event in place.events(name, "step")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(json.loads((place.runs / "two" / "environment.json").read_text())) == 1


def test_ctrl_c_reaches_two_processes_and_they_save(place: Place):
    command = place.command("two", "--training.steps", "100", "--training.batch_size", "1")
    process = launch([*LAUNCHER, "--num_processes", "2", "--cpu", "scripts/train.py", *command])
    # As a terminal does: all processes at once.
    wait_for(process, lambda: place.stepping("two"), lambda: os.killpg(process.pid, signal.SIGINT))
    process.communicate(timeout=500)
    end = place.events("two")[-1]
    assert end["outcome"] == "stopped"
    assert load_state(latest_state(place.runs / "two")).step == end["step"]


def test_each_process_knows_its_number_and_how_many_there_are(monkeypatch):
    told = []

    class Started:
        def __init__(self, command, env):
            told.append(env)

        def wait(self, seconds):
            pass

    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")
    for name in names:
        monkeypatch.setenv(name, "")  # so that the old values come back
    monkeypatch.setattr("modules.training.processes.subprocess.Popen", Started)
    with companions(2):
        told.insert(0, dict(os.environ))
    for rank, found in enumerate(told):
        assert [found[name] for name in names[2:]] == ["3", "3", str(rank), str(rank)]
    assert len(told) == 3 and len({(found["MASTER_ADDR"], found["MASTER_PORT"]) for found in told}) == 1


def test_the_launcher_is_recognised(monkeypatch):
    assert promised(LAUNCHED)
    assert not promised({})
    assert not promised({**LAUNCHED, "WORLD_SIZE": "2"})
    assert not promised({"ACCELERATE_USE_CPU": "True"})  # asked for one process
    assert not promised({**LAUNCHED, "ACCELERATE_USE_CPU": "False"})
    assert asked_for(["python", "accelerate", "launch", "--num_processes", "3", "--cpu", "train.py"]) == 3
    assert asked_for(["accelerate", "launch", "--num-processes=2", "train.py"]) == 2
    assert asked_for(["accelerate", "launch", "train.py"]) is None
    assert missing_processes() == 0
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="number of processes is unknown"):
        missing_processes()
    assert "configs/two_cpu_processes.yaml" in HOW
