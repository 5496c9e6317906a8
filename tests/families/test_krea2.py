"""What Krea 2 has of its own, on tiny random pipelines of real diffusers classes: captions read at several layers,
Turbo, files; export is tested with the other families, and here that diffusers draws the trainer's samples."""

import math
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline
from safetensors.torch import load_file, save_file

from modules import objectives
from modules.adapters.base import detach
from modules.families.base import together
from modules.families.krea2 import RAW, TURBO, Model
from modules.files import reading
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers
from tests import tiny_krea2
from tests.export import foreign
from tests.export.test_hosts import LORA, assert_diffusers_computes
from tests.export.test_reading import assert_changes
from tests.export.test_reading import written as written_file
from tests.families import single_file_krea2
from tests.families.single_file_flux2 import write
from tests.families.single_file_qwenimage import original_vae
from tests.tiny_krea2 import READ, WIDTH

pytestmark = pytest.mark.full

CPU = torch.device("cpu")
LONG = "a red apple, " * 12
SIZES = torch.zeros(1, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_krea2.make_folder(tmp_path_factory.mktemp("krea2"))


@pytest.fixture(scope="module")
def model(folder):
    return Model.load(Base(path=str(folder)), CPU, torch.float32)


@pytest.fixture
def bare(model):
    """Without adapters, and without a host's after the test."""
    yield model
    for network in model.networks.values():
        detach(network)


# -- texts ------------------------------------------------------------------------------------------------------------


def test_what_is_cut_out_of_the_text_encoder_is_what_no_condition_depends_on(model):
    """Against a whole one; and the padding in the middle, which the pipeline keeps, is left out."""
    pipeline = tiny_krea2.make_pipeline()
    assert len(pipeline.text_encoder.language_model.layers) == 3
    theirs, mask = pipeline.encode_prompt(["red", LONG], device=CPU)
    assert theirs.shape == (2, 512, len(READ), WIDTH) and mask.sum(1).min() < 10
    texts = model.encode_texts(["red", LONG])
    for own, valid, whole, kept in zip(texts["hidden"], texts["mask"], theirs, mask, strict=True):
        assert torch.equal(own[valid], whole[kept]) and not own[~valid].any()


def test_predict_is_the_pipelines_own_call(folder):
    """In bfloat16, called with texts: given what the pipeline has encoded, the same bits; given ours, which have no
    padding, the same but for rounding, and with its values changed the same bits again."""
    model, calls = Model.load(Base(path=str(folder)), CPU, torch.bfloat16), []
    hook = model.pipeline.transformer.register_forward_hook(
        lambda _, args, named, output: calls.append((named, output[0])), with_kwargs=True)
    prompts = "red apple", "a blue face, style"
    with torch.no_grad():
        model.pipeline(*prompts, output_type="latent", width=16, height=24, num_inference_steps=2)
        hook.remove()
        assert len(calls) == 4
        for number, (named, output) in enumerate(calls):
            noisy, wanted = (model.unpacked(each, 24, 16) for each in (named["hidden_states"], output))
            time = model.pipeline.scheduler.timesteps[number // 2].double()[None]
            texts = {"hidden": named["encoder_hidden_states"], "mask": named["encoder_attention_mask"]}
            assert torch.equal(model.predict(noisy, time, texts, SIZES), wanted)
            own = model.encode_texts([prompts[number % 2]])
            torch.testing.assert_close(model.predict(noisy, time, own, SIZES), wanted, rtol=0.05, atol=0.03)
            own = together([own, model.encode_texts([LONG])])
            first = {name: value[:1] for name, value in own.items()}
            other = first | {"hidden": first["hidden"] + 7 * ~first["mask"][..., None, None]}
            assert torch.equal(*(model.predict(noisy, time, one, SIZES) for one in (first, other)))


def test_tokens_of_a_caption_are_those_that_are_read(model):
    """507 of 512: the end of the message has its own."""
    tokens = model.tokenizer
    assert len(tokens(model.pipeline.prompt_template_encode_prefix).input_ids) == 34
    assert len(tokens(model.pipeline.prompt_template_encode_suffix).input_ids) == 5
    assert model.caption_tokens == 507
    caption = "x " * 300 + "red apple"
    assert model.cut_off(caption)
    found, changed = (model.encode_texts([text])["hidden"] for text in (caption, caption.replace("apple", "heart")))
    assert torch.equal(found, changed) and found.shape == (1, 512, len(READ), WIDTH)
    assert not torch.equal(found, model.encode_texts([caption.replace("x x", "x a", 1)])["hidden"])


# -- denoising --------------------------------------------------------------------------------------------------------


def test_objective_is_that_of_one_trainer(model):
    """`predict` of modules/modelSetup/BaseKrea2Setup.py, OneTrainer of August 2026: packing, mask, positions, noising
    and target; and the shift of `calculate_timestep_shift` of modules/model/Krea2Model.py."""
    latents, noise = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    times = torch.tensor([137.0, 901.0], dtype=torch.float64)
    texts = together([model.encode_texts([caption]) for caption in ("red", LONG)])
    sigma = (times.float() / 1000).view(-1, 1, 1, 1)
    noisy = noise * sigma + latents * (1 - sigma)
    packed = noisy.view(2, 4, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 24, 16)
    positions = torch.zeros(texts["mask"].shape[1] + 24, 3)
    positions[-24:, 1:] = torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0))
    with torch.no_grad():
        output = model.pipeline.transformer(
            hidden_states=packed, timestep=times.float() / 1000, encoder_hidden_states=texts["hidden"],
            encoder_attention_mask=texts["mask"], position_ids=positions).sample
        theirs = output.view(2, 4, 6, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 8, 12)
        parts = model.process.parts(times)
        ours = model.predict(objectives.add_noise(latents, noise, parts), times, texts, SIZES)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(objectives.target(model.process.prediction, latents, noise, parts), noise - latents)


@pytest.mark.parametrize("turbo", [False, True])
def test_levels_are_shifted_as_the_pipeline_shifts_its_steps(tmp_path, turbo):
    """Raw by the line over the number of tokens, 1.6 at 256 px to 3.2 at 1280; Turbo always as much as that."""
    make = tiny_krea2.make_turbo if turbo else tiny_krea2.make_folder
    model = Model.load(Base(path=str(make(tmp_path))), CPU, torch.float32)
    assert model.distilled == turbo
    for side, shift in ((32, 1.65), (128, 2.47), (160, 3.16)):  # latents: pictures of 256, 1024 and 1280 px
        levels = torch.linspace(0.1, 1, 10, dtype=torch.float64)
        mu = 1.15 if turbo else 0.5 + 0.65 * ((side // 2) ** 2 - 256) / (6400 - 256)
        scheduler = model.pipeline.scheduler
        scheduler.set_timesteps(sigmas=levels.tolist(), mu=mu)
        torch.testing.assert_close(model.process.times(levels, side**2).float(), scheduler.timesteps)
        assert turbo or math.exp(mu) == pytest.approx(shift, abs=0.01)


@pytest.mark.parametrize("guidance, calls", [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_no_guidance_is_one_call_per_step(model, guidance, calls):
    seen = []
    hook = model.pipeline.transformer.register_forward_hook(lambda *_: seen.append(1))
    model.sample(["red"], LONG, 16, 24, 2, guidance, 0)
    hook.remove()
    assert len(seen) == calls


def test_what_is_asked_of_a_model(model):
    assert (model.bucket_step, model.latent_factor, model.latent_channels, model.longest_side) == (4, 2, 4, None)
    assert len(model.blocks()) == 2 and not model.distilled
    assert Model.hub_id("models/krea2_turbo_fp8_scaled.safetensors") == TURBO
    assert Model.hub_id("models/turbo/raw.safetensors") == RAW


# -- names and files --------------------------------------------------------------------------------------------------

GATE, TEXT = "transformer.transformer_blocks.0.attn.to_gate", "text_encoder.language_model.layers.0.mlp.up_proj"
KEYS = {
    (GATE, "comfyui"): "diffusion_model.blocks.0.attn.gate", (GATE, "diffusers"): GATE,
    (GATE, "kohya"): "lora_unet_blocks_0_attn_gate",
    (GATE, "lycoris"): "lycoris_transformer_blocks_0_attn_to_gate",
    (TEXT, "comfyui"): "text_encoders.qwen3vl_4b.transformer.model.layers.0.mlp.up_proj",
    (TEXT, "kohya"): "lora_te_layers_0_mlp_up_proj",
}


@pytest.mark.parametrize("layer, host, key", [(*asked, key) for asked, key in KEYS.items()])
def test_keys(model, layer, host, key):
    assert model.export_key(layer, host) == key


OTHERS = {  # whose files begin so: Krea's own and ComfyUI, ai-toolkit, musubi-tuner; diffusers and OneTrainer, bare
    "diffusion_model.": True, "base_model.model.": True, "lora_unet_": True, "transformer.": False, "": False,
}
LAYERS = {"transformer_blocks.1.attn.to_out.0": "blocks.1.attn.wo", "transformer_blocks.0.ff.down": "blocks.0.mlp.down",
          "text_fusion.refiner_blocks.0.attn.to_k": "txtfusion.refiner_blocks.0.attn.wk", "time_mod_proj": "tproj.1",
          "txt_in.linear_2": "txtmlp.3", "final_layer.linear": "last.linear"}


@pytest.mark.parametrize("start", OTHERS)
def test_files_of_other_trainers_are_read(tmp_path, bare, start):
    cases = {path: foreign.lora_of_kohya(bare.pipeline.transformer.get_submodule(path)) for path in LAYERS}
    names = {path: LAYERS[path] if OTHERS[start] else path for path in cases}
    named = {start + (names[path].replace(".", "_") if start.endswith("_") else names[path]): case
             for path, case in cases.items()}
    file = written_file(tmp_path / "a.safetensors", named)
    assert reading.family_of(file.tensors) == "krea2"
    assert_changes(reading.changes(file, bare), {f"transformer.{path}": case.weight for path, case in cases.items()})


def test_diffusers_loads_and_computes_what_was_trained(tmp_path, bare):
    names = match_layers(bare, Targets(layers="all"))[0]
    assert_diffusers_computes(bare, LORA, names, tmp_path, {"host": "diffusers", "dtype": "float32"})


@pytest.fixture(scope="module")
def in_files(tmp_path_factory) -> tuple[Base, Krea2Pipeline]:
    """A pipeline in ComfyUI's files, and a configuration."""
    place, pipeline = tmp_path_factory.mktemp("files"), tiny_krea2.make_pipeline(seed=3)
    pipeline.save_pretrained(place / "config")
    for file in (place / "config").rglob("*.safetensors"):
        file.unlink()
    files = {"krea2_turbo_bf16": single_file_krea2.original(pipeline.transformer.state_dict()),
             "qwen3vl_4b_bf16": single_file_krea2.text_encoder(pipeline.text_encoder),
             "qwen_image_vae": original_vae(pipeline.vae)}
    denoiser, text, vae = (str(write(tensors, place / f"{name}.safetensors")) for name, tensors in files.items())
    return Base(path=denoiser, config=str(place / "config"), texts=(text,), vae=vae), pipeline


@pytest.mark.parametrize("way", ["comfyui", "transformers"])
def test_comfyuis_split_files_are_the_same_model(tmp_path, in_files, way):
    """Also the text encoder as transformers saves it; and the file's name makes it Turbo, though Raw's configuration
    is beside it."""
    base, pipeline = in_files
    if way == "transformers":
        write(pipeline.text_encoder.state_dict(), tmp_path / "text.safetensors")
        base = base.model_copy(update={"texts": (str(tmp_path / "text.safetensors"),)})
    assert Model.problems(base) == []
    model = Model.load(base, CPU, torch.float32)
    assert model.distilled and Model.skeleton(base).distilled
    for part in single_file_krea2.PARTS:
        ours, theirs = (one.components[part].state_dict() for one in (model.pipeline, pipeline))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    theirs, mask = pipeline.encode_prompt("red apple", device=CPU)
    assert torch.equal(model.encode_texts(["red apple"])["hidden"], theirs[mask][None])


def test_a_plain_qwen3_is_no_text_encoder_of_this_family(tmp_path, in_files):
    """qwen_3_4b.safetensors, Z-Image's, has the same layers in the same sizes and other weights."""
    base, pipeline = in_files
    plain = {name.replace("language_model.", "model."): tensor for name, tensor
             in pipeline.text_encoder.state_dict().items() if name.startswith("language_model.")}
    assert set(plain) >= {"model.layers.0.self_attn.q_norm.weight", "model.norm.weight"}
    write(plain, tmp_path / "qwen_3_4b.safetensors")
    (problem,) = Model.problems(base.model_copy(update={"texts": (str(tmp_path / "qwen_3_4b.safetensors"),)}))
    assert "is no text encoder of a Krea 2 model but a text encoder (Qwen or Mistral)" in problem
    assert "qwen3vl_4b_bf16.safetensors" in problem


def test_scaled_fp8_is_read(tmp_path, in_files):
    """krea2_raw_fp8_scaled.safetensors: the blocks' matrices in 8 bits, each with a scale."""
    base, _ = in_files
    tensors, wanted = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, {}
    for name, tensor in load_file(base.path).items():
        tensors[name] = tensor
        if name.startswith("blocks.") and tensor.dim() == 2:
            scale = tensor.abs().max() / 448
            tensors[name], tensors[name.replace(".weight", ".scale_weight")] = (tensor / scale).to(
                torch.float8_e4m3fn), scale
            wanted[name] = tensors[name].float() * scale
    save_file(tensors, tmp_path / "krea2_raw_fp8_scaled.safetensors")
    base = base.model_copy(update={"path": str(tmp_path / "krea2_raw_fp8_scaled.safetensors")})
    assert Model.problems(base) == [] and len(wanted) == 2 * 8
    model: Any = Model.load(base, CPU, torch.float32)
    found = single_file_krea2.original(model.pipeline.transformer.state_dict())
    assert not model.distilled and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
