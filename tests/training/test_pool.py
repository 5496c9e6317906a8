"""A pool of finished adapters as the start of others: which files count, and what is said before the start."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.adapters.base import Terms, detach
from modules.files import opening, reading
from modules.training import pool
from tests.training.runs import OPTIONS, ask

pytestmark = pytest.mark.usefixtures("forget_accelerate")

EXPORT = {"dtype": "float32", "dataset_names": False}
RAW = {"step_size": "raw"}


def cora(folder, **options):
    return {"method": "cora", "rank": 4, "folder": str(folder), **options}


@pytest.fixture
def pooled(place, tmp_path, tmp_path_factory):
    """A folder with the files of two trainings of different methods, and one that is none."""
    folder = tmp_path_factory.getbasetemp() / "pool made once"
    if not folder.exists():
        make_pool(place, folder)
    return shutil.copytree(folder, tmp_path / "pool")


def make_pool(place, folder):
    folder.mkdir()
    for name, adapter in {"first": {"method": "lora", "rank": 2}, "second": {"method": "dora", "rank": 1}}.items():
        assert place.train(name, adapter=adapter, export=EXPORT, training={**OPTIONS["training"], "steps": 2}) == 0
        (place.runs / name / f"{name}.safetensors").rename(folder / f"{name}.safetensors")
        for path in (place.runs / name, place.runs / f"{name}.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "damaged.safetensors").write_bytes(b"not a file")


@pytest.mark.full
def test_up_spans_what_the_files_change_most(place, pooled):
    with place.session("run", adapter=cora(pooled, **RAW)) as session:
        ups = {name: layer.adapter.up for name, layer in session.adapted.items()}
        assert all(not layer.adapter.down.any() for layer in session.adapted.values())
        assert all("up" not in dict(layer.adapter.named_parameters()) for layer in session.adapted.values())
    (note,) = place.events("run", "warning")
    assert "adapter.folder: damaged.safetensors is skipped: " in note["message"]
    with place.session("plain", adapter={"method": "lora"}) as session:
        for network in session.model.networks.values():
            detach(network)
        found = [reading.changes(opening.read(pooled / f"{name}.safetensors"), session.model)
                 for name in ("first", "second")]
    assert found[0].keys() == found[1].keys() == ups.keys()
    for name, up in ups.items():
        change = torch.cat([one[name].adapted().flatten(1) - one[name].base().flatten(1) for one in found], 1)
        best = torch.linalg.svdvals(change.double())[:4].norm()
        assert (up.double().mT @ up.double() - torch.eye(4)).abs().max() < 1e-5
        assert (up.double().mT @ change.double()).norm() > 0.999 * best, name


@pytest.mark.full
def test_it_trains_and_needs_the_folder_no_more(place, pooled, monkeypatch):
    adapter, saving = cora(pooled, frozen=False), {"state_every": 1}
    with monkeypatch.context() as patch:
        ask(patch, place, "run", "stop", at=2)
        assert place.train("run", adapter=adapter, saving=saving, export=EXPORT) == 130
    for path in pooled.iterdir():
        path.unlink()
    assert place.train("run", adapter=adapter, saving=saving, export=EXPORT) == 0
    assert place.train("run", adapter=adapter, saving=saving, export=EXPORT) == 0
    assert load_file(place.runs / "run" / "run.safetensors")


@pytest.mark.full
def test_a_run_goes_on_from_its_file_without_the_folder(place, pooled):
    assert place.train("run", adapter=cora(pooled), export=EXPORT) == 0
    file = place.runs / "run" / "run.safetensors"
    wanted = load_file(place.runs / "run" / "adapter.safetensors")
    with place.session("on", adapter=cora("", start_from=str(file))) as session:
        for name, layer in session.adapted.items():
            change = layer.adapter.factor * layer.adapter.up @ layer.adapter.down
            meant = wanted[f"{name}.factor"] * wanted[f"{name}.up"] @ wanted[f"{name}.down"]
            assert (change - meant).norm() < 1e-4 * meant.norm(), name


def test_bad_folders_are_said_before_anything_is_done(place, pooled, tmp_path, capfd):
    tensors = load_file(pooled / "first.safetensors")
    empty, odd = tmp_path / "empty", tmp_path / "odd"
    empty.mkdir()
    odd.mkdir()
    key = next(key for key in tensors if "down" in key)
    save_file({**tensors, key: torch.ones(2, 5)}, odd / "other.safetensors")
    cases = {
        "": "adapter.folder: cora needs a folder with adapter files",
        str(tmp_path / "nowhere"): "nowhere is not a folder",
        str(empty): f"adapter.folder: {empty} has no adapter files",
        str(odd): f"adapter.folder: no file in {odd} changes layers that are trained",
    }
    capfd.readouterr()
    for folder, words in cases.items():
        assert place.train("run", "--check", adapter=cora(folder)) == 2
        assert capfd.readouterr().err.count(words) == 1, words
    assert place.train("run", adapter=cora(empty)) == 2
    assert place.train("run", "--check", adapter=cora(pooled, start_from=str(pooled / "first.safetensors"))) == 2
    assert "remove one of them" in capfd.readouterr().err
    assert not (place.runs / "run").exists()
    assert place.train("run", "--check", adapter=cora(pooled)) == 0
    assert "damaged.safetensors is skipped" in capfd.readouterr().out


def test_layers_outside_of_the_pool_start_at_random(place, pooled):
    wide = {**OPTIONS["targets"], "exclude": []}
    with place.session("run", adapter=cora(pooled), targets=wide) as session:
        assert all(layer.adapter.up.abs().sum() > 0 for layer in session.adapted.values())
    said = [event["message"] for event in place.events("run", "warning")]
    assert any("layers are in no file of adapter.folder: random initial values" in message for message in said)


def test_changes_of_other_sorts_are_shortened(place):
    with place.session("run", adapter={"method": "lora"}) as session:
        layer = next(iter(session.adapted.values())).layer
    torch.manual_seed(0)
    difference = torch.randn(layer.out_features, 3) @ torch.randn(3, layer.fan_in)
    up, down = pool._pair(reading.Change(layer, Terms(difference=difference)))
    assert (up @ down - difference).norm() < 1e-4 * difference.norm()
