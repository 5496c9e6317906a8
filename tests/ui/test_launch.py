"""The trainer is a process of its own: it outlives the window, goes on writing, and is recognised again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ui.core import places
from ui.core.runs import devices, jobs, launch
from ui.core.runs.launch import Process

PRINTING = "import sys, time\nfor n in range(600): print(n, flush=True); time.sleep(0.02)\n"


def wait_until(true, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.02)


@pytest.fixture
def started(tmp_path):
    """A function that starts Python code; what still runs at the end is killed."""
    processes = []

    def start(code: str, output: str = "größer werden.out", use: tuple[str, ...] = ()) -> Process:
        processes.append(launch.start([sys.executable, "-c", code], tmp_path, tmp_path / "new" / output, use))
        return processes[-1]

    yield start
    for process in processes:
        launch.kill(process)


def test_what_it_prints_goes_into_a_file_and_its_end_is_seen(started, tmp_path):
    code = "import os, sys; print('größe', os.getcwd()); print('err', file=sys.stderr); sys.exit(3)"
    process = started(code)
    wait_until(lambda: not launch.alive(process))
    assert (tmp_path / "new/größer werden.out").read_text("utf-8").splitlines() == [f"größe {tmp_path}", "err"]
    assert launch.exit_code(process) == 3
    assert not psutil.pid_exists(process.pid), "no zombie is left"


def test_a_process_is_recognised_by_more_than_its_number(started):
    process = started(PRINTING)
    assert launch.alive(process) and launch.exit_code(process) is None
    assert launch.alive(Process(process.pid, process.created + 1, process.host)), "a clock may be set a little"
    assert not launch.alive(Process(process.pid, process.created - 3600, process.host))
    assert not launch.alive(Process(process.pid, process.created, "elsewhere"))


def test_killing_takes_the_children_too(started, tmp_path):
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    process = started(code)
    wait_until(lambda: psutil.Process(process.pid).children())
    (child,) = psutil.Process(process.pid).children()
    launch.kill(process)
    wait_until(lambda: not launch.alive(process))
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    launch.kill(process)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_window_leaves_its_trainer_running_and_writing(tmp_path):
    output = tmp_path / "a b.out"
    window = (
        "import json, sys, time; from pathlib import Path; from ui.core.runs import launch\n"
        f"p = launch.start([sys.executable, '-c', {PRINTING!r}], Path({str(tmp_path)!r}), Path({str(output)!r}))\n"
        "print(json.dumps([p.pid, p.created, p.host]), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", window], cwd=places.ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    process = Process(*json.loads(parent.stdout.readline()))
    try:
        assert os.getsid(process.pid) != os.getsid(parent.pid), "a closed terminal does not reach it"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        before = output.stat().st_size
        wait_until(lambda: output.stat().st_size > before + 20)
        assert launch.alive(process)
    finally:
        launch.kill(process)
    wait_until(lambda: not launch.alive(process))


def test_devices_are_told_through_the_environment(started, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in launch.environment(("",))
    assert launch.environment(("1",))["CUDA_VISIBLE_DEVICES"] == "1"
    told = launch.environment(("0", "2"))
    assert (told["CUDA_VISIBLE_DEVICES"], told["CUDA_DEVICE_ORDER"]) == ("0,2", "PCI_BUS_ID")


def test_requests_are_files_and_what_cannot_be_asked_is_a_sentence(tmp_path):
    launch.request(tmp_path, "save")
    assert (tmp_path / "requests/save").exists() and launch.requested(tmp_path, "save")
    assert not launch.requested(tmp_path, "stop")
    with pytest.raises(ValueError, match="cannot be asked to stop"):
        launch.request(tmp_path / "gone", "stop")


def job(**changes) -> jobs.Job:
    folder = Path("/runs/größer werden")
    facts = {"device": "any", "resume": False, "added": "", "cwd": places.ROOT, **changes}
    return jobs.Job("1", folder.name, Path("/q/1.json"), folder, Path("/q/1.out"), **facts)


def test_commands():
    train = str(places.TRAIN)
    assert jobs.command(job(), ("0",)) == [sys.executable, train, "--preset", "/q/1.json"]
    resumed = jobs.command(job(resume=True), ("",))
    assert resumed[4:] == ["--saving.folder", "/runs", "--name=größer werden"]
    several = jobs.command(job(), ("0", "1"))
    assert several[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert several[several.index("--num_processes") + 1] == "2" and several[-3:] == [train, "--preset", "/q/1.json"]
    assert Path(several[several.index("--config_file") + 1]).is_file()


def test_what_the_trainer_refuses_is_found_in_what_it_printed():
    printed = (
        "note: n\nCannot start:\n  - one\n    more\n  - two\n  - note: aside\nTraceback\n  - three\n"
    )
    assert jobs.refusal(printed) == ["one\nmore", "two"]
    assert jobs.refusal("Traceback\n") == []


TABLE = "0, GPU-aa, NVIDIA H100 80GB HBM3\n1, GPU-bb, NVIDIA GB10\n"


@pytest.mark.parametrize(
    "allowed, ids", ((None, ["0", "1"]), ("1", ["1"]), ("GPU-aa", ["0"]), ("", []), ("-1", []), ("1,0", ["0", "1"]))
)
def test_the_gpus_that_this_process_may_use(allowed, ids):
    assert [device.id for device in devices.visible(TABLE, allowed)] == ids


def test_choices_of_devices(qtbot):
    found = devices.Devices()
    assert found.choices() == [("any", "this machine")] and not found.all
    found.on_found(devices.visible(TABLE, "0"))
    assert found.choices() == [("any", "GPU 0: NVIDIA H100 80GB HBM3")]
    found.on_found(devices.visible(TABLE, None))
    assert [value for value, _ in found.choices()] == ["any", "0", "1", "all"]


def test_a_machine_without_nvidia_and_one_whose_driver_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.found() == (devices.MACHINE,)
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match="version mismatch"):
        devices.found()
