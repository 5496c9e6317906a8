"""The run folder: created, opened again by the same command, refused in words to anything else."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from modules.preset.schema import Preset
from modules.training.events import Events
from modules.training.run import RESERVED, join_run, open_run


def preset(**sections) -> Preset:
    from modules import adapters, families

    values = {"family": families.names()[0], "adapter": {"method": next(iter(adapters.methods()))}}
    return Preset.model_validate(values | sections)


def reopen(folder: Path, **sections) -> None:
    open_run(folder, preset(**sections), "a").close()


def test_a_new_run_has_preset_and_environment(tmp_path):
    with open_run(tmp_path, preset(), "my run") as run:
        assert run.folder == tmp_path / "my run"
        assert run.finished is None
        assert Preset.model_validate_json((run.folder / "preset.json").read_text()) == preset()
        (start,) = json.loads((run.folder / "environment.json").read_text())
    assert {"python", "platform", "packages", "command", "gimbal", "devices"} <= set(start)
    assert start["packages"]["torch"]


def test_a_run_knows_its_process(tmp_path):
    reopen(tmp_path)
    (start,) = json.loads((tmp_path / "a" / "environment.json").read_text())
    process = psutil.Process(start["process"].pop("pid"))
    assert process.pid == os.getpid() and process.create_time() == start["process"].pop("created")
    assert start["process"] == {"host": platform.node(), "folder": str(Path.cwd())}


def test_a_run_with_an_option_s_old_name_goes_on(tmp_path):
    reopen(tmp_path, data={"folders": ["x"]})
    path = tmp_path / "a" / "preset.json"
    values = json.loads(path.read_text())
    values["data"]["folder"] = values["data"].pop("folders")[0]
    path.write_text(json.dumps(values))
    reopen(tmp_path, data={"folders": ["x"]})
    assert json.loads(path.read_text())["data"]["folders"] == ["x"]


def test_the_same_command_opens_it_again(tmp_path):
    for _ in range(2):
        reopen(tmp_path)
    assert len(json.loads((tmp_path / "a" / "environment.json").read_text())) == 2


def test_another_preset_is_refused_with_what_differs(tmp_path):
    reopen(tmp_path)
    with pytest.raises(ValueError) as error:
        reopen(tmp_path, training={"seed": 7, "schedule": "constant"}, optimizer={"name": "adamw"})
    for part in ("training.seed: 0 -> 7", 'training.schedule: "cosine" -> "constant"', "optimizer.name", "--name"):
        assert part in str(error.value)
    assert json.loads((tmp_path / "a" / "preset.json").read_text())["training"]["seed"] == 0


def test_what_does_not_change_the_training_may_change(tmp_path):
    reopen(tmp_path)
    changed = {"description": "x", "samples": {"every": 7}, "saving": {"keep_states": 1}}
    reopen(tmp_path, **changed, training={"gradient_checkpointing": False, "compile": True}, base={"offload_blocks": 1})
    assert json.loads((tmp_path / "a" / "preset.json").read_text())["samples"]["every"] == 7


def test_an_unreadable_preset_is_refused(tmp_path):
    reopen(tmp_path)
    (tmp_path / "a" / "preset.json").write_text('{"famly": 1}')
    with pytest.raises(ValueError, match="cannot be read by this version"):
        reopen(tmp_path)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "holiday.jpg").touch()
    with pytest.raises(ValueError, match="holiday.jpg"):
        reopen(tmp_path)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["holiday.jpg"]


def test_a_start_cut_short_can_be_repeated(tmp_path):
    reopen(tmp_path)
    (tmp_path / "a" / "preset.json").unlink()
    (tmp_path / "a" / "environment.json").unlink()
    reopen(tmp_path)


@pytest.mark.parametrize("name", ["wora_demo", "Äpfel 2", "a.b", "x" * 100, "console"])
def test_good_names(name, tmp_path):
    open_run(tmp_path, preset(), name).close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a:b", "a?", "x" * 101, " a", "a.", "CON", "nul.txt"])
def test_bad_names_are_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(ValueError, match="--name"):
        open_run(tmp_path, preset(), name)
    assert list(tmp_path.iterdir()) == []


def test_reserved_names():
    assert RESERVED.fullmatch("com1") and not RESERVED.fullmatch("comma")


def test_requests_are_consumed_and_old_ones_ignored(tmp_path):
    with open_run(tmp_path, preset(), "a") as run:
        assert not run.requested("stop")
        (run.folder / "requests" / "stop").touch()
        assert [run.requested("stop"), run.requested("stop")] == [True, False]
        (run.folder / "requests" / "save").touch()
        with pytest.raises(AssertionError):
            run.requested("spot")
    with open_run(tmp_path, preset(), "a") as run:
        assert not run.requested("save")


def test_two_cannot_train_in_one_folder(tmp_path):
    with open_run(tmp_path, preset(), "a"):
        with pytest.raises(ValueError, match="another process is training"):
            reopen(tmp_path)
        assert join_run(tmp_path, "a").folder == tmp_path / "a"
    reopen(tmp_path)


def test_a_killed_process_leaves_no_lock(tmp_path):
    reopen(tmp_path)
    code = "import os, sys, filelock; filelock.FileLock(sys.argv[1], timeout=0).acquire(); os._exit(1)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a" / "lock")], check=False)
    assert done.returncode == 1
    reopen(tmp_path)


def finish(folder: Path, outcome: str, path) -> None:
    with Events(folder) as events:
        events.write("finished", {"outcome": outcome, "exit_code": 0, "step": 5, "path": path})


def test_a_finished_run_knows_its_file(tmp_path):
    reopen(tmp_path)
    folder, file = tmp_path / "a", tmp_path / "a" / "a.safetensors"
    finish(folder, "stopped", None)
    with open_run(tmp_path, preset(), "a") as run:
        assert run.finished is None
    save_file({"x": torch.ones(3)}, file)
    finish(folder, "done", file)
    with open_run(tmp_path, preset(), "a") as run:
        assert run.finished == file
    os.truncate(file, 40)  # a power cut
    with open_run(tmp_path, preset(), "a") as run:
        assert run.finished is None
    file.unlink()
    with open_run(tmp_path, preset(), "a") as run:
        assert run.finished is None


def test_opening_clears_up_after_a_crash(tmp_path):
    reopen(tmp_path)
    (tmp_path / "a" / "state" / "step-000001.partial").mkdir(parents=True)
    reopen(tmp_path)
    assert list((tmp_path / "a" / "state").iterdir()) == []
