"""Bases that edit, of every family that has some: their predictions and samples with reference pictures are those of
diffusers' own pipelines, bit for bit."""

import re
import shutil
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modules import families
from modules.families.base import Instruction
from modules.families.parts import qwen_edit
from modules.preset.schema import Base
from tests import tiny_edit, tiny_flux, tiny_zimage
from tests.families.using import CPU, SIZES

pytestmark = pytest.mark.full

KINDS = {"FluxKontextPipeline": "flux", "Flux2KleinPipeline": "flux2", "Flux2Pipeline": "flux2",
         "QwenImageEditPipeline": "qwenimage", "QwenImageEditPlusPipeline": "qwenimage"}
ONE = ("FluxKontextPipeline", "QwenImageEditPipeline")
"""Those that take a single reference picture."""
SIZE = (32, 16)
"""Height and width of the target."""


class Shown:
    """A reference picture in memory."""

    def __init__(self, width: int, height: int, seed: int):
        self.pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self.content = ("memory", seed, width, height)

    def image(self):
        return Image.fromarray(self.pixels)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return tiny_edit.make_folder(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture
def base(folder, monkeypatch):
    tiny_edit.small(monkeypatch)
    return Base(path=str(folder))


@pytest.fixture
def shown(kind):
    """Of different shapes; the pipelines of FLUX.2 make none larger."""
    return (Shown(70, 90, 0),) if kind in ONE else (Shown(70, 90, 0), Shown(96, 64, 1))


def load(kind, base, count=1) -> Any:
    family = families.load_class(KINDS[kind])
    assert family.problems(base) == []
    model = family.load(base, CPU, torch.float32)
    assert model.use_references(base, {"data.folders[].references": count}) == []
    return model


def of_diffusers(kind, model, folder) -> Any:
    """diffusers' pipeline, with nothing of ours but how Qwen's processor is made without torchvision."""
    found = resolve_name(f"diffusers:{kind}")
    parts = dict(model.pipeline.components)
    if KINDS[kind] == "qwenimage":
        parts["processor"] = qwen_edit.processor(str(folder), parts["tokenizer"])
    return found(**parts)


def draw(kind, pipeline, shown, prompt, **more) -> Any:
    images = [one.image() for one in shown]
    more |= {"max_area": SIZE[0] * SIZE[1]} if kind == "FluxKontextPipeline" else {}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        image=images[0] if kind in ONE else images, prompt=prompt, height=SIZE[0], width=SIZE[1],
        num_inference_steps=2, generator=torch.Generator().manual_seed(3), **more,
    )


@pytest.mark.short("FluxKontextPipeline", "Flux2KleinPipeline", "QwenImageEditPlusPipeline")
def test_prediction_and_samples_are_the_pipelines_own(kind, base, folder, shown):
    """Every step of sampling, with the inputs that diffusers' pipeline gave its denoiser, from the same pictures."""
    model = load(kind, base, len(shown))
    caption, calls = Instruction("make it red", shown), []
    references = [model.encode_reference(one.image())[None] for one in shown]
    hook = model.pipeline.transformer.register_forward_hook(
        lambda _, args, named, output: calls.append((named, output[0])), with_kwargs=True
    )
    pipeline = of_diffusers(kind, model, folder)
    if model.reads_references:  # ours has what reads pictures beside the text encoder
        pipeline.text_encoder.model.visual = model.eyes
    guidance = {"guidance_scale": 1.0} if KINDS[kind] != "qwenimage" else {}
    theirs = draw(kind, pipeline, shown, caption.text, **guidance).images[0]
    hook.remove()
    if model.reads_references:
        model.pipeline.text_encoder.model.visual = None
    times = pipeline.scheduler.timesteps.double()
    count = SIZE[0] * SIZE[1] // (model.latent_factor * model.TOKEN) ** 2
    texts = model.encode_texts([caption])
    assert len(calls) == 2
    with torch.no_grad():
        for (named, output), time in zip(calls, times, strict=True):
            side = [length // model.latent_factor for length in SIZE]
            tokens, result = named["hidden_states"][:, :count], output[:, :count]
            if model.TOKEN == 1:
                noisy, wanted = (found.mT.unflatten(2, side) for found in (tokens, result))
            else:
                noisy, wanted = (model.unpacked(found, *SIZE) for found in (tokens, result))
            found = model.predict(noisy, time[None], texts, SIZES, references)
            assert torch.equal(found, wanted)
            assert not torch.equal(model.predict(noisy, time[None], texts, SIZES, [-one for one in references]), wanted)
    (ours,) = model.sample([caption], "", SIZE[1], SIZE[0], 2, 1.0, 3)
    assert ours.size == SIZE[::-1]
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_a_base_takes_as_many_references_as_its_pipeline(kind, base):
    skeleton = families.load_class(KINDS[kind]).skeleton(base)
    option = "data.folders[].references"
    if kind in ONE:
        with pytest.raises(ValueError, match=rf"{re.escape(option)}: 2 reference pictures, but .* takes 1 at once"):
            skeleton.use_references(base, {option: 2})
    else:
        assert skeleton.use_references(base, {option: 3}) == []
    notes = skeleton.use_references(base, {option: 0})
    assert len(notes) == (0 if kind.startswith("Flux2") else 1)
    assert all("is a model that edits, and is trained without reference pictures" in note for note in notes)


@pytest.mark.short("FluxKontextPipeline", "QwenImageEditPlusPipeline")
def test_without_references_a_base_is_the_same(kind, base):
    """Fingerprints of what is cached, and layers; what reads pictures is given back."""
    family = families.load_class(KINDS[kind])
    plain, editing = (family.load(base, CPU, torch.float32) for _ in range(2))
    plain.use_references(base, {})
    editing.use_references(base, {"data.folders[].references": 1})
    assert [plain.fingerprint(part) for part in ("images", "texts")] == [
        editing.fingerprint(part) for part in ("images", "texts")]
    assert [*plain.pipeline.transformer.state_dict()] == [*editing.pipeline.transformer.state_dict()]
    one = Instruction("red", (Shown(70, 90, 0),))
    texts = [model.encode_texts(["red"])["hidden"] for model in (plain, editing)]
    assert torch.equal(*texts)
    assert editing.reads_references == (KINDS[kind] == "qwenimage") and not plain.reads_references
    assert torch.equal(editing.encode_texts([one])["hidden"], texts[0]) != editing.reads_references
    if editing.reads_references:
        assert plain.eyes is None and editing.pipeline.text_encoder.model.visual is None
        others = [Instruction("red", (Shown(70, 90, 1),)), Instruction("blue", one.references)]
        assert not any(torch.equal(editing.encode_texts([other])["hidden"], editing.encode_texts([one])["hidden"])
                       for other in others)


def test_a_plain_base_takes_none(tmp_path):
    base = Base(path=str(tiny_flux.make_folder(tmp_path)))
    skeleton = families.load_class("flux").skeleton(base)
    assert skeleton.use_references(base, {"data.folders[].references": 0}) == []
    with pytest.raises(ValueError, match=r"references: .*base takes no reference pictures; .*FLUX\.1-Kontext-dev"):
        skeleton.use_references(base, {"data.folders[].references": 1})
    with pytest.raises(ValueError, match=r"^samples\.prompts\[\]\.references: .*base takes no reference pictures"):
        skeleton.use_references(base, {"data.folders[].references": 0, "samples.prompts[].references": 1})
    other = Base(path=str(tiny_zimage.make_folder(tmp_path / "zimage")))
    with pytest.raises(ValueError, match="takes no reference pictures; remove them"):
        families.load_class("zimage").skeleton(other).use_references(other, {"samples.prompts[].references": 1})


def test_what_reads_pictures_comes_from_the_text_encoders_file(tmp_path, monkeypatch):
    """As in ComfyUI's file, which has it; one without it is named, before anything is loaded."""
    tiny_edit.small(monkeypatch)
    kind = "QwenImageEditPlusPipeline"
    folder = tiny_edit.make_folder(tmp_path, kind)
    (stored,) = (folder / "text_encoder").glob("*.safetensors")
    base = Base(path=str(folder), texts=(str(stored),))
    whole, split = load(kind, Base(path=str(folder))), load(kind, base)
    caption = Instruction("make it red", (Shown(70, 90, 0),))
    assert torch.equal(whole.encode_texts([caption])["hidden"], split.encode_texts([caption])["hidden"])
    assert whole.fingerprint("instructions") == split.fingerprint("instructions")
    bare = {name: tensor for name, tensor in load_file(stored).items() if "visual." not in name}
    save_file(bare, tmp_path / "bare.safetensors")
    base = Base(path=str(folder), texts=(str(tmp_path / "bare.safetensors"),))
    with pytest.raises(ValueError, match=r"base\.texts: .*bare\.safetensors lacks the part .* that reads pictures"):
        families.load_class("qwenimage").skeleton(base).use_references(base, {"data.folders[].references": 1})


def test_a_base_without_settings_for_reading_pictures_is_refused(tmp_path):
    folder = tiny_edit.make_folder(tmp_path, "QwenImageEditPipeline")
    shutil.rmtree(folder / "processor")
    base = Base(path=str(folder))
    skeleton = families.load_class("qwenimage").skeleton(base)
    with pytest.raises(ValueError, match="preprocessor_config.json, cannot be read; give a complete copy"):
        skeleton.use_references(base, {"data.folders[].references": 1})


@pytest.mark.parametrize("name, expected", [
    ("qwen_image_edit_2509_fp8_e4m3fn.safetensors", "Qwen/Qwen-Image-Edit-2509"),
    ("qwen_image_edit_bf16.safetensors", "Qwen/Qwen-Image-Edit"),
    ("qwen-image-edit-2511.safetensors", "Qwen/Qwen-Image-Edit-2511"),
    ("qwen_image_2512_bf16.safetensors", "Qwen/Qwen-Image-2512"),
    ("accredited.safetensors", "Qwen/Qwen-Image"),
])
def test_a_single_files_name_says_which_configuration_it_has(name, expected):
    assert families.load_class("qwenimage").hub_id(name) == expected
