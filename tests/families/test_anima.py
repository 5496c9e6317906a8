"""What Anima has of its own: no torchvision, a conditioner behind the text encoder, and files with both in one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules import objectives
from modules.families.anima import Model
from modules.families.base import together
from modules.files import reading
from modules.preset.schema import Base
from tests import tiny_anima
from tests.export import foreign
from tests.export.test_reading import assert_changes
from tests.export.test_reading import written as written_file
from tests.families import single_file_anima
from tests.families.single_file_flux2 import write
from tests.families.single_file_qwenimage import original_vae
from tests.families.single_file_zimage import language_model
from tests.families.using import CPU, SIZES

pytestmark = pytest.mark.full

LONG = "a red apple and a blue face in the style of a photo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_anima.make_folder(tmp_path_factory.mktemp("anima"))


@pytest.fixture(scope="module")
def model(folder) -> Any:
    return Model.load(Base(path=str(folder)), CPU, torch.float32)


# -- conditions and denoising -----------------------------------------------------------------------------------------


def test_predict_and_sample_are_the_pipelines_own(folder, monkeypatch):
    """The whole modular pipeline of diffusers from the same folder, in bfloat16: what its conditioner and its denoiser,
    which makes its mask with torchvision, get and give, bit for bit, and the picture."""
    from diffusers import ModularPipeline

    tiny_anima.stand_in(monkeypatch)
    model = Model.load(Base(path=str(folder)), CPU, torch.bfloat16)
    theirs: Any = ModularPipeline.from_pretrained(str(folder))
    theirs.load_components(dtype=torch.bfloat16, use_safetensors=True)
    theirs.vae.to(torch.float32)
    theirs.guider.guidance_scale, calls = 3.0, []
    theirs.transformer.register_forward_hook(
        lambda _, args, named, output: calls.append((named, output[0])), with_kwargs=True)
    prompts = ("red apple", "")
    expected = theirs(prompt=prompts[0], negative_prompt=prompts[1], width=16, height=24, num_inference_steps=2,
                      generator=torch.Generator().manual_seed(1)).images[0]
    (picture,) = model.sample([prompts[0]], prompts[1], 16, 24, 2, 3.0, 1)
    assert picture.tobytes() == expected.tobytes() and len(calls) == 4
    assert theirs.transformer.config.concat_padding_mask and not model.pipeline.transformer.config.concat_padding_mask
    with torch.no_grad():
        for number, (named, output) in enumerate(calls):
            texts = model.encode_texts([prompts[number % 2]])
            assert torch.equal(named["encoder_hidden_states"], model._filled(texts["hidden"]))
            ours = model.predict(named["hidden_states"].squeeze(2), 1000 * named["timestep"].double(), texts, SIZES)
            assert torch.equal(ours, output.squeeze(2))


def test_objective_is_that_of_one_trainer(model, monkeypatch):
    """`predict` of modules/modelSetup/BaseAnimaSetup.py and `encode_text` of modules/model/AnimaModel.py, OneTrainer
    of August 2026, whose prompts have no padding where they are as long as the longest."""
    tiny_anima.stand_in(monkeypatch)
    latents, noise = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    times, captions = torch.tensor([137.0, 901.0], dtype=torch.float64), ["red", LONG]
    pipeline = model.pipeline
    qwen, t5 = (one(captions, padding="longest", truncation=True, max_length=512, return_tensors="pt")
                for one in (pipeline.tokenizer, pipeline.t5_tokenizer))
    sigma = (times.float() / 1000).view(-1, 1, 1, 1, 1)
    noisy = noise.unsqueeze(2) * sigma + latents.unsqueeze(2) * (1 - sigma)
    plain = type(pipeline.transformer).from_config({**pipeline.transformer.config, "concat_padding_mask": True})
    plain.load_state_dict(pipeline.transformer.state_dict())
    with torch.no_grad():
        hidden = pipeline.text_encoder(qwen.input_ids, attention_mask=qwen.attention_mask.float()).last_hidden_state
        context = pipeline.text_conditioner(hidden * qwen.attention_mask.unsqueeze(-1), t5.input_ids,
                                            t5.attention_mask, qwen.attention_mask)
        theirs = plain(noisy, times.float() / 1000, context, padding_mask=torch.zeros(1, 1, 16, 24))[0].squeeze(2)
        texts, parts = together([model.encode_texts([one]) for one in captions]), model.process.parts(times)
        ours = model.predict(objectives.add_noise(latents, noise, parts), times, texts, SIZES)
    torch.testing.assert_close(objectives.add_noise(latents, noise, parts), noisy.squeeze(2))
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(objectives.target(model.process.prediction, latents, noise, parts), noise - latents)


def test_levels_are_shifted_as_the_pipeline_shifts_its_steps(model):
    levels = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    scheduler = type(model.pipeline.scheduler).from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(sigmas=levels.tolist())
    torch.testing.assert_close(model.process.times(levels, 96).float(), scheduler.timesteps)


@pytest.mark.parametrize("guidance, calls", [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_no_guidance_is_one_call_per_step(model, guidance, calls):
    seen = []
    hook = model.pipeline.transformer.register_forward_hook(lambda *_: seen.append(1))
    model.sample(["red"], "", 16, 24, 2, guidance, 0)
    hook.remove()
    assert len(seen) == calls


def test_what_is_asked_of_a_model(model, folder, tmp_path):
    assert (model.bucket_step, model.latent_factor, model.latent_channels, model.longest_side) == (4, 2, 4, 128)
    assert len(model.blocks()) == 2 and not model.distilled and model.caption_tokens == 512
    (tmp_path / "anima-turbo").symlink_to(folder)
    assert Model.skeleton(Base(path=str(tmp_path / "anima-turbo"))).distilled


# -- names and files --------------------------------------------------------------------------------------------------

LAYER, INSIDE = "transformer.transformer_blocks.1.attn1.to_q", "text_conditioner.blocks.0.mlp.2"
TEXT = "text_encoder.layers.0.mlp.up_proj"
KEYS = {
    (LAYER, "comfyui"): "diffusion_model.blocks.1.self_attn.q_proj", (LAYER, "diffusers"): LAYER,
    (LAYER, "kohya"): "lora_unet_blocks_1_self_attn_q_proj",
    (LAYER, "lycoris"): "lycoris_transformer_blocks_1_attn1_to_q",
    (INSIDE, "comfyui"): "diffusion_model.llm_adapter.blocks.0.mlp.2", (INSIDE, "diffusers"): INSIDE,
    (INSIDE, "kohya"): "lora_unet_llm_adapter_blocks_0_mlp_2", (TEXT, "kohya"): "lora_te_layers_0_mlp_up_proj",
    (TEXT, "comfyui"): "text_encoders.qwen3_06b.transformer.model.layers.0.mlp.up_proj",
}


@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model.", "transformer.transformer."])
def test_keys_and_files_of_other_trainers(tmp_path, model, start):
    """sd-scripts', ai-toolkit's and ComfyUI's, and ai-toolkit's own while it trains."""
    for (layer, host), key in KEYS.items():
        assert model.export_key(layer, host) == key
    names = {LAYER: "blocks.1.self_attn.q_proj", INSIDE: "llm_adapter.blocks.0.mlp.2"}
    if start.startswith("transformer"):
        names = {LAYER: LAYER.partition(".")[2]}
    cases = {layer: foreign.lora_of_kohya(model.networks[layer.partition(".")[0]].get_submodule(
        layer.partition(".")[2])) for layer in names}
    named = {start + (name.replace(".", "_") if start.endswith("_") else name): cases[layer]
             for layer, name in names.items()}
    file = written_file(tmp_path / "a.safetensors", named)
    assert reading.family_of(file.tensors) == "anima"
    assert_changes(reading.changes(file, model), {layer: case.weight for layer, case in cases.items()})


@pytest.mark.parametrize("start", ["net.", "model.diffusion_model.", ""])
def test_comfyuis_split_files_are_the_same_model(tmp_path, start):
    """The published base has the first beginning, turbo the second, and tensors that nothing uses."""
    pipeline: Any = tiny_anima.make_pipeline(seed=3)
    tiny_anima.save(pipeline, tmp_path / "config")
    for file in (tmp_path / "config").rglob("*.safetensors"):
        file.unlink()
    beside = {"pos_embedder.seq": torch.zeros(4), "accum_iteration": torch.zeros(())} if start == "net." else {}
    whole = {start + name: tensor for name, tensor in (single_file_anima.denoiser(pipeline) | beside).items()}
    files = {"anima": whole, "qwen_3_06b_base": language_model(pipeline.text_encoder),
             "qwen_image_vae": original_vae(pipeline.vae)}
    denoiser, text, vae = (str(write(tensors, tmp_path / f"{name}.safetensors")) for name, tensors in files.items())
    base = Base(path=denoiser, config=str(tmp_path / "config"), texts=(text,), vae=vae)
    assert Model.problems(base) == []
    found = Model.load(base, CPU, torch.float32)
    for part in single_file_anima.PARTS:
        ours, theirs = (one.components[part].state_dict() for one in (found.pipeline, pipeline))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    further = {f"{start}llm_adapter.blocks.1.mlp.0.bias": torch.zeros(2)}
    save_file(load_file(denoiser) | further, tmp_path / "further.safetensors")
    (problem,) = Model.problems(replace_path(base, tmp_path / "further.safetensors"))
    assert problem.startswith("base.path") and "has unknown" in problem and "llm_adapter.blocks.1" in problem
    bare = {name: tensor for name, tensor in load_file(denoiser).items() if "llm_adapter" not in name}
    save_file(bare, tmp_path / "bare.safetensors")
    (problem,) = Model.problems(replace_path(base, tmp_path / "bare.safetensors"))
    assert problem.startswith("base.path") and "no weights of text_conditioner" in problem


def replace_path(base: Base, path: Path) -> Base:
    """The base with another file."""
    return base.model_copy(update={"path": str(path)})
