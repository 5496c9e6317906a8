"""What Qwen-Image 2.1 has of its own: transparency, two matrices in one, a causal stream, captions without an end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modules import objectives
from modules.families.base import together
from modules.families.qwenimage21 import BASE, TURBO, Model
from modules.files import reading
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers
from tests import tiny_qwenimage21
from tests.export import foreign
from tests.export.test_hosts import LORA, assert_diffusers_computes
from tests.export.test_reading import assert_changes
from tests.export.test_reading import written as written_file
from tests.families import single_file_qwenimage21
from tests.families.single_file_flux2 import write
from tests.families.using import CPU, SIZES

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    folder = tiny_qwenimage21.make_folder(tmp_path_factory.mktemp("qwen"))
    return Model.load(Base(path=str(folder)), CPU, torch.float32)


# -- conditions and denoising -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_the_pipelines_own(model, guidance):
    """As it draws without its cache, and with it to the last bits."""
    plain: Any = tiny_qwenimage21.make_pipeline()
    options: dict[str, Any] = {"width": 16, "height": 24, "num_inference_steps": 3, "true_cfg_scale": guidance}
    drawn = [plain("red apple", negative_prompt="", **options, use_kv_cache=cached,
                   generator=torch.Generator().manual_seed(1)).images[0].convert("RGB") for cached in (False, True)]
    (picture,) = model.sample(["red apple"], "", 16, 24, 3, guidance, 1)
    assert picture.tobytes() == drawn[0].tobytes()
    assert max(abs(a - b) for a, b in zip(picture.tobytes(), drawn[1].tobytes(), strict=True)) <= 1


def test_objective_and_shift(model):
    """Noise minus picture, times by the scheduler's line over the number of latents."""
    latents, noise = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    levels = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    mu = 0.5 + (0.9 - 0.5) * (96 - 256) / (8192 - 256)
    scheduler = type(model.pipeline.scheduler).from_config(model.pipeline.scheduler.config, shift_terminal=None)
    scheduler.set_timesteps(sigmas=levels.tolist(), mu=mu)
    times = model.process.times(levels, 96)
    torch.testing.assert_close(times.float(), scheduler.timesteps)
    parts = model.process.parts(times[:2])
    sigma = (times[:2].float() / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(objectives.add_noise(latents, noise, parts), noise * sigma + latents * (1 - sigma))
    assert torch.equal(objectives.target(model.process.prediction, latents, noise, parts), noise - latents)


def test_captions_of_a_batch_do_not_see_each_other(model):
    """One of them is padded; text does not depend on the picture either, which comes behind it."""
    noisy, times = torch.randn(2, 4, 8, 12), torch.tensor([137.0, 901.0])
    each = [model.encode_texts([caption]) for caption in ("red", "a red apple and a blue face")]
    with torch.no_grad():
        both = model.predict(noisy, times, together(each), SIZES)
        alone = [model.predict(noisy[i : i + 1], times[i : i + 1], each[i], SIZES) for i in (0, 1)]
    torch.testing.assert_close(both, torch.cat(alone))


def test_long_captions_are_cut_where_it_is_said(model):
    long = "x " * 1200
    beyond = model.cut_off(long)
    kept = model.encode_texts([long.removesuffix(beyond)])["hidden"]
    assert beyond and torch.equal(model.encode_texts([long])["hidden"], kept)
    assert 1024 <= kept.shape[1] < 1024 + 20  # with the end of the template


def test_pictures_are_opaque(tmp_path):
    """A VAE with transparency, as the published one, gets a fourth channel of ones; samples have three."""
    pipeline: Any = tiny_qwenimage21.make_pipeline(alpha=True)
    model, pixels = Model(pipeline, CPU), torch.rand(2, 3, 16, 24) * 2 - 1
    opaque = torch.cat([pixels, torch.ones(2, 1, 16, 24)], 1).unsqueeze(2)
    mean, std = (torch.tensor(one).view(1, 4, 1, 1) for one in (pipeline.vae.config.latents_mean,
                                                                pipeline.vae.config.latents_std))
    with torch.no_grad():
        theirs = (pipeline.vae.encode(opaque).latent_dist.mean.squeeze(2) - mean) / std
    torch.testing.assert_close(model.encode_images(pixels)[:, :4], theirs)
    assert model.sample(["red"], "", 16, 24, 1, 1.0, 0)[0].mode == "RGB"


def test_what_is_asked_of_a_model(model, tmp_path):
    assert (model.bucket_step, model.latent_factor, model.latent_channels, model.longest_side) == (4, 2, 4, None)
    assert len(model.blocks()) == 2 and not model.distilled
    assert Model.hub_id("models/Qwen-Image-2.1-Turbo.safetensors") == TURBO
    assert Model.hub_id("turbo/qwen_image_2.1_bf16.safetensors") == BASE
    turbo: Any = tiny_qwenimage21.make_pipeline()
    turbo.register_to_config(sample_sigmas=[1.0, 0.5])
    base = Base(path=str(tiny_qwenimage21.save(turbo, tmp_path / "turbo")))
    assert Model.problems(base) == [] and Model.skeleton(base).distilled


# -- names and files --------------------------------------------------------------------------------------------------

GATE, OTHER = (f"transformer.transformer_blocks.1.img_mlp.{layer}" for layer in ("gate_layer", "proj"))
WHOLE = "transformer_blocks.1.img_mlp.gate_up"


def test_two_matrices_are_one_in_comfyuis_files(tmp_path, model):
    """Both have its name there, the gate above; a file that has it is read into both."""
    for layer in (GATE, OTHER):
        assert model.export_key(layer, "comfyui") == f"diffusion_model.{WHOLE}"
        assert model.export_key(layer, "kohya") == f"lora_unet_{WHOLE}".replace(".", "_")
        assert model.export_key(layer, "diffusers") == layer
    both = [model.networks["transformer"].get_submodule(layer.partition(".")[2]).weight for layer in (GATE, OTHER)]
    whole = torch.nn.Linear(32, 2 * 64, bias=False)
    whole.weight.data = torch.cat(both)
    case = foreign.lora_of_kohya(whole)
    file = written_file(tmp_path / "a.safetensors", {f"diffusion_model.{WHOLE}": case})
    assert reading.family_of(file.tensors) == "qwenimage21"
    assert_changes(reading.changes(file, model), {GATE: case.weight[:64], OTHER: case.weight[64:]})


def test_diffusers_loads_and_computes_what_was_trained(tmp_path, model):
    names = match_layers(model, Targets(layers="all"))[0]
    assert_diffusers_computes(model, LORA, names, tmp_path, {"host": "diffusers", "dtype": "float32"})


@pytest.mark.parametrize("way", ["comfyui", "published"])
def test_split_files_are_the_same_model(tmp_path, way):
    """The text encoder in both namings; what reads pictures is left out."""
    pipeline: Any = tiny_qwenimage21.make_pipeline(seed=3)
    config = tiny_qwenimage21.save(pipeline, tmp_path / "config")
    for file in Path(config).rglob("*.safetensors"):
        file.unlink()
    text = pipeline.text_encoder.state_dict()
    files = {"qwen_image_2.1_bf16": single_file_qwenimage21.original(pipeline.transformer.state_dict()),
             "qwen3vl_8b_bf16": text if way == "published" else single_file_qwenimage21.text_encoder(
                 pipeline.text_encoder), "vae": pipeline.vae.state_dict()}
    denoiser, texts, vae = (str(write(tensors, tmp_path / f"{name}.safetensors")) for name, tensors in files.items())
    base = Base(path=denoiser, config=str(config), texts=(texts,), vae=vae)
    assert Model.problems(base) == []
    found = Model.load(base, CPU, torch.float32)
    for part in single_file_qwenimage21.PARTS:
        ours, theirs = (one.components[part].state_dict() for one in (found.pipeline, pipeline))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert set(theirs) - set(ours) == {name for name in theirs if "visual" in name or "lm_head" in name}
