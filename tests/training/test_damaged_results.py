"""What a run has at its end, `adapter.safetensors` and the exported file: damaged later, it is noticed, and made again
from whatever is whole."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from modules import tensorfile
from modules.training import ended, state, stored
from scripts import export
from tests.training.runs import Place, equal

LORA = {"adapter": {"method": "lora", "rank": 2}, "training": {"steps": 2, "batch_size": 2, "warmup": 0,
                                                               "gradient_checkpointing": False}}


def whole_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is changed in place afterwards: `load_file` would map it."""
    return load(path.read_bytes())


def flip_a_bit(path: Path) -> None:
    """Change the last number of a file a little: it stays a safetensors file of finite numbers."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def with_infinity(path: Path) -> None:
    """A file of before checksums whose training had diverged."""
    with safe_open(path, "pt") as file:
        told = {key: value for key, value in file.metadata().items() if key != tensorfile.CHECKSUM}
    tensors = whole_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].view(-1)[0] = float("inf")
    save_file(tensors, path, told)


@pytest.fixture
def run(place: Place) -> Path:
    """A run that is done."""
    assert place.train("done", **LORA) == 0
    return place.runs / "done"


@pytest.mark.full
@pytest.mark.short("adapter.safetensors-flip_a_bit")
@pytest.mark.parametrize("spoil", [flip_a_bit, with_infinity, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["done.safetensors", "adapter.safetensors"])
def test_the_same_command_makes_a_damaged_file_again(place: Place, run, name, spoil, capsys):
    before = whole_file(run / name)
    spoil(run / name)
    assert place.train("done", **LORA) == 0
    said = capsys.readouterr()
    assert str(run / name) in said.err and "step-000002" in said.err and "already finished" not in said.out
    assert equal(whole_file(run / name), before)
    assert ended.finished_file(run, stored.preset_of(run, run / name)) == run / "done.safetensors"
    assert place.train("done", **LORA) == 0
    assert "already finished" in capsys.readouterr().out


def test_without_states_it_is_made_from_the_adapters(place: Place, run, capsys):
    shutil.rmtree(run / state.FOLDER)
    before, adapter = whole_file(run / "done.safetensors"), (run / "adapter.safetensors").read_bytes()
    flip_a_bit(run / "done.safetensors")
    assert place.train("done", **LORA) == 0
    said = capsys.readouterr()
    assert "recreating it from" in said.err and "adapter.safetensors" in said.err
    assert equal(whole_file(run / "done.safetensors"), before)
    assert (run / "adapter.safetensors").read_bytes() == adapter, "no step was made"
    assert place.events("done")[-1]["event"] == "finished"


def test_where_nothing_is_whole_the_run_is_refused_and_left_alone(place: Place, run, capsys):
    shutil.rmtree(run / state.FOLDER)
    for name in ("done.safetensors", "adapter.safetensors"):
        flip_a_bit(run / name)
    before = {path: path.read_bytes() for path in run.glob("*.safetensors")}
    assert place.train("done", **LORA) == 2
    said = capsys.readouterr().err
    assert all(str(path) in said for path in before) and "Restore a copy" in said
    assert {path: path.read_bytes() for path in run.glob("*.safetensors")} == before


def test_a_damaged_adapter_is_never_exported(place: Place, run, monkeypatch, capsys):
    flip_a_bit(run / "adapter.safetensors")
    out = run / "other.safetensors"
    monkeypatch.setattr("sys.argv", ["export.py", str(run), "--out", str(out)])
    assert export.main() == 0
    said = capsys.readouterr()
    assert "adapter.safetensors" in said.err and "checksum" in said.err and "step-000002" in said.out
    assert equal(whole_file(out), whole_file(run / "done.safetensors"))
    shutil.rmtree(run / state.FOLDER)
    monkeypatch.setattr("sys.argv", ["export.py", str(run), "--out", str(run / "third.safetensors")])
    assert export.main() == 2
    assert "restore a copy" in capsys.readouterr().err and not (run / "third.safetensors").exists()


def test_files_without_a_checksum_are_read_as_before(place: Place, run, capsys):
    for name in ("done.safetensors", "adapter.safetensors"):
        with safe_open(run / name, "pt") as file:
            told = {key: value for key, value in file.metadata().items() if key != tensorfile.CHECKSUM}
        save_file(whole_file(run / name), run / name, told)
    assert place.train("done", **LORA) == 0
    assert "already finished" in capsys.readouterr().out
    assert stored.source(run, None) == (run / "adapter.safetensors", [])


def test_a_checksum_is_that_of_what_is_written_whatever_the_metadata_say(tmp_path):
    path, tensors = tmp_path / "x.safetensors", {"b": torch.arange(3), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    tensorfile.save(tensors, path, {tensorfile.CHECKSUM: "of another file", "x": "y"})
    tensorfile.check_content(path)
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert told["x"] == "y"
    save_file(dict(reversed(tensors.items())), path, {**told, "x": "edited"})
    tensorfile.check_content(path)
    for other in ({**tensors, "b": torch.tensor([0, 1, 3])}, {"a": tensors["a"]}, {**tensors, "a": torch.ones(4)}):
        save_file(other, path, told)
        with pytest.raises(ValueError, match="checksum"):
            tensorfile.check_content(path)
