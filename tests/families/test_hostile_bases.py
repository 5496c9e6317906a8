"""Folders in diffusers layout that somebody else made: nothing of them is imported, opened as a pickle or run."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from modules import families
from modules.preset.schema import Base

DEMO = Path(__file__).parents[2] / "demo/base"


@pytest.fixture
def folder(tmp_path):
    """A copy of the demo's base, with links to the large files."""
    copied = tmp_path / "base"
    shutil.copytree(DEMO, copied, copy_function=lambda source, target: Path(target).symlink_to(source))
    (copied / "model_index.json").unlink()
    return copied


def given(folder: Path, **changes) -> Base:
    """The base, its index changed: None takes an entry away."""
    index = json.loads((DEMO / "model_index.json").read_text()) | changes
    index = {name: entry for name, entry in index.items() if entry is not None}
    (folder / "model_index.json").write_text(json.dumps(index))
    return Base(path=str(folder))


def refused(base: Base) -> str:
    """The one sentence, which all ways into the program have: what is said before, the skeleton and the model."""
    family = families.load_class("sdxl")
    [said] = family.problems(base)
    assert families.read("sdxl", base)[1] == [said]
    with pytest.raises(ValueError) as caught:
        family.load(base, torch.device("cpu"), torch.float32)
    assert "\n" not in said + str(caught.value)
    assert "base.path" in said and str(caught.value).startswith("base.path")
    return said


ENTRIES = [
    ["os", "system"], ["evil_sched", "X"], ["diffusers", "logging"], ["diffusers", "DiffusionPipeline"],
    ["diffusers", "utils.logging"], ["diffusers.utils", "logging"], ["transformers", "pipeline"],
    ["transformers", "AutoModel"], ["builtins", "eval"], ["diffusers"], ["diffusers", "A", "B"], ["diffusers", 3],
    [None, "AutoencoderKL"], ["diffusers", None], [["diffusers"], {}], {}, 3, "AutoencoderKL", True,
    ["diffusers", "NoSuch"], ["", ""], ["diffusers", "__doc__"], ["diffusers", "\x1b[2J"],
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=repr)
def test_only_parts_of_pipelines_are_looked_up(folder, entry, monkeypatch):
    (folder / "evil_sched.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder))
    said = refused(given(folder, scheduler=entry))
    assert "scheduler" in said and str(folder / "model_index.json") in said and "\x1b" not in said
    assert "evil_sched" not in sys.modules


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "tokenizer_2"])
def test_missing_entries_are_named(folder, part):
    assert f"{part} is missing" in refused(given(folder, **{part: None}))


@pytest.mark.parametrize("kind", [["evil_sched", "X"], {}, 3, True])
def test_the_pipelines_own_name_is_a_text(folder, kind):
    (folder / "evil_sched.py").write_text("raise SystemExit('run')")
    assert "_class_name" in refused(given(folder, _class_name=kind))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, '{"a": 1, "a": 2}', "\ufeff", "\0" * 50])
def test_an_index_that_is_none(folder, text):
    (folder / "model_index.json").write_text(text)
    assert "model_index.json" in refused(Base(path=str(folder)))


@pytest.mark.once
@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", "[" * 100_000, '{"in_channels": "x"}', '{"block_out_channels": 3}']
)
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_configuration_that_is_none(folder, part, text):
    base = given(folder)
    (folder / part / "config.json").unlink()
    (folder / part / "config.json").write_text(text)
    problems = families.read("sdxl", base)[1]
    with pytest.raises(ValueError) as caught:
        families.load_class("sdxl").load(base, torch.device("cpu"), torch.float32)
    for said in (*problems, str(caught.value)):
        assert said.startswith("base.path") and "\n" not in said


def test_code_beside_an_index_is_not_run(folder):
    """diffusers takes None.py for a pipeline of the folder's own."""
    for place in (folder / "None.py", folder / "pipeline.py", folder / "scheduler/diffusers.py"):
        place.write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match="could not be loaded"):
        families.load_class("sdxl").load(given(folder), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "x.ckpt"])
def test_pickles_are_refused_with_the_way_out(folder, name):
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    (folder / "unet" / name).write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    said = refused(given(folder))
    assert str(folder / "unet") in said and "save_pretrained" in said


def test_a_checkpoint_that_is_a_pickle(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    [said] = families.load_class("sdxl").problems(Base(path=str(tmp_path / "model.ckpt")))
    assert "pickle" in said and ".safetensors" in said


def test_the_demo_is_as_it_was(folder):
    model, problems = families.read("sdxl", given(folder))
    assert not problems and "unet" in model.networks
