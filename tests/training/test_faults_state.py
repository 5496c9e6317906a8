"""What power cuts, clocks and people do to a run folder: no step is lost, and nothing goes on in silence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.training import loop, state
from modules.training.state import load_state, newest, save_state, states
from tests.training.runs import Place, ask, equal

KEEP = {"state_every": 1, "keep_states": 3}


@pytest.fixture(scope="module")
def held(stage, tmp_path_factory) -> Place:
    """A run `held` that was stopped after three of four steps, with a state of each; and `whole`, the same at once."""
    place = Place(stage, tmp_path_factory.mktemp("held"))
    with pytest.MonkeyPatch.context() as patch:
        ask(patch, place, "held", "stop", at=3)
        assert place.train("held", saving=KEEP) == 130
    assert place.train("whole", saving=KEEP) == 0
    return place


@pytest.fixture
def run(held: Place, place: Place) -> Path:
    """A copy of `held`."""
    return Path(shutil.copytree(held.runs / "held", place.runs / "held"))


def goes_on(place: Place, held: Place, *more: str) -> bool:
    """Whether the run ends with the very adapter of the uninterrupted one."""
    assert place.train("held", *more, saving=KEEP) == 0
    return equal(place.adapter("held"), held.adapter("whole"))


def steps(place: Place) -> list[int]:
    """Those that were done, in their order, of both starts."""
    return [event["step"] for event in place.events("held", "step")]


def warnings(place: Place, name: str = "held") -> str:
    return "\n".join(event["message"] for event in place.events(name, "warning"))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "state").iterdir())


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_clock_that_was_set_back_loses_nothing(place: Place, held: Place, run):
    later = (run / "state" / "step-000001").stat().st_mtime + 3600
    os.utime(run / "state" / "step-000001", (later, later))
    assert goes_on(place, held)
    assert names(run) == ["step-000002", "step-000003", "step-000004"]


def plant(monkeypatch, at: int) -> None:
    """Make a parameter NaN when step `at` has been done."""
    take_step = loop.take_step

    def planted(session, progress):
        found = take_step(session, progress)
        if session.step + 1 == at:
            session.flat.parameters[0].detach().view(-1)[0] = float("nan")
        return found

    monkeypatch.setattr(loop, "take_step", planted)


@pytest.mark.full
@pytest.mark.short("2")
@pytest.mark.parametrize("at", [2, 4])
def test_a_parameter_that_is_not_finite_is_never_saved(place: Place, held: Place, at, monkeypatch, capsys):
    """In the middle, and at the last step, where the adapter would be written next."""
    with monkeypatch.context() as patch:
        plant(patch, at)
        assert place.train("held", saving=KEEP) == 1
    said = capsys.readouterr().err
    assert f"Non-finite values after step {at}: unet." in said and "Traceback" not in said
    assert names(place.runs / "held") == [f"step-{step:06d}" for step in range(1, at)]
    assert not (place.runs / "held" / "adapter.safetensors").exists()
    assert goes_on(place, held)


def with_nan(path: Path) -> None:
    """As a version wrote it that did not look: NaN with the right checksums."""
    saved = load_state(path)
    name = min(saved.adapter)
    saved.adapter[name].view(-1)[0] = float("nan")
    _rewrite(path, saved.adapter)


def _rewrite(path: Path, adapter) -> None:
    save_file(adapter, path / "adapter.safetensors")
    document = json.loads((path / "state.json").read_text())
    document["contents"]["sha256"]["adapter.safetensors"] = state.checksum(path / "adapter.safetensors")
    document["sha256"] = state._text_checksum(document["contents"])
    (path / "state.json").write_text(json.dumps(document))


def misshapen(path: Path) -> None:
    saved = load_state(path)
    name = min(saved.adapter)
    _rewrite(path, {**saved.adapter, name: torch.zeros(3, 3)})


def of_another_preset(path: Path) -> None:
    text = (path / "preset.json").read_text().replace('"seed": 0', '"seed": 7', 1)
    assert '"seed": 7' in text
    (path / "preset.json").write_text(text)
    document = json.loads((path / "state.json").read_text())
    document["contents"]["sha256"]["preset.json"] = state.checksum(path / "preset.json")
    document["sha256"] = state._text_checksum(document["contents"])
    (path / "state.json").write_text(json.dumps(document))


def of_another_optimizer(path: Path) -> None:
    saved = load_state(path)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter])
    shutil.rmtree(path)
    save_state(path.parents[1], saved.step, saved.adapter, optimizer, saved.facts, saved.texts)


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


UNUSABLE = [
    (with_nan, "non-finite"),
    (misshapen, "other layers or options"),
    (of_another_preset, "it has another preset (training.seed"),
    (of_another_optimizer, "with optimizer SGD, not AdamW"),
    (a_file, "incomplete or unreadable"),
]


@pytest.mark.short("with_nan-", "of_another_preset-")
@pytest.mark.parametrize("damage, reason", UNUSABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_state_that_cannot_be_used_is_said_and_put_aside(place: Place, held: Place, run, damage, reason, capsys):
    damage(run / "state" / "step-000003")
    capsys.readouterr()
    assert goes_on(place, held)
    said = capsys.readouterr().err
    for words in (said, warnings(place)):
        assert str(run / "state" / "step-000003") in words and reason in words
        assert f"resuming from {run / 'state' / 'step-000002'}" in words
    assert names(run) == ["step-000001", "step-000002", "step-000003", "step-000003.unusable", "step-000004"][1:]
    assert steps(place) == [1, 2, 3, 3, 4]


def test_of_several_that_cannot_be_used_one_is_kept(place: Place, held: Place, run):
    for step in (2, 3):
        flip_a_bit(run / "state" / f"step-{step:06d}" / "adapter.safetensors")
    assert goes_on(place, held)
    assert [name for name in names(run) if name.endswith(".unusable")] == ["step-000003.unusable"]
    assert newest(run)[0] == run / "state" / "step-000004"


def test_without_a_state_that_can_be_used_nothing_starts(place: Place, run, capsys):
    for step, damage in ((1, flip_a_bit), (2, os.unlink), (3, lambda file: os.truncate(file, 3))):
        damage(run / "state" / f"step-{step:06d}" / "adapter.safetensors")
    before = names(run)
    capsys.readouterr()
    assert place.train("held", saving=KEEP) == 2
    said = capsys.readouterr().err
    assert all(f"step-{step:06d}" in said for step in (1, 2, 3)) and "--name" in said and "Traceback" not in said
    assert names(run) == before and steps(place) == [1, 2, 3]


def test_states_that_are_all_of_another_training_are_refused_too(place: Place, run, capsys):
    for path in states(run):
        of_another_optimizer(path)
    capsys.readouterr()
    assert place.train("held", saving=KEEP) == 1
    said = capsys.readouterr().err
    assert said.count("with optimizer SGD, not AdamW") >= 3 and "step 0" in said and "Traceback" not in said
    assert len(states(run)) == 3 and steps(place) == [1, 2, 3]


def test_states_that_cannot_be_renamed_or_deleted_do_not_end_the_run(place: Place, held: Place, run, monkeypatch):
    flip_a_bit(run / "state" / "step-000003" / "adapter.safetensors")
    rename = Path.rename

    def refusing(self, target):
        if self.suffix != ".partial" and self.parent.name == "state":
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    assert place.train("held", "--saving.keep_states", "1", saving={"state_every": 0}) == 0
    assert equal(place.adapter("held"), held.adapter("whole"))
    assert "cannot be renamed" in warnings(place) and "cannot be deleted" in warnings(place)
    assert newest(run)[0] == run / "state" / "step-000004"


# -- the run's own small files ----------------------------------------------------------------------------------------


DAMAGED = {"empty": b"", "null": b"null", "list": b"[]", "zeros": b"\0" * 512, "deep": b"[" * 100_000, "bytes": b"\xff"}


ENVIRONMENTS = {**DAMAGED, "list": b"[1]", "object": b"{}"}
"""An empty list is a right one: of no starts."""


@pytest.mark.short("empty")
@pytest.mark.parametrize("content", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_damaged_environment_is_begun_anew(place: Place, run, content, capsys):
    before = (run / "environment.json").write_bytes(content)
    with place.session("held", saving=KEEP) as session:
        assert session.step == 3
    assert f"{run / 'environment.json'} is damaged" in capsys.readouterr().err
    assert "environment.json is damaged" in warnings(place)
    (start,) = json.loads((run / "environment.json").read_text())
    assert start["process"]["pid"] == os.getpid()
    assert (run / "environment.json.damaged").stat().st_size == before


@pytest.mark.short("list", "half", "none")
@pytest.mark.parametrize("content", [*DAMAGED.values(), b'{"family": "sdxl"', None], ids=[*DAMAGED, "half", "none"])
def test_a_damaged_preset_is_that_of_the_states(place: Place, run, content, capsys):
    whole = (run / "preset.json").read_text()
    if content is None:
        (run / "preset.json").unlink()
    else:
        (run / "preset.json").write_bytes(content)
    with place.session("held", saving=KEEP) as session:
        assert session.step == 3
    assert f"{run / 'preset.json'} is " in capsys.readouterr().err
    assert "preset.json is " in warnings(place)
    assert json.loads((run / "preset.json").read_text())["adapter"] == json.loads(whole)["adapter"]


def test_a_preset_that_was_changed_on_the_disk_is_that_of_the_states(place: Place, run):
    text = (run / "preset.json").read_text()
    (run / "preset.json").write_text(text.replace('"seed": 0', '"seed": 4', 1))
    with place.session("held", saving=KEEP) as session:
        assert session.step == 3
    assert "was changed; restoring it" in warnings(place)
    assert (run / "preset.json").read_text().count('"seed": 4') == 0


def test_behind_a_damaged_preset_another_one_is_still_refused(place: Place, run, capsys):
    (run / "preset.json").write_bytes(b"")
    assert place.train("held", "--training.seed", "3", saving=KEEP) == 2
    said = capsys.readouterr().err
    assert "training.seed: 0 -> 3" in said and len(states(run)) == 3
    for path in states(run):  # as earlier versions wrote them
        (path / "preset.json").unlink()
        document = json.loads((path / "state.json").read_text())
        del document["contents"]["sha256"]["preset.json"]
        document["sha256"] = state._text_checksum(document["contents"])
        (path / "state.json").write_text(json.dumps(document))
    assert place.train("held", saving=KEEP) == 2
    said = capsys.readouterr().err
    assert str(run / "preset.json") in said and "Restore a copy" in said and "delete" not in said
    assert len(states(run)) == 3


def test_what_was_being_written_goes(place: Place, run):
    partial = f"{os.getpid()}-0123456789ab.partial"
    left = [f"preset.json.{partial}", "held.partial.safetensors", "adapter.partial.safetensors",
            f"samples/a.png.{partial}", "state/step-000009.partial"]
    for name in left:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    with place.session("held", saving=KEEP):
        pass
    assert not [name for name in left if (run / name).exists()]


@pytest.mark.full
def test_a_run_whose_name_looks_like_a_leftover_keeps_its_files(place: Place):
    name = "a.partial"
    with place.session(name):
        pass
    for file in (f"{name}.safetensors", f"{name}-step-000001.safetensors", "a.partial.partial.safetensors"):
        (place.runs / name / file).write_text("x")
    with place.session(name):
        pass
    found = {path.name for path in (place.runs / name).glob("*.safetensors")}
    assert found == {f"{name}.safetensors", f"{name}-step-000001.safetensors"}


@pytest.mark.parametrize("name, is_file", [
    ("state", False), ("requests", False), ("layers.tsv", True), ("pictures.tsv", True), ("adapter.safetensors", True),
    ("preset.json", True), ("environment.json", True), ("held.safetensors", True),
])  # fmt: skip
def test_a_file_in_place_of_a_folder_and_the_reverse(place: Place, run, name, is_file, capsys):
    state.remove(run / name)
    if is_file:
        (run / name).mkdir()
    else:
        (run / name).write_text("x")
    assert place.train("held", saving=KEEP) == 2
    said = capsys.readouterr().err
    assert f"{run / name} is a {'folder' if is_file else 'file'}, but" in said and "Errno" not in said
    assert "Traceback" not in said


def test_a_file_in_place_of_the_run_folder(place: Place, capsys):
    (place.runs / "held").write_text("x")
    assert place.train("held") == 2
    said = capsys.readouterr().err
    assert f"{place.runs / 'held'} is a file" in said and "--name" in said


@pytest.mark.short("null", "path")
@pytest.mark.parametrize("end", [
    "null", "[]", "3", '{"event": "finished"}', '{"event": "finished", "outcome": "done", "path": ["x"], "step": 3}',
    '{"event": "finished", "outcome": "done", "path": "held.safetensors", "step": "3"}',
], ids=["null", "list", "number", "bare", "path", "step"])  # fmt: skip
def test_a_last_event_of_another_shape_is_no_end(place: Place, run, end):
    with (run / "events.jsonl").open("a") as file:
        file.write(end + "\n")
    with place.session("held", saving=KEEP) as session:
        assert session.step == 3 and session.run.finished is None


@pytest.mark.full
def test_a_state_too_many_goes_when_the_run_goes_on(place, monkeypatch):
    """Killed between saving the last state and deleting the ones before."""

    def stop(_session):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, "prune_states", lambda *_: None)
        patch.setattr(loop, "save_adapter", stop)
        assert place.train("late", saving={"state_every": 1, "keep_states": 1}) == 130
    assert names(place.runs / "late")[1:]
    assert place.train("late", saving={"state_every": 1, "keep_states": 1}) == 0
    assert names(place.runs / "late") == ["step-000004"]


def test_odd_things_in_a_run_folder_are_refused_or_taken_as_meant(place: Place, held: Place, run, capsys):
    (run / "state").rename(run / "elsewhere")
    (run / "state").symlink_to(place.runs / "nowhere")
    assert place.train("held", saving=KEEP) == 2
    assert "is a broken link" in capsys.readouterr().err
    (run / "state").unlink()
    (run / "elsewhere").rename(run / "state")
    (run / "requests" / "stop").mkdir(parents=True)  # of an earlier start
    assert goes_on(place, held)
