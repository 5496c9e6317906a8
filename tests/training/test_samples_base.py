"""samples.base: pictures drawn with another base than the one that is trained, and a training that does not notice."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from modules import families
from modules.adapters.base import adapter_state, load_adapter_state
from modules.preset.files import resolve
from modules.preset.schema import Base, Preset
from modules.training import check, probe, samples_base, setup, sharding
from modules.training.feed import Feed
from modules.training.loop import Progress, take_step
from modules.training.outputs import sample
from modules.training.session import start_accelerator, start_processes
from tests import tiny_flux2, tiny_krea2, tiny_zimage
from tests.families.single_file_krea2 import original
from tests.training.runs import Place, draw_pictures, make_base

pytestmark = pytest.mark.full

CPU = torch.device("cpu")
PROMPT, SAMPLES = "red apple", {"enabled": True, "steps": 2, "prompts": ["red apple"], "width": 16, "height": 16}
FLOW = {"min_snr_gamma": None}


def changed(folder: Path, denoiser: str) -> Path:
    """A copy of a base with another denoiser."""
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    (file,) = (other / denoiser).glob("*.safetensors")
    draw = torch.Generator().manual_seed(1)
    save_file({name: tensor + 0.05 * torch.randn(tensor.shape, generator=draw)
               for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return other


@dataclass(frozen=True)
class Row:
    """A family."""

    make: Callable[[Path], Path]
    other: Callable[[Path], Path]
    """The other base, from the folder of the first."""
    sections: dict[str, Any]


ROWS = {
    "sdxl": Row(make_base, lambda base: changed(base, "unet"), {"adapter": {"method": "wora", "rank": 2}}),
    "krea2": Row(tiny_krea2.make_folder, lambda base: tiny_krea2.make_turbo(base.parent),
                 {"family": "krea2", "objective": FLOW, "targets": {"layers": "attention-mlp"},
                  "adapter": {"method": "dora", "rank": 2}}),
}


@pytest.fixture(scope="module", params=ROWS)
def place(request, tmp_path_factory) -> tuple[Place, Row, Path]:
    folder, row = tmp_path_factory.mktemp(request.param), ROWS[request.param]
    found = Place(folder / "stage", folder / "runs")
    found.runs.mkdir()
    base = row.make(found.stage)
    draw_pictures(found.stage / "pictures", 3, 0)
    draw_pictures(found.stage / "validation", 1, 1)
    return found, row, row.other(base)


def trained(
    place: Place, name: str, sections: dict[str, Any], samples: dict[str, Any]
) -> tuple[dict[str, Tensor], list[Tensor], Preset]:
    """A training of two steps, with pictures before, between and after them: its adapters, the optimizer's state and
    the preset. The base is the same after it."""
    with place.session(name, **sections, samples=samples) as session:
        weights = {key: value.clone() for key, value in setup.whole(session.model).state_dict().items()
                   if ".adapter." not in key}
        progress = Progress(Feed(session))
        sample(session)
        for step in (1, 2):
            take_step(session, progress)
            session.step = step
            sample(session)
        after = setup.whole(session.model).state_dict()
        assert all(torch.equal(after[key], value) for key, value in weights.items())
        moments = [value.clone() for state in session.optimizer.optimizer.state.values() for value in state.values()
                   if isinstance(value, torch.Tensor)]
        return adapter_state(session.adapted), moments, session.preset


@pytest.mark.short("krea2")
def test_another_base_draws_and_the_training_is_the_same(place, forget_accelerate):
    """Bit for bit; and the pictures are those of a model loaded from the other base with the same adapters."""
    stage, row, other = place
    plain, moments, _ = trained(stage, "plain", row.sections, SAMPLES)
    state, others, preset = trained(stage, "other", row.sections, SAMPLES | {"base": str(other)})
    assert state.keys() == plain.keys() and all(torch.equal(state[key], plain[key]) for key in plain)
    assert len(moments) == len(others) and all(map(torch.equal, moments, others))
    events = stage.events("other", "sample")
    assert len(events) == 3 and all(event["base"] == str(other) for event in events)
    assert {event["base"] for event in stage.events("plain", "sample")} == {preset.base.path}

    model = families.load_class(preset.family).load(Base(path=str(other)), CPU, torch.float32)
    model.place(preset.base, texts=True)
    layers, problems = setup.attach_all(model, preset)
    assert not problems
    load_adapter_state(layers, state)
    wanted = preset.samples
    (expected,) = model.sample([PROMPT], "", 16, 16, wanted.steps, wanted.guidance, wanted.seed)
    drawn = stage.runs / "other" / events[-1]["path"]
    with Image.open(drawn) as picture:
        assert picture.convert("RGB").tobytes() == expected.tobytes()
    assert (stage.runs / "plain" / stage.events("plain", "sample")[-1]["path"]).read_bytes() != drawn.read_bytes()


@pytest.mark.full
def test_a_probe_measures_the_drawing_too(place, forget_accelerate):
    stage, row, other = place
    for base, drawn in ((str(other), True), ("", False)):
        command = stage.command("probed", **row.sections, samples=SAMPLES | {"base": base})
        preset = resolve(command[1], [("name", "probed")]).preset
        found = probe.probe(preset, check.examine(preset, "cpu"), start_accelerator(preset, start_processes()))
        assert (found.sampling_mb > 0) == drawn
        assert ("while samples.base draws" in "\n".join(check.measured(found.facts()))) == drawn


@pytest.mark.short("krea2")
def test_check_says_what_takes_memory_and_what_cannot_draw(place, tmp_path, monkeypatch):
    stage, row, other = place
    family = row.sections.get("family", "sdxl")
    kind, base = families.load_class(family), stage.stage / "base"
    model = kind.skeleton(Base(path=str(base)))

    def looked(path: Path | str):
        given = [("base.path", str(base)), ("samples.base", str(path)), ("samples.enabled", "true")]
        return samples_base.look(resolve(f"lora_{family}", given).preset, model)

    problems, (note,) = looked(other)
    assert problems == [] and note.startswith(f"samples.base: while {other} draws") and "main memory" in note
    (folder,) = (path.parent for path in other.rglob("config.json") if path.parent.name == kind.DENOISER)
    (file,) = folder.glob("*.safetensors")
    assert looked(file)[0] == []  # the denoiser alone, in diffusers' naming
    tensors = load_file(file)
    name = max(tensors, key=lambda one: tensors[one].numel())
    save_file(tensors | {name: torch.cat([tensors[name]] * 2, -1)}, tmp_path / "wide.safetensors")
    (vae,) = (other / "vae").glob("*.safetensors")
    wrong = {tmp_path / "wide.safetensors": "is another model than base.path", vae: "is not", "nowhere/at/all":
             "does not exist", other / "vae": "has no model_index.json"}
    for path, words in wrong.items():
        (problem,) = looked(path)[0]
        assert problem.startswith("samples.base: ") and words in problem and "\n" not in problem, problem
    monkeypatch.setattr(sharding, "is_wanted", lambda: True)
    assert looked(other) == ([samples_base.SHARDED], [])


def test_a_wider_base_and_another_family_are_sentences(tmp_path):
    base = tiny_krea2.make_folder(tmp_path)
    model = families.load_class("krea2").skeleton(Base(path=str(base)))
    tiny_krea2.make_pipeline(dim=64).save_pretrained(tmp_path / "wide")
    (problem,) = model.with_denoiser_problems(str(tmp_path / "wide"))
    assert problem.startswith(f"samples.base: {tmp_path / 'wide'} is another model")
    assert "img_in.weight as (64, 16)" in problem
    (problem,) = model.with_denoiser_problems(str(make_base(tmp_path / "sdxl")))
    assert problem.startswith("samples.base: ") and "another kind of model" in problem


NAMES = {
    "krea2": ("krea2_turbo.safetensors", "krea2-raw.safetensors"),
    "zimage": ("z_image_turbo.safetensors", "z_image.safetensors"),
    "flux2": ("flux-2-klein-4b.safetensors", "flux-2-klein-base-4b.safetensors"),
}
"""Files of a distilled base and of the one that it was distilled from, as they are published."""


@pytest.mark.parametrize("name, make", [
    ("krea2", lambda turbo: tiny_krea2.make_pipeline(turbo=turbo)),
    ("zimage", tiny_zimage.make_pipeline),
    ("flux2", lambda turbo: tiny_flux2.make_pipeline("distilled" if turbo else "base")),
])  # fmt: skip
def test_a_file_draws_as_its_name_says(tmp_path, name, make):
    """With steps and guidance of the distilled base, although the configuration of the other one is beside it."""
    kind, pictures = families.load_class(name), {}
    for part, pipeline in (("base", make(False)), ("turbo", make(True))):
        pipeline.save_pretrained(tmp_path / part)
    model, whole = (kind.load(Base(path=str(tmp_path / part)), CPU, torch.float32) for part in ("base", "turbo"))
    weights = whole.pipeline.transformer.state_dict()
    for file in NAMES[name]:
        save_file(original(weights) if name == "krea2" else weights, tmp_path / file)
        assert model.with_denoiser_problems(str(tmp_path / file)) == []
        drawn = model.with_denoiser(Base(path=str(tmp_path / "base")), str(tmp_path / file), torch.float32)
        assert drawn.distilled == (file == NAMES[name][0]) and drawn.pipeline.vae is model.pipeline.vae
        pictures[file] = drawn.sample([PROMPT], "", 32, 32, 3, 3.0, 0)[0].tobytes()
    expected = whole.sample([PROMPT], "", 32, 32, 3, 3.0, 0)[0].tobytes()
    assert [picture == expected for picture in pictures.values()] == [True, False]
