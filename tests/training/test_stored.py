"""Exporting what a run has on disk: a run that was stopped, has crashed or is under way, and one that is done."""

import json
import shutil
import sys

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from modules import adapters
from modules.training import loop, state, stored
from modules.training.state import states
from scripts import export
from tests.training.runs import Place, ask, equal

KEEP = {"state_every": 1, "keep_states": 4}
SMALL = {"rank": 2, "rotation": {"kind": "blocks", "block_size": 4}}


def run(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
    return export.main()


def metadata(file) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def options_of(method: str, folder: str) -> dict:
    fields = adapters.methods()[method].Config.model_fields
    return {"method": method, **{key: value for key, value in (SMALL | {"folder": folder}).items() if key in fields}}


@pytest.mark.full
def test_the_last_state_of_every_method_is_what_the_run_exports(place: Place, monkeypatch):
    for method in adapters.methods():
        adapter = options_of(method, str(place.runs / min(adapters.methods())))
        assert place.train(method, "--training.steps", "1", adapter=adapter) == 0, method
        folder = place.runs / method
        (folder / "adapter.safetensors").unlink()
        assert run(monkeypatch, folder) == 0, method
        (file,) = folder.glob(f"{method}-step-000001_*.safetensors")
        assert equal(load_file(file), load_file(folder / f"{method}.safetensors")), method


@pytest.mark.full
def test_an_average_is_exported_as_an_average(place: Place, monkeypatch):
    options = {"optimizer": {"name": "schedulefree_adamw"}, "adapter": {"method": "lora", "rank": 2}}
    assert place.train("run", **options) == 0
    folder = place.runs / "run"
    own = load_file(folder / "run.safetensors")
    assert run(monkeypatch, folder, "--out", folder / "done.safetensors") == 0
    assert run(monkeypatch, folder, "--state", 4, "--out", folder / "state.safetensors") == 0
    assert equal(load_file(folder / "done.safetensors"), own) and equal(load_file(folder / "state.safetensors"), own)
    plain = states(folder)[0] / "adapter.safetensors"  # a file of a state is a state's, not a finished adapter
    assert run(monkeypatch, plain, "--out", folder / "file.safetensors") == 0
    assert equal(load_file(folder / "file.safetensors"), own)
    assert not equal(load_file(plain), load_file(folder / "adapter.safetensors"))


def test_a_run_that_was_stopped_is_exported(place: Place, monkeypatch, capsys):
    ask(monkeypatch, place, "run", "stop", at=3)
    assert place.train("run", "--saving.export_every", "2", saving=KEEP) == 130
    folder = place.runs / "run"
    own = load_file(folder / "run-step-000002.safetensors")
    capsys.readouterr()
    assert run(monkeypatch, folder) == 0
    assert "state/step-000003, after step 3" in capsys.readouterr().out
    last = folder / "run-step-000003_comfyui.safetensors"
    assert not equal(load_file(last), own)
    told = json.dumps(metadata(last))
    assert "torch" in told and metadata(last)["ss_steps"] == "3"
    assert run(monkeypatch, folder, "--state", 2) == 0
    assert equal(load_file(folder / "run-step-000002_comfyui.safetensors"), own)
    assert run(monkeypatch, folder / "state" / "step-000002", "--out", folder / "again.safetensors") == 0
    assert equal(load_file(folder / "again.safetensors"), own)
    (states(folder)[-1] / "adapter.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert run(monkeypatch, folder, "--out", folder / "before.safetensors") == 0
    assert "step-000003 is " in capsys.readouterr().err
    assert equal(load_file(folder / "before.safetensors"), own)


def test_a_run_under_way_is_exported(place: Place, monkeypatch):
    take_step, found = loop.take_step, []

    def exporting(session, progress):
        if session.step == 2:
            found.append(run(monkeypatch, session.run.folder, "--out", place.runs / "under_way.safetensors"))
        return take_step(session, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", exporting)
        assert place.train("run", "--saving.export_every", "2", saving=KEEP) == 0
    assert found == [0]
    own = load_file(place.runs / "run" / "run-step-000002.safetensors")
    assert equal(load_file(place.runs / "under_way.safetensors"), own)


@pytest.mark.full
def test_a_newer_state_than_the_finished_adapter_is_taken(place: Place, monkeypatch, capsys):
    assert place.train("run", "--training.steps", "1") == 0
    ask(monkeypatch, place, "run", "stop", at=2)
    assert place.train("run") == 130
    assert run(monkeypatch, place.runs / "run") == 0
    assert "after step 2" in capsys.readouterr().out
    for path in states(place.runs / "run"):
        (path / "state.json").write_text("null")
    assert run(monkeypatch, place.runs / "run") == 0
    said = capsys.readouterr()
    assert "after step 1" in said.out and "step-000002 is " in said.err


def test_without_anything_there_is_a_sentence(place: Place, monkeypatch, capsys):
    ask(monkeypatch, place, "run", "stop", at=1)
    assert place.train("run") == 130
    folder = place.runs / "run"
    capsys.readouterr()
    assert run(monkeypatch, folder, "--state", 7) == 2
    assert "--state 7" in (said := capsys.readouterr().err) and "available: 1" in said
    (folder / "state" / "step-000001" / "state.json").unlink()
    assert run(monkeypatch, folder) == 2
    assert "no readable training state" in (said := capsys.readouterr().err) and "step-000001" in said
    shutil.rmtree(folder / "state")
    assert run(monkeypatch, folder) == 2
    assert "no adapter.safetensors, and no training state" in (said := capsys.readouterr().err)
    assert "Traceback" not in said


def test_nothing_that_exists_is_overwritten(place: Place, monkeypatch, capsys):
    assert place.train("kept", "--training.steps", "1") == 0
    file = place.runs / "kept" / "adapter.safetensors"
    before = file.read_bytes()
    monkeypatch.setattr("sys.argv", ["export.py", str(place.runs / "kept"), "--out", str(file)])
    assert export.main() == 2
    assert "already exists" in capsys.readouterr().err and file.read_bytes() == before


def test_a_state_that_a_running_training_deletes_meanwhile(place: Place, monkeypatch):
    with monkeypatch.context() as patch:
        ask(patch, place, "busy", "stop", at=2)
        assert place.train("busy", saving={"state_every": 1, "keep_states": 2}) == 130
    load, folder = state.load_state, place.runs / "busy"

    def pruned(path):
        """The first reading of the newest state finds it gone; it was whole a moment ago."""
        monkeypatch.setattr(state, "load_state", load)
        shutil.rmtree(path)
        return load(path)

    newest = state.newest(folder)
    monkeypatch.setattr(state, "newest", lambda _: newest if newest[0].exists() else (folder / "state/step-000001", []))
    monkeypatch.setattr(state, "load_state", pruned)
    found, _ = stored.source(folder, None)
    assert found.step == 1
