"""Where a run writes: folders that cannot be written are refused before the first step, a cache that has everything may
be one, and a folder that goes away in the middle ends the run."""

import os
import shutil

import pytest
import torch

from modules.answer import sentence
from modules.disk import whole
from modules.files import opening as files
from modules.printable import LONGEST, short
from modules.training import loop, state
from scripts import export
from tests.read_only import read_only
from tests.training.runs import Place, equal

SHORT = {"adapter": {"method": "lora", "rank": 2}, "training": {"steps": 2, "batch_size": 2, "warmup": 0,
                                                                "gradient_checkpointing": False}}
LONGER = {**SHORT, "training": {**SHORT["training"], "steps": 3}}


@pytest.mark.short("state")
@pytest.mark.parametrize("name", ["state", "samples", "requests", "."])
def test_a_run_that_cannot_be_written_is_refused_before_anything_is_loaded(place: Place, name, capsys):
    assert place.train("a", **SHORT) == 0
    folder = place.runs / "a" / name
    folder.mkdir(exist_ok=True)
    before = (place.runs / "a" / "events.jsonl").read_bytes()
    capsys.readouterr()
    with read_only(folder):
        assert place.train("a", **LONGER) == 2
    said = capsys.readouterr().err
    assert f"{folder}: cannot be written (" in said and "--saving.folder" in said and ".partial" not in said
    assert "loading" not in said and (place.runs / "a" / "events.jsonl").read_bytes() == before
    assert place.train("a", **LONGER) == 0


def test_a_read_only_cache_with_everything_in_it_is_enough(place: Place, tmp_path, capsys):
    cache = tmp_path / "cache"
    data = {"data": {"resolution": 16, "cache_folder": str(cache)}}
    assert place.train("a", **SHORT, **data) == 0
    with read_only(cache):
        assert place.train("b", **SHORT, **data) == 0
    assert "read-only; this works only if it already holds all" in capsys.readouterr().err
    assert equal(place.adapter("a"), place.adapter("b"))


@pytest.mark.full
def test_a_read_only_cache_that_lacks_something_is_refused(place: Place, tmp_path, capsys):
    cache = tmp_path / "cache"
    data = {"data": {"resolution": 16, "cache_folder": str(cache)}}
    assert place.train("a", **SHORT, **data) == 0
    next(cache.glob("latents/*/*.safetensors")).unlink()
    with read_only(cache):
        assert place.train("b", **SHORT, **data) == 1
        said = capsys.readouterr().err
        assert f"data.cache_folder {cache}: cannot be written (" in said and "lacks entries that" in said
        shutil.rmtree(place.runs / "b")
        empty = {"data": {"resolution": 16, "cache_folder": str(cache / "other")}}
        assert place.train("b", **SHORT, **empty) == 2


@pytest.mark.full
@pytest.mark.parametrize("at", [2, 4])
def test_a_run_folder_that_is_deleted_ends_the_run(place: Place, monkeypatch, at, capsys):
    take_step, folder = loop.take_step, place.runs / "a"

    def deleting(session, progress):
        if session.step + 1 == at:
            shutil.rmtree(folder)
        return take_step(session, progress)

    monkeypatch.setattr(loop, "take_step", deleting)
    samples = {"samples": {"enabled": True, "steps": 1, "every": 1, "prompts": ["red apple"]}}
    assert place.train("a", **samples, saving={"state_every": 1, "export_every": 1}) == 1
    said = capsys.readouterr()
    assert f"{folder}: was deleted or moved during" in said.err and "Done" not in said.out and "log.txt" not in said.err
    assert not folder.exists()
    monkeypatch.setattr(loop, "take_step", take_step)
    assert place.train("a") == 0


def test_events_that_are_deleted_begin_a_new_file(place: Place, monkeypatch):
    take_step = loop.take_step

    def deleting(session, progress):
        if session.step == 1:
            (place.runs / "a" / "events.jsonl").unlink()
        return take_step(session, progress)

    monkeypatch.setattr(loop, "take_step", deleting)
    assert place.train("a", **SHORT) == 0
    assert place.events("a")[-1]["event"] == "finished"


# -- sentences --------------------------------------------------------------------------------------------------------


def test_a_sentence_keeps_its_begin_and_end_and_says_how_long_it_was():
    text = "a.png: " + "x" * 120_000 + "; shorten it"
    said = short(text)
    assert len(said) < 300 and said.startswith("a.png: x") and said.endswith("x; shorten it") and "120,019" in said
    assert short("x" * 200) == "x" * 200


def test_no_caption_floods_the_screen(place: Place, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(place.stage / "pictures", pictures)
    (pictures / "0.txt").write_text("word " * 24_000, encoding="utf-8")
    data = {"data": {"resolution": 16, "folders": str(pictures)}}
    assert place.train("a", "--check", **SHORT, **data) == 0
    said = capsys.readouterr()
    assert "captions are cut after" in said.out + said.err
    assert max(map(len, (said.out + said.err).splitlines())) < LONGEST


@pytest.mark.skipif(os.name == "nt", reason="pipes among files")
def test_a_caption_that_is_a_pipe_is_called_one(place: Place, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(place.stage / "pictures", pictures)
    (pictures / "0.txt").unlink()
    os.mkfifo(pictures / "0.txt")
    assert place.train("a", **SHORT, data={"resolution": 16, "folders": str(pictures)}) == 2
    said = capsys.readouterr().err
    assert "0.txt: is not a regular file" in said and "without a caption" not in said


def exported(monkeypatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["export.py", *map(str, words)])
    return export.main()


def test_export_says_what_is_wrong_with_what_it_is_given(place: Place, monkeypatch, capsys):
    assert exported(monkeypatch, place.stage / "pictures" / "0.txt") == 2
    said = capsys.readouterr().err
    assert "not a safetensors file" in said and "adapter" not in said
    assert exported(monkeypatch, place.runs, "--out", place.runs) == 2
    assert f"--out {place.runs}: is a folder; give a file in it" in capsys.readouterr().err


def test_export_of_a_run_whose_states_are_all_damaged(place: Place, monkeypatch, capsys):
    assert place.train("a", **SHORT) == 0
    (place.runs / "a" / "adapter.safetensors").unlink()
    for path in (place.runs / "a" / state.FOLDER).rglob("*.safetensors"):
        path.write_bytes(b"")
    assert exported(monkeypatch, place.runs / "a") == 2
    said = capsys.readouterr().err
    assert "restore a copy" in said and "continue the training" not in said


def test_a_folder_that_cannot_be_written_is_named_as_it_was_given(tmp_path):

    folder = tmp_path / "out"
    folder.mkdir()

    with read_only(folder), pytest.raises(OSError) as error, whole(folder / "x.safetensors") as partial:
        files.save({"x": torch.ones(2)}, partial, {})
    said = sentence(error.value)
    assert said.startswith(f"{folder / 'x.safetensors'}") and "partial" not in said
    assert "cannot be written (" in said and "give a file" in said
    with pytest.raises(IsADirectoryError, match="give a file name"), whole(folder):
        pass
