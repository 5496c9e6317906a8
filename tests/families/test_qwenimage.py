"""What Qwen-Image has of its own, on tiny random pipelines of real diffusers classes; and what families share with it:
the VAE that reads films, and a Qwen2.5-VL as text encoder."""

import json
import shutil
import sys
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file, save_file

from modules import objectives
from modules.adapters.base import detach
from modules.families.base import together
from modules.families.parts import qwen_vae, qwen_vl
from modules.families.qwenimage import FIRST, NEWER, Model
from modules.files import reading
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers
from tests import tiny_qwenimage
from tests.export import foreign
from tests.export.test_hosts import LORA, OUTPUT, PLANES, assert_diffusers_computes
from tests.export.test_reading import assert_changes
from tests.export.test_reading import written as written_file
from tests.families import single_file_qwenimage
from tests.families.single_file_flux2 import write
from tests.tiny_qwenimage import WIDTH, make_folder

pytestmark = pytest.mark.full

CPU = torch.device("cpu")
LONG = "a red apple, " * 12
SIZES = torch.zeros(1, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("qwenimage"))


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


def test_a_caption_has_as_many_tokens_as_the_pipeline_gives_the_transformer(model):
    texts = together([model.encode_texts([caption]) for caption in ("red", LONG)])
    for caption, hidden, mask in zip(("red", LONG), texts["hidden"], texts["mask"], strict=True):
        theirs, none = model.pipeline.encode_prompt(caption, device=CPU)
        assert none is None and torch.equal(hidden[mask], theirs[0])


def test_what_is_padded_changes_no_prediction(model):
    """Two captions of different lengths in a batch, each with its own picture and time; and the padding's values."""
    texts = together([model.encode_texts([caption]) for caption in ("red", LONG)])
    noisy, times = torch.randn(2, 4, 8, 12), torch.tensor([100.0, 900], dtype=torch.float64)
    with torch.no_grad():
        both = model.predict(noisy, times, texts, SIZES)
        other = texts["hidden"] + 7 * ~texts["mask"][..., None]
        assert torch.equal(model.predict(noisy, times, texts | {"hidden": other}, SIZES), both)
        for n, caption in enumerate(("red", LONG)):
            own = model.encode_texts([caption])
            alone = model.predict(noisy[n : n + 1], times[n : n + 1], own, SIZES)
            torch.testing.assert_close(both[n : n + 1], alone)


@pytest.mark.parametrize("caption", ["red", LONG, "<|im_end|> a face", " red ", "été 猫 {0} {\n"])
def test_tokens_of_a_caption_are_those_inside_of_its_message(model, caption):
    message = model.message(caption)
    begin = message.index(f"user\n{caption}") + len("user\n")
    tokens = model.tokenizer(message, return_offsets_mapping=True).offset_mapping
    inside = [start - begin for start, end in tokens if begin < end and start < begin + len(caption)]
    assert model.token_starts(caption) == [max(start, 0) for start in inside]


def test_the_pipeline_leaves_out_the_system_message_alone(model):
    """Of whose tokens it knows the number, of the real tokenizer; the tiny one makes as many."""
    assert model.caption_tokens == model.text_length == 512
    assert model.pipeline.prompt_template_encode_start_idx == 34


def test_what_is_cut_off_is_what_no_condition_depends_on(model):
    caption = "x " * 300 + "red apple"
    beyond = model.cut_off(caption)
    assert beyond
    found, changed = (model.encode_texts([text])["hidden"] for text in (caption, caption.replace("apple", "heart")))
    assert torch.equal(found, changed) and found.shape == (1, 512, WIDTH)
    nearer = model.encode_texts([caption.replace("x x", "x a", 1)])["hidden"]
    assert not torch.equal(found, nearer)


def test_texts_need_no_reader_of_pictures(folder, tmp_path, monkeypatch):
    """Nor a package for one; an index that has it, as those of models that edit do, is read all the same."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    base = Base(path=str(shutil.copytree(folder, tmp_path / "base")))
    index = json.loads((tmp_path / "base/model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    (tmp_path / "base/model_index.json").write_text(json.dumps(index))
    assert Model.problems(base) == []
    found = Model.load(base, CPU, torch.float32)
    assert found.encode_texts(["red"])["hidden"].shape[-1] == WIDTH
    assert found.pipeline.text_encoder.model.visual is None


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_latents_are_those_of_a_film_of_one_frame(model):
    """As ai-toolkit 0.12.26 encodes, `encode_images` of extensions_built_in/diffusion_models/qwen_image/qwen_image.py,
    with the mean of the distribution instead of a draw; and back as the pipeline decodes."""
    vae, pixels = model.pipeline.vae, torch.rand(2, 3, 16, 24) * 2 - 1
    mean, std = (torch.tensor(each).view(1, 4, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    theirs = ((vae.encode(pixels.unsqueeze(2)).latent_dist.mean - mean) * (1.0 / std)).squeeze(2)
    found = model.encode_images(pixels)[:, :4]
    torch.testing.assert_close(found, theirs)
    drawn = vae.decode(theirs.unsqueeze(2) / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
    expected = model.pipeline.image_processor.postprocess(drawn.detach())
    assert [picture.tobytes() for picture in model._decode(found)] == [picture.tobytes() for picture in expected]


def test_the_names_of_the_published_vae_are_those_that_diffusers_reads():
    """Wan 2.1's VAE has the same names: diffusers' own converter gives back what we call each."""
    with torch.device("meta"):
        vae: Any = AutoencoderKLQwenImage()
    split = {name: name.rpartition(".") for name in vae.state_dict()}
    ours = {qwen_vae.place(path, kind, vae.config.num_res_blocks).name: name for name, (path, _, kind) in split.items()}
    assert len(ours) == len(split)
    assert convert_wan_vae_to_diffusers({name: name for name in ours}) == {ours[name]: name for name in ours}


# -- denoising --------------------------------------------------------------------------------------------------------


def test_predict_is_the_pipelines_own_call(folder):
    """In bfloat16, with both prompts; in float32 it is one of what every family promises."""
    model, calls = Model.load(Base(path=str(folder)), CPU, torch.bfloat16), []
    hook = model.pipeline.transformer.register_forward_hook(
        lambda _, args, named, output: calls.append((named, output[0])), with_kwargs=True)
    with torch.no_grad():
        model.pipeline("red apple", "a blue face", output_type="latent", width=16, height=24, num_inference_steps=2)
        hook.remove()
        assert len(calls) == 4
        for number, (named, output) in enumerate(calls):
            texts = model.encode_texts([("red apple", "a blue face")[number % 2]])
            assert torch.equal(named["encoder_hidden_states"], texts["hidden"]) and named["img_shapes"] == [[(1, 6, 4)]]
            noisy = model.unpacked(named["hidden_states"], 24, 16)
            time = model.pipeline.scheduler.timesteps[number // 2]
            ours = model.predict(noisy, time.double()[None], texts, SIZES)
            assert torch.equal(ours, model.unpacked(output, 24, 16))


def test_objective_is_that_of_one_trainer(model):
    """`predict` of modules/modelSetup/BaseQwenSetup.py, OneTrainer of August 2026: packing, mask, noising, target, and
    the shift of `calculate_timestep_shift` of modules/model/QwenModel.py."""
    latents, noise = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    times = torch.tensor([137.0, 901.0], dtype=torch.float64)
    texts = together([model.encode_texts([caption]) for caption in ("red", LONG)])
    sigma = (times.float() / 1000).view(-1, 1, 1, 1)
    noisy = noise * sigma + latents * (1 - sigma)
    packed = noisy.view(2, 4, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 24, 16)
    with torch.no_grad():
        output = model.pipeline.transformer(
            hidden_states=packed, timestep=times.float() / 1000, encoder_hidden_states=texts["hidden"],
            encoder_hidden_states_mask=texts["mask"], img_shapes=[[(1, 4, 6)]] * 2, return_dict=True).sample
        theirs = output.view(2, 4, 6, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 8, 12)
        parts = model.process.parts(times)
        ours = model.predict(objectives.add_noise(latents, noise, parts), times, texts, SIZES)
    torch.testing.assert_close(objectives.add_noise(latents, noise, parts), noisy)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(objectives.target(model.process.prediction, latents, noise, parts), noise - latents)


@pytest.mark.parametrize("side", [64, 128, 166])
def test_levels_are_shifted_as_the_pipeline_shifts_its_steps(model, side):
    """By the line over the number of tokens; the pipeline stretches its steps to end at `shift_terminal` besides."""
    levels, tokens = torch.linspace(0.1, 1, 10, dtype=torch.float64), (side // 2) ** 2
    mu = 0.5 + (0.9 - 0.5) * (tokens - 256) / (8192 - 256)
    scheduler = type(model.pipeline.scheduler).from_config(model.pipeline.scheduler.config, shift_terminal=None)
    scheduler.set_timesteps(sigmas=levels.tolist(), mu=mu)
    found = model.process.times(levels, side**2)
    torch.testing.assert_close(found.float(), scheduler.timesteps)
    factor = torch.tensor(mu, dtype=torch.float64).exp()
    torch.testing.assert_close(found, 1000 * factor * levels / ((factor - 1) * levels + 1))


@pytest.mark.parametrize("guidance, calls", [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_no_guidance_is_one_call_per_step(model, guidance, calls):
    seen = []
    hook = model.pipeline.transformer.register_forward_hook(lambda *_: seen.append(1))
    model.sample(["red"], "", 16, 24, 2, guidance, 0)
    hook.remove()
    assert len(seen) == calls


def test_what_is_asked_of_a_model(model):
    assert (model.bucket_step, model.latent_factor, model.latent_channels, model.longest_side) == (4, 2, 4, None)
    assert len(model.blocks()) == 3 and not model.distilled
    assert Model.hub_id("models/qwen_image_2512_fp8_e4m3fn.safetensors") == NEWER
    assert Model.hub_id("models/2512/qwen_image_bf16.safetensors") == FIRST


def test_layers_that_no_prediction_depends_on_are_in_no_set(model):
    """Those that make the last block's text: no gradient comes to them, or it is nothing."""
    transformer = model.pipeline.transformer
    texts, noisy = model.encode_texts(["red apple"]), torch.randn(1, 4, 8, 12)
    weights = {name: module.weight for name, module in transformer.named_modules()
               if isinstance(module, torch.nn.Linear)}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        loss = model.predict(noisy, torch.tensor([500.0]), texts, SIZES).square().sum()
        found = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True))
    finally:
        transformer.requires_grad_(False)
    dead = {f"transformer.{name}" for name, gradient in found.items() if gradient is None or not gradient.any()}
    assert {f"transformer.{name}" for name in weights} - set(match_layers(model, Targets(layers="all"))[0]) == dead
    assert len(dead) == 4


# -- names and files --------------------------------------------------------------------------------------------------

FIRST_LAYER = "transformer.transformer_blocks.0.attn.to_k"
TEXT = "text_encoder.model.language_model.layers.0.mlp.up_proj"
KEYS = {
    (FIRST_LAYER, "comfyui"): FIRST_LAYER, (FIRST_LAYER, "diffusers"): FIRST_LAYER,
    (FIRST_LAYER, "kohya"): "lora_unet_transformer_blocks_0_attn_to_k",
    (FIRST_LAYER, "lycoris"): "lycoris_transformer_blocks_0_attn_to_k",
    (TEXT, "comfyui"): "text_encoders.qwen25_7b.transformer.model.layers.0.mlp.up_proj",
    (TEXT, "kohya"): "lora_te_layers_0_mlp_up_proj",
}


@pytest.mark.parametrize("layer, host, key", [(*asked, key) for asked, key in KEYS.items()])
def test_keys(model, layer, host, key):
    assert model.export_key(layer, host) == key


OTHERS = {  # whose files begin so: ai-toolkit, diffusers and OneTrainer, musubi-tuner, SimpleTuner, ComfyUI's own
    "diffusion_model.": False, "transformer.": False, "lora_unet_": True, "lycoris_": True, "": False,
}


@pytest.mark.parametrize("start", OTHERS)
def test_files_of_other_trainers_are_read(tmp_path, bare, start):
    """With the layers of the last block that train nothing: these trainers have them too."""
    inside = ("2.attn.to_add_out", "0.img_mod.1", "1.txt_mlp.net.2")
    paths = [f"transformer_blocks.{path}" for path in inside]
    cases = {path: foreign.lora_of_kohya(bare.pipeline.transformer.get_submodule(path)) for path in paths}
    named = {start + (path.replace(".", "_") if OTHERS[start] else path): case for path, case in cases.items()}
    file = written_file(tmp_path / "a.safetensors", named)
    assert reading.family_of(file.tensors) == "qwenimage"
    assert_changes(reading.changes(file, bare), {f"transformer.{path}": case.weight for path, case in cases.items()})


@pytest.mark.parametrize("start", ["text_encoder.", "text_encoders.qwen25_7b.transformer.", "lora_te_"])
@pytest.mark.parametrize("level", ["model.", "model.language_model."])
def test_text_encoders_of_other_trainers_are_read(tmp_path, bare, start, level):
    """With the level of transformers' class, as OneTrainer writes them, or without."""
    path = "layers.1.self_attn.v_proj"
    case = foreign.lora_of_kohya(bare.pipeline.text_encoder.model.language_model.get_submodule(path))
    name = (level + path).replace(".", "_") if start.endswith("_") else level + path
    name = name.removeprefix("model_") if level == "model." else name  # kohya's have no first level
    file = written_file(tmp_path / "a.safetensors", {start + name: case})
    assert Model.recognises(list(file.tensors))
    assert_changes(reading.changes(file, bare), {f"text_encoder.model.language_model.{path}": case.weight})


@pytest.mark.parametrize("variant", [LORA, OUTPUT, PLANES], ids=["lora", "dora", "oft"])
def test_diffusers_loads_and_computes_what_was_trained(tmp_path, bare, variant):
    names = match_layers(bare, Targets(layers="all"))[0]
    assert_diffusers_computes(bare, variant, names, tmp_path, {"host": "diffusers", "dtype": "float32"})


@pytest.fixture(scope="module")
def in_files(tmp_path_factory) -> tuple[Base, tiny_qwenimage.QwenImagePipeline]:
    """A pipeline in ComfyUI's files, with what reads pictures in the text encoder's; and a configuration."""
    place, pipeline = tmp_path_factory.mktemp("files"), tiny_qwenimage.make_pipeline(seed=3)
    pipeline.save_pretrained(place / "config")
    for file in (place / "config").rglob("*.safetensors"):
        file.unlink()
    files = {"qwen_image_bf16": pipeline.transformer.state_dict(),
             "qwen_2.5_vl_7b": single_file_qwenimage.text_encoder(pipeline.text_encoder),
             "qwen_image_vae": single_file_qwenimage.original_vae(pipeline.vae)}
    denoiser, text, vae = (str(write(tensors, place / f"{name}.safetensors")) for name, tensors in files.items())
    return Base(path=denoiser, config=str(place / "config"), texts=(text,), vae=vae), pipeline


@pytest.mark.parametrize("way", ["comfyui", "transformers 5", "diffusers"])
def test_comfyuis_split_files_are_the_same_model(tmp_path, in_files, way):
    """Also the text encoder with the names that transformers has now, and the VAE with diffusers'."""
    base, pipeline = in_files
    if way == "transformers 5":
        write(pipeline.text_encoder.state_dict(), tmp_path / "text.safetensors")
        base = base.model_copy(update={"texts": (str(tmp_path / "text.safetensors"),)})
    if way == "diffusers":
        write(pipeline.vae.state_dict(), tmp_path / "vae.safetensors")
        base = base.model_copy(update={"vae": str(tmp_path / "vae.safetensors")})
    assert Model.problems(base) == []
    model = Model.load(base, CPU, torch.float32)
    for part in single_file_qwenimage.PARTS:
        ours, theirs = (one.components[part].state_dict() for one in (model.pipeline, pipeline))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert set(theirs) - set(ours) == {name for name in theirs if "visual" in name or "lm_head" in name}
    theirs, _ = pipeline.encode_prompt("red apple", device=CPU)
    assert torch.equal(model.encode_texts(["red apple"])["hidden"], theirs)
    (picture,) = model.sample(["red apple"], "", 16, 24, 2, 4.0, 1)
    again = pipeline("red apple", "", width=16, height=24, num_inference_steps=2,
                     generator=torch.Generator().manual_seed(1)).images[0]
    assert picture.tobytes() == again.tobytes()


def test_what_is_no_file_of_this_family_is_a_sentence(tmp_path, in_files):
    base, pipeline = in_files
    wide = tiny_qwenimage.encoder(len(pipeline.tokenizer), 2 * WIDTH)
    write(single_file_qwenimage.text_encoder(wide), tmp_path / "wide.safetensors")
    (problem,) = Model.problems(base.model_copy(update={"texts": (str(tmp_path / "wide.safetensors"),)}))
    assert problem.startswith("base.texts") and "qwen_2.5_vl_7b.safetensors" in problem
    save_file({"encoder.conv_in.weight": torch.ones(2), "decoder.mid.block_1.norm1.weight": torch.ones(2)},
              tmp_path / "ae.safetensors")
    (problem,) = Model.problems(base.model_copy(update={"vae": str(tmp_path / "ae.safetensors")}))
    assert "has a VAE, which is not that of a Qwen-Image model" in problem
    assert "give a file such as qwen_image_vae.safetensors" in problem
    text = load_file(base.texts[0])
    third = {name: tensor for name, tensor in text.items() if not name.endswith("self_attn.q_proj.bias")}
    write(third, tmp_path / "qwen3.safetensors")
    assert qwen_vl.MARK in text
    (problem,) = Model.problems(base.model_copy(update={"texts": (str(tmp_path / "qwen3.safetensors"),)}))
    assert "is no text encoder of a Qwen-Image model but a text encoder (Qwen or Mistral)" in problem


def test_scaled_fp8_is_read(tmp_path, in_files):
    """qwen_2.5_vl_7b_fp8_scaled.safetensors: its matrices in 8 bits, each with a scale."""
    base, pipeline = in_files
    tensors, wanted = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, {}
    for name, tensor in load_file(base.texts[0]).items():
        tensors[name] = tensor
        if name.endswith("_proj.weight") and "layers" in name:
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".scale_weight")] = scale
            wanted[name.replace("model.", "model.language_model.", 1)] = tensors[name].float() * scale
    save_file(tensors, tmp_path / "scaled.safetensors")
    base = base.model_copy(update={"texts": (str(tmp_path / "scaled.safetensors"),)})
    assert Model.problems(base) == [] and len(wanted) == 14
    found = Model.load(base, CPU, torch.float32).pipeline.text_encoder.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
