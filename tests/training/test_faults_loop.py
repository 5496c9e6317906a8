"""Faults beside the steps: by-products that fail, runs killed between a state and its files, full disks, collapse."""

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modules.disk import MACHINE, started
from modules.training import beside, check, collapse, loop, outputs, samples, saving
from modules.training.run import remove_leftovers
from tests.training.runs import Place, ask, equal

DRAWN = ("--samples.enabled", "--samples.every", "1")


def fails(*_, **__):
    raise RuntimeError("it is broken")


def exported(place: Place, name: str) -> bool:
    """Whether the run has ended with its file."""
    (end,) = place.events(name, "finished")[-1:]
    return end["outcome"] == "done" and (place.runs / name / end["path"]).is_file()


def messages(place: Place, name: str) -> list[str]:
    return [event["message"] for event in place.events(name, "warning")]


# -- by-products ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_no_by_product_ends_a_training(place: Place, monkeypatch, capsys):
    """All of them fail at every step, and each is told of once."""
    assert place.train("whole") == 0
    owned = ((outputs, ("sample_captions", "validation_captions", "write_whole")), (samples, ("write_grid",)),
             (loop, ("curves",)), (collapse, ("measured",)))  # fmt: skip
    for owner, name in ((owner, name) for owner, names in owned for name in names):
        monkeypatch.setattr(owner, name, fails)
    monkeypatch.setattr(loop, "CURVES_EVERY", 1)
    monkeypatch.setattr("torch.utils.tensorboard.writer.SummaryWriter.add_scalar", fails)
    capsys.readouterr()
    assert place.train("bare", *DRAWN, "--validation.every", "1", "--saving.export_every", "2") == 0
    said = messages(place, "bare")
    parts = ("the loss before training", "the sample pictures", "the validation", "the adapter's curves")
    for what in (*parts, "TensorBoard", "the table of errors"):
        assert sum(what in message for message in said) == 1, (what, said)
    assert all("it is broken" in message for message in said)
    assert equal(place.adapter("bare"), place.adapter("whole"))
    assert exported(place, "bare") and (place.runs / "bare" / "bare-step-000002.safetensors").exists()
    screen = capsys.readouterr()
    assert "Traceback" not in screen.err and screen.err.count("warning: the validation of step 0 failed") == 1


@pytest.mark.full
def test_full_memory_beside_the_steps_ends_nothing_and_in_a_step_it_does(place: Place, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(outputs.samples, "save_samples", full)
        assert place.train("shown", *DRAWN) == 0
    (said,) = messages(place, "shown")
    assert "out of memory; turn them off with --samples.enabled false" in said
    monkeypatch.setattr(loop.feed, "errors", full)
    assert place.train("step", "--validation.every", "0") == 1


@pytest.mark.parametrize("error, code", [(FloatingPointError("non-finite"), 1), (KeyboardInterrupt(), 130)])
def test_what_is_no_failure_of_a_by_product_ends_the_run(place: Place, monkeypatch, error, code):
    def stops(session):
        raise error

    monkeypatch.setattr(loop, "sample", stops)
    assert place.train("ends", *DRAWN) == code
    assert place.events("ends")[-1]["exit_code"] == code


@pytest.mark.full
def test_an_export_along_the_way_may_fail_and_the_last_one_may_not(place: Place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "export", fails)
        assert place.train("way", "--saving.export_every", "2") == 1
    assert [event["step"] for event in place.events("way", "step")] == [1, 2, 3, 4]
    assert "the export of step 2 failed" in messages(place, "way")[0]
    assert place.train("way") == 0


# -- the grid ---------------------------------------------------------------------------------------------------------


def draw(folder: Path, steps: tuple[int, ...]) -> None:
    for step in steps:
        samples.save_samples(folder, step, [Image.new("RGB", (16, 16), color) for color in ("red", "blue")])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(folder: Path) -> None:
    """Everything that can be wrong with the files of the steps 1 to 5; 0 and 6 are whole."""
    place = folder / "samples"
    (place / "step-000001_00.png").unlink()
    cut(place / "step-000002_01.png")
    (place / "step-000003_00.png").write_bytes(b"")
    (place / "step-000003_01.png").write_text("no picture")
    for number in (0, 1):
        (place / f"step-00000{4}_0{number}.png").unlink()
        (place / f"step-00000{4}_0{number}.png").mkdir()
    (place / "step-000005_00.png").unlink()
    (place / "step-000005_00.png").symlink_to(place / "nowhere")
    for name in ("step-abc_01.png", "step-_00.png", "step-000001_1e.png", "step-²²²²²²_00.png", "step-000007_09.png"):
        (place / name).write_text("")
    (place / "step-000008_01.png").mkdir()


def test_a_grid_is_made_of_what_can_be_read(tmp_path):
    draw(tmp_path, tuple(range(7)))
    damaged(tmp_path)
    steps = samples.sampled_steps(tmp_path, 2, rows=20)
    assert steps == [0, 1, 2, 3, 4, 5, 6, 8]
    grid = samples.write_grid(tmp_path, steps, ["a\nprompt", "caf\udce9 \x1b[0m"])
    assert grid is not None
    with Image.open(grid) as picture:
        rows = (picture.height - samples.LABEL - samples.MARGIN) / (160 + samples.MARGIN)
        colors = {picture.getpixel((150, samples.LABEL + row * 166 + 80)) for row in range(int(rows))}
    assert rows == 5 and colors == {(255, 0, 0), (255, 255, 255)}  # 0, 1, 2, 5, 6; red is missing in 1 and 5


def test_a_grid_of_nothing_is_none(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-000001_00.png").write_text("")
    assert samples.write_grid(tmp_path, samples.sampled_steps(tmp_path, 2), ["a", "b"]) is None


@pytest.mark.full
def test_damaged_samples_do_not_keep_a_run_from_its_export(place: Place, monkeypatch):
    ask(monkeypatch, place, "drawn", "stop", at=2)
    assert place.train("drawn", *DRAWN) == 130
    folder = place.runs / "drawn" / "samples"
    cut(folder / "step-000000_01.png")
    (folder / "step-000001_00.png").unlink()
    (folder / "step-abc_01.png").write_text("")
    (folder / "step-000003_00.png").mkdir()  # in the way of a picture
    assert place.train("drawn", *DRAWN) == 0
    assert exported(place, "drawn")
    assert len(messages(place, "drawn")) == 1 and "step-000003_00.png" in messages(place, "drawn")[0]


# -- killed between a state and what is due with it -------------------------------------------------------------------


class Killed(BaseException):
    """Nothing is closed or said after it, as with kill -9."""


def kill(monkeypatch, owner, name: str, before: bool, step: int = 2) -> None:
    """Kill the process before or after the function `owner.name` at a step."""
    inside = getattr(owner, name)

    def killing(session, *given, **named):
        if session.step == step and before:
            raise Killed
        result = inside(session, *given, **named)
        if session.step == step:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killing)


EVERYTHING = (*DRAWN, "--validation.every", "1", "--saving.export_every", "2", "--saving.state_every", "1")


def at_step(place: Place, name: str, step: int) -> dict[str, int]:
    """How many events of each kind there are for a step."""
    events = [event for event in place.events(name) if event.get("step") == step]
    kinds = [event["what"] if event["event"] == "saved" else event["event"] for event in events]
    return {kind: kinds.count(kind) for kind in ("validation", "sample", "export")}


@pytest.mark.full
def test_what_was_due_when_a_run_was_killed_is_made_once(place: Place, monkeypatch):
    assert place.train("whole", *EVERYTHING) == 0
    points = [(loop, "save", False), (loop, "validate", False), (loop, "sample", True), (loop, "sample", False),
              (loop, "export_now", True), (outputs, "say_report", True), (loop, "save", True)]
    for number, (owner, function, before) in enumerate(points):
        name = f"killed{number}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill(patch, owner, function, before)
            place.train(name, *EVERYTHING)
        assert "finished" not in {event["event"] for event in place.events(name)}
        assert place.train(name, *EVERYTHING) == 0
        assert at_step(place, name, 2) == {"validation": 1, "sample": 2, "export": 1}, (function, before)
        assert at_step(place, name, 4) == {"validation": 1, "sample": 2, "export": 1}, (function, before)
        files = [load_file(place.runs / run / f"{run}-step-000002.safetensors") for run in ("whole", name)]
        assert equal(*files) and equal(place.adapter("whole"), place.adapter(name))
        for path in (place.runs / "whole" / "samples").glob("step-*.png"):
            assert path.read_bytes() == (place.runs / name / "samples" / path.name).read_bytes()


def test_left_overs_of_killed_processes_go_and_others_stay(place: Place):
    folder = place.runs / "tidied"
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = folder / f"tidied-step-000002.safetensors.{MACHINE}-{ended.pid}-12345-01234567.partial"
    alive = folder / f"tidied_kohya.safetensors.{MACHINE}-{os.getppid()}-{started(os.getppid())}-01234567.partial"
    (folder / "samples").mkdir(parents=True)
    for path in (gone, alive, folder / "samples" / "grid.png.partial"):
        path.write_text("")
    remove_leftovers(folder, folder.name)
    assert not gone.exists() and alive.exists() and not list((folder / "samples").iterdir())


@pytest.mark.full
def test_a_damaged_event_file_keeps_no_run_from_going_on(place: Place, monkeypatch):
    ask(monkeypatch, place, "torn", "stop", at=2)
    assert place.train("torn", "--validation.every", "1") == 130
    path = place.runs / "torn" / "events.jsonl"
    content = path.read_bytes().splitlines(keepends=True)
    content[3] = b"\0" * 4096 + b"\n"
    path.write_bytes(b"".join([*content, b"null\n", b"[" * 50_000 + b"\n", b'{"event": "finished"}\n']))
    assert place.train("torn", "--validation.every", "1") == 0
    assert sum("4 damaged lines are skipped" in message for message in messages(place, "torn")) == 1
    assert (place.runs / "torn" / "torn.safetensors").is_file()


# -- disks that are full ----------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str):
    """A real disk of a few KiB."""
    folder.mkdir(exist_ok=True)
    if os.name == "nt" or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("mount is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_up(path: Path, left: int = 0) -> None:
    """Leave `left` bytes, about."""
    with path.open("wb", 0) as file:
        while shutil.disk_usage(path.parent).free > left:
            file.write(b"x" * 4096)


@pytest.mark.short("save_adapter")
@pytest.mark.parametrize("function", ["save_adapter", "export_now", "save"])
def test_a_disk_that_is_full_is_said_with_bytes_and_path(place: Place, tmp_path, monkeypatch, capsys, function):
    more = ["--training.steps", "2", "--saving.state_every", "1", "--saving.folder", str(tmp_path / "small")]
    inside = getattr(loop, function)

    def without_room(session, *given):
        if session.step == 2:
            fill_up(tmp_path / "small" / "filler", 8192)
        return inside(session, *given)

    with small_disk(tmp_path / "small", "1m"):
        monkeypatch.setattr(loop, function, without_room)
        assert place.train("full", *more) == 1
        folder = tmp_path / "small" / "full"
        said = capsys.readouterr().err
        assert "bytes are free" in said and str(folder) in said and "Traceback" not in said
        assert "The same command resumes from" in said and "Serializ" not in said
        *_, error, end = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert (error["event"], end["event"], end["outcome"]) == ("error", "finished", "failed")
        assert not list(folder.glob("*.partial*")) and not list(folder.glob("*.reserve*"))
        (tmp_path / "small" / "filler").unlink()
        monkeypatch.undo()
        assert place.train("full", *more) == 0


def test_room_is_looked_at_before_a_run(place: Place, monkeypatch, capsys):
    free = [10**6]
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free[0]))
    assert place.train("room", "--check", "--samples.enabled") == 0
    assert "note: " not in capsys.readouterr().out
    free[0] = 25_000
    assert place.train("room", "--check", "--samples.enabled") == 0
    assert "25,000 bytes are free on its disk, and the whole run may need" in capsys.readouterr().out
    free[0] = 2_500
    assert place.train("room") == 2
    said = capsys.readouterr().err
    assert str(place.runs) in said and "2,500 bytes are free" in said and "--saving.folder" in said


# -- collapse ---------------------------------------------------------------------------------------------------------

LONG = ("--training.steps", "30", "--training.max_grad_norm", "0")
WIDE = {"targets": {"layers": "all", "include": ["unet.conv_out"]}, "adapter": {"method": "lora", "rank": 2}}


def ruin(monkeypatch) -> None:
    """Make of the adapter, after step 3, what a learning rate that is too high makes of it: large random weights. (The
    tiny base knows nothing, so that no learning rate makes it worse.)"""
    report = loop.report

    def ruined(session, *given):
        report(session, *given)
        if session.step == 3:
            torch.manual_seed(0)
            for parameter in session.adapted["unet.conv_out"].adapter.parameters():
                parameter.data.normal_(0, 4)

    monkeypatch.setattr(loop, "report", ruined)


@pytest.mark.full
def test_a_collapse_is_said_in_the_run_and_at_its_end(place: Place, monkeypatch, capsys):
    ruin(monkeypatch)
    assert place.train("fast", *LONG, **WIDE) == 0
    said = capsys.readouterr()
    (warning,) = place.events("fast", "warning")
    assert "training.learning_rate 0.001 instead of 0.01" in warning["message"]
    assert "max_grad_norm" in warning["message"] and 20 <= int(warning["detail"].split()[-1]) < 30
    assert said.err.count("warning: the loss on the ") == 1
    *_, done, last = said.out.splitlines()
    assert done.startswith("Done, with a warning: ") and "makes the model worse" in last and "--name" in last


@pytest.mark.full
def test_a_training_that_learns_is_not_called_a_collapse(place: Place, capsys):
    assert place.train("calm", "--training.steps", "25") == 0
    assert not place.events("calm", "warning")
    assert capsys.readouterr().out.splitlines()[-1].startswith("Done: ")


@pytest.mark.full
def test_a_resumed_run_still_knows_the_loss_before_training(place: Place, monkeypatch):
    ask(monkeypatch, place, "again", "stop", at=2)
    assert place.train("again", *LONG, **WIDE) == 130
    ruin(monkeypatch)
    kept = []
    save = saving.save
    monkeypatch.setattr(loop, "save", lambda session: (kept.append(session.reference), save(session)))
    assert place.train("again", *LONG, **WIDE) == 0
    assert kept and set(kept) != {None}
    assert len(place.events("again", "warning")) == 1


@pytest.mark.parametrize("now, said", [(1.4, False), (1.6, True), (float("nan"), True), (float("inf"), True)])
def test_what_is_far_above_the_base(now, said, place: Place):
    with place.session("judged") as session:
        collapse.judge(session, 1.0, now, "on the validation pictures")
        assert bool(session.collapsed) == said
        collapse.judge(session, 1.0, 1.0, "on the validation pictures")
        assert not session.collapsed
        for before in (None, float("nan"), 0.0):
            collapse.judge(session, before, 9.0, "on the validation pictures")
        assert not session.collapsed


# -- non-finite adapters ----------------------------------------------------------------------------------------------


def test_nothing_is_written_from_a_non_finite_adapter(place: Place, monkeypatch, capsys):
    report = loop.report

    def poisoned(session, *given):
        report(session, *given)
        if session.step == 4:
            session.flat.parameters[0].data.view(-1)[0] = float("nan")

    monkeypatch.setattr(loop, "report", poisoned)
    monkeypatch.setattr(loop, "save", lambda session: session.step < 4 and saving.save(session))
    assert place.train("bad", "--saving.state_every", "2") == 1
    folder, said = place.runs / "bad", capsys.readouterr().err
    assert "Non-finite values after step 4: unet." in said
    assert "training.learning_rate 0.001 instead of 0.01" in said
    assert not list(folder.glob("*.safetensors*"))
    with pytest.raises(FloatingPointError), place.session("worse") as session:
        session.flat.parameters[0].data.fill_(float("inf"))
        outputs.export_now(session, "x")


def test_with_a_base_in_shares_a_failure_stays_one(place: Place, monkeypatch):
    """All processes read the base together; what the main one alone does is a by-product there too."""
    with place.session("shared") as session:
        monkeypatch.setattr(beside.sharding, "is_wanted", lambda: True)
        with pytest.raises(RuntimeError, match="it is broken"):
            beside.beside(session, "the validation", fails)
        beside.beside(session, "the sample pictures", fails, together=False)
    (warning,) = place.events("shared", "warning")
    assert "it is broken" in warning["message"] and "in fails" in warning["detail"]
