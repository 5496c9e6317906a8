"""The files that a base is read from, for its fingerprint: enough to load it, and nothing that is not read."""

import shutil
from pathlib import Path

import pytest
import torch

from modules.files.reading import families_of
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers
from tests.families.using import CPU, loaded


def copied(files: dict[str, Path], folder: Path) -> Path:
    """A folder with these files alone."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    return folder


def assert_same(one, other) -> None:
    for part in (*one.networks, "vae"):
        ours, theirs = (model.pipeline.components[part].state_dict() for model in (one, other))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert one.cut_off("red " * 600) == other.cut_off("red " * 600)


@pytest.mark.full
@pytest.mark.short("sd1", "zimage")
def test_the_files_of_a_folder_are_enough(family, folder, tmp_path):
    files = family.files_of(Base(path=str(folder)))
    whole = family.load(Base(path=str(folder)), CPU, torch.float32)
    assert_same(family.load(Base(path=str(copied(files, tmp_path))), CPU, torch.float32), whole)
    parts = {name.partition("/")[0] for name, path in files.items() if path.suffix == ".safetensors"}
    assert parts == {"vae", *whole.networks}


@pytest.mark.full
def test_the_files_of_a_checkpoint_are_enough(family, pair, tmp_path):
    base = Base(path=str(pair[1]), config=str(pair[0]))
    files = family.files_of(base)
    assert files.pop("checkpoint") == pair[1]
    config = copied(files, tmp_path)
    assert not list(config.rglob("*.safetensors"))  # this one has all weights
    assert_same(family.load(Base(path=str(pair[1]), config=str(config)), CPU, torch.float32),
                family.load(base, CPU, torch.float32))


def test_names_of_a_few_blocks_say_the_family(row, family, folder):
    """As a file of a rule for some blocks has them, or a tiny model. Chroma's blocks are named as FLUX.1's."""
    layers = match_layers(loaded(family, folder), Targets())[0]
    found = families_of([f"{layer}.lora_A.weight" for layer in layers])
    assert row.family in found and set(found) in ({row.family}, {"chroma", "flux"})


def test_what_is_not_read_does_not_count(family, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "base")
    base = Base(path=str(tmp_path / "base"))
    before = family.files_of(base)
    weights = next(path for path in before.values() if path.suffix == ".safetensors")
    for name in (f"{weights.stem}.fp16.safetensors", f"{weights.stem}.bin", "README.md", "model.onnx"):
        (weights.parent / name).write_bytes(b"x")
    (tmp_path / "base" / "sd.safetensors").write_bytes(b"x")
    assert family.files_of(base) == before


@pytest.mark.parametrize("content", ["", "null", "[]", "[" * 100_000, '{"unet": 3, "vae": []}'])
def test_a_damaged_index_is_left_to_the_loading(family, content, tmp_path):
    (tmp_path / family.INDEX).write_text(content)
    assert set(family.files_of(Base(path=str(tmp_path)))) <= {family.INDEX}


def test_a_model_of_the_hub_is_the_files_of_its_snapshot(family, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = Base(path="nobody/tiny")
    assert family.files_of(base) == {}
    store = tmp_path / "models--nobody--tiny"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("abc")
    for name, path in family.files_of(Base(path=str(folder))).items():
        blob, link = store / "blobs" / name.replace("/", "-"), store / "snapshots" / "abc" / name
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    found = family.files_of(base)
    assert found.keys() == family.files_of(Base(path=str(folder))).keys()
    assert all(path.is_relative_to(store) for path in found.values())
