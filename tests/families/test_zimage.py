"""What Z-Image has of its own, on tiny random pipelines of real diffusers classes, base and turbo; and what families
with a Qwen3 text encoder share."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM

from modules import objectives
from modules.adapters.base import detach
from modules.families.base import together
from modules.families.parts.files import INDEX
from modules.families.zimage import BASE, ENCODER, TURBO, Model, unpadded
from modules.files import reading
from modules.preset.schema import Base, Targets
from modules.training.setup import layer_names, match_layers
from tests import tiny_qwen3
from tests.export import foreign
from tests.export.test_hosts import LORA, OUTPUT, PLANES, assert_diffusers_computes
from tests.export.test_reading import assert_changes
from tests.export.test_reading import written as written_file
from tests.families import single_file_zimage
from tests.families.single_file import renamed, vae_names
from tests.tiny_zimage import WIDTH, make_folder, make_pipeline

CPU = torch.device("cpu")
LONG = "a red apple, " * 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {turbo: make_folder(tmp_path_factory.mktemp("zimage"), turbo) for turbo in (False, True)}


@pytest.fixture(scope="module")
def models(folders):
    return {turbo: Model.load(Base(path=str(folder)), CPU, torch.float32) for turbo, folder in folders.items()}


@pytest.fixture
def model(models):
    return models[False]


@pytest.fixture
def bare(model):
    """Without adapters, and without a host's after the test."""
    yield model
    for network in model.networks.values():
        detach(network)


# -- texts ------------------------------------------------------------------------------------------------------------


def test_a_caption_has_as_many_tokens_as_the_pipeline_gives_the_transformer(model):
    short, long = (model.encode_texts([caption]) for caption in ("red", LONG))
    both = together([short, long])
    assert short["hidden"].shape[1] < long["hidden"].shape[1] == both["hidden"].shape[1]
    for caption, hidden in zip(("red", LONG), unpadded(both), strict=True):
        (theirs,), _ = model.pipeline.encode_prompt(caption, device=CPU, do_classifier_free_guidance=False)
        assert torch.equal(hidden, theirs)


def test_what_is_padded_changes_no_prediction(model):
    """Two captions of different lengths in a batch, each with its own picture and time; and the padding's values."""
    texts = together([model.encode_texts([caption]) for caption in ("red", LONG)])
    noisy, times = torch.randn(2, 4, 8, 12), torch.tensor([100.0, 900], dtype=torch.float64)
    with torch.no_grad():
        both = model.predict(noisy, times, texts, torch.zeros(2, 6))
        other = texts["hidden"] + 7 * ~texts["mask"][..., None]
        assert torch.equal(model.predict(noisy, times, texts | {"hidden": other}, torch.zeros(2, 6)), both)
        for n, caption in enumerate(("red", LONG)):
            own = model.encode_texts([caption])
            alone = model.predict(noisy[n : n + 1], times[n : n + 1], own, torch.zeros(1, 6))
            torch.testing.assert_close(both[n : n + 1], alone)


@pytest.mark.parametrize("caption", ["red", LONG, "<|im_end|> a face", " red ", "été 猫\n"])
def test_tokens_of_a_caption_are_those_inside_of_its_message(model, caption):
    message = model.message(caption)
    begin = message.index(caption)
    assert message.startswith("<|im_start|>user\n") and message.endswith("<|im_start|>assistant\n")
    tokens = model.tokenizer(message, return_offsets_mapping=True).offset_mapping
    inside = [start - begin for start, end in tokens if begin < end and start < begin + len(caption)]
    assert model.token_starts(caption) == [max(start, 0) for start in inside]
    assert model.caption_tokens == model.text_length - len([start for start, _ in tokens if start < begin])


def test_what_is_cut_off_is_what_no_condition_depends_on(model):
    caption = "x " * 300 + "red apple"
    beyond = model.cut_off(caption)
    assert beyond
    found, changed = (model.encode_texts([text])["hidden"] for text in (caption, caption.replace("apple", "heart")))
    kept = model.encode_texts([caption.removesuffix(beyond) + "a" * len(beyond)])["hidden"]
    assert torch.equal(found, changed) and found.shape == kept.shape == (1, 512, WIDTH)


def test_another_template_is_another_condition(models):
    model, other = models[False], models[True]
    assert model.fingerprint("texts") == other.fingerprint("texts")
    kept = other.tokenizer.chat_template
    try:
        other.tokenizer.chat_template = kept.replace("assistant", "model")
        assert model.fingerprint("texts") != other.fingerprint("texts")
    finally:
        other.tokenizer.chat_template = kept


def test_a_model_that_generates_has_the_same_layers_and_texts(model, folders, tmp_path):
    """Trainers load the class with an output; the published index names the one without."""
    folder = tmp_path / "base"
    shutil.copytree(folders[False], folder)
    whole = Qwen3ForCausalLM(model.pipeline.text_encoder.config)
    whole.model.load_state_dict(model.pipeline.text_encoder.state_dict())
    whole.save_pretrained(folder / "text_encoder")
    index = json.loads((folder / INDEX).read_text())
    index["text_encoder"][1] = "Qwen3ForCausalLM"
    (folder / INDEX).write_text(json.dumps(index))
    other = Model.load(Base(path=str(folder)), CPU, torch.float32)
    texts, wanted = other.encode_texts(["red"]), model.encode_texts(["red"])
    assert all(torch.equal(texts[name], wanted[name]) for name in wanted)
    every = Targets(layers="all", text_encoders=True)
    ours, theirs = (match_layers(one, every)[0] for one in (other, model))
    for host in ("comfyui", "kohya", "lycoris"):
        assert [other.export_key(name, host) for name in ours] == [model.export_key(name, host) for name in theirs]
    assert not [name for name in layer_names(other) if "lm_head" in name]


# -- denoising --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turbo", [False, True])
def test_predict_is_the_pipelines_own_call(folders, turbo):
    """In bfloat16; in float32 it is one of what every family promises."""
    model, calls = Model.load(Base(path=str(folders[turbo])), CPU, torch.bfloat16), []
    hook = model.pipeline.transformer.register_forward_hook(lambda _, args, output: calls.append((args, output[0])))
    with torch.no_grad():
        model.pipeline("red apple", output_type="latent", width=16, height=24, num_inference_steps=2, guidance_scale=0)
        hook.remove()
        texts = model.encode_texts(["red apple"])
        for (args, output), time in zip(calls, model.pipeline.scheduler.timesteps, strict=True):
            assert torch.equal(args[2][0], texts["hidden"][0])
            noisy = torch.stack(args[0]).squeeze(2)
            ours = model.predict(noisy, time.double()[None], texts, torch.zeros(1, 6))
            assert torch.equal(ours, -torch.stack(output).squeeze(2))


def test_objective_is_that_of_ai_toolkit(model):
    """`get_noise_prediction` and `get_loss_target` of extensions_built_in/diffusion_models/z_image/z_image.py, and
    `add_noise` of toolkit/samplers/custom_flowmatch_sampler.py, ai-toolkit 0.12.26. OneTrainer's differs in that its
    network is told 1/1000 less noise than there is."""
    latents, noise = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    times, texts = torch.tensor([137.0, 901.5], dtype=torch.float64), model.encode_texts(["red", LONG])
    t_01 = (times.float() / 1000).view(-1, 1, 1, 1)
    noisy = (1.0 - t_01) * latents + t_01 * noise
    with torch.no_grad():
        given = list(noisy.unsqueeze(2).unbind(dim=0))
        output = model.pipeline.transformer(given, (1000 - times.float()) / 1000, unpadded(texts))[0]
        theirs = -torch.stack([one.float() for one in output], dim=0).squeeze(2)
        parts = model.process.parts(times)
        ours = model.predict(objectives.add_noise(latents, noise, parts), times, texts, torch.zeros(2, 6))
    torch.testing.assert_close(objectives.add_noise(latents, noise, parts), noisy)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(objectives.target(model.process.prediction, latents, noise, parts), noise - latents)


@pytest.mark.parametrize("turbo, shift", [(False, 6.0), (True, 3.0)])
def test_levels_are_shifted_as_the_pipeline_shifts_its_steps(models, turbo, shift):
    """And as OneTrainer shifts them, `_get_timestep_discrete` of modules/modelSetup/mixin/ModelSetupNoiseMixin.py."""
    model, levels = models[turbo], torch.linspace(0.1, 1, 10, dtype=torch.float64)
    model.pipeline.scheduler.set_timesteps(sigmas=levels.tolist(), mu=1.0)
    found = model.process.times(levels, 64 * 64)
    torch.testing.assert_close(found.float(), model.pipeline.scheduler.timesteps)
    steps = 1000 * levels
    torch.testing.assert_close(found, 1000 * shift * steps / ((shift - 1) * steps + 1000))
    assert model.distilled == turbo


def test_no_guidance_is_one_call_per_step(model):
    for guidance, count in ((0.0, [1, 1]), (1.0, [1, 1]), (1.5, [2, 2])):
        calls = []
        hook = model.pipeline.transformer.register_forward_hook(lambda _, args, output, c=calls: c.append(len(args[0])))
        model.sample(["red"], "", 16, 24, 2, guidance, 0)
        hook.remove()
        assert calls == count


def test_what_is_asked_of_a_model(model):
    assert (model.bucket_step, model.latent_factor, model.latent_channels, model.longest_side) == (4, 2, 4, 256)
    assert len(model.blocks()) == 4
    assert Model.hub_id("models/z_image_turbo_bf16.safetensors") == TURBO
    assert Model.hub_id("models/turbo/z_image_bf16.safetensors") == BASE


# -- names and files --------------------------------------------------------------------------------------------------

LAST, FIRST = "transformer.all_final_layer.2-1.linear", "transformer.layers.0.attention.to_k"
TEXT = "text_encoder.layers.0.self_attn.q_proj"
KEYS = {
    (FIRST, "comfyui"): FIRST, (FIRST, "diffusers"): FIRST, (LAST, "comfyui"): LAST,
    (FIRST, "kohya"): "lora_unet_layers_0_attention_to_k", (FIRST, "lycoris"): "lycoris_layers_0_attention_to_k",
    (TEXT, "comfyui"): f"text_encoders.{ENCODER}.transformer.model.layers.0.self_attn.q_proj",
    (TEXT, "kohya"): "lora_te_layers_0_self_attn_q_proj",
}


@pytest.mark.parametrize("layer, host, key", [(*asked, key) for asked, key in KEYS.items()])
def test_keys(model, layer, host, key):
    assert model.export_key(layer, host) == key


def test_comfyuis_own_names_are_rows_of_one_matrix(model):
    places = {(s.name, s.row, s.rows) for s in model.spellings(FIRST)}
    assert {("diffusion_model.layers.0.attention.qkv", 32, 32), ("lora_unet_layers_0_attention_qkv", 32, 32)} <= places


OTHERS = {  # whose files begin so: ai-toolkit and OneTrainer, diffusers, musubi-tuner, SimpleTuner
    "diffusion_model.": False, "transformer.": False, "lora_unet_": True, "lycoris_": True,
}


@pytest.mark.parametrize("start", OTHERS)
def test_files_of_other_trainers_are_read(tmp_path, bare, start):
    paths = ("layers.1.attention.to_k", "layers.0.attention.to_out.0", "context_refiner.0.feed_forward.w2")
    cases = {path: foreign.lora_of_kohya(bare.pipeline.transformer.get_submodule(path)) for path in paths}
    named = {start + (path.replace(".", "_") if OTHERS[start] else path): case for path, case in cases.items()}
    file = written_file(tmp_path / "a.safetensors", named)
    assert Model.recognises(list(file.tensors))
    assert_changes(reading.changes(file, bare), {f"transformer.{path}": case.weight for path, case in cases.items()})


@pytest.mark.parametrize("name", ["diffusion_model.layers.0.attention.qkv", "lora_unet_layers_0_attention_qkv"])
def test_comfyuis_fused_attention_is_taken_apart(tmp_path, bare, name):
    parts = [f"transformer.layers.0.attention.to_{letter}" for letter in "qkv"]
    weights = [bare.pipeline.transformer.get_submodule(part.partition(".")[2]).weight for part in parts]
    fused = torch.nn.Linear(32, 96, bias=False).requires_grad_(False)
    fused.weight.copy_(torch.cat(weights))
    case = foreign.lora_of_kohya(fused)
    file = written_file(tmp_path / "a.safetensors", {name: case})
    assert_changes(reading.changes(file, bare), dict(zip(parts, case.weight.split(32), strict=True)))


@pytest.mark.parametrize("variant", [LORA, OUTPUT, PLANES], ids=["lora", "dora", "oft"])
def test_diffusers_loads_and_computes_what_was_trained(tmp_path, bare, variant):
    names = match_layers(bare, Targets(layers="all"))[0]
    assert_diffusers_computes(bare, variant, names, tmp_path, {"host": "diffusers", "dtype": "float32"})


def written(pipeline: ZImagePipeline, place: Path) -> Base:
    """The parts in ComfyUI's files, the transformer with a norm that no program uses, and a configuration."""
    pipeline.save_pretrained(place / "config")
    for file in (place / "config").rglob("*.safetensors"):
        file.unlink()
    transformer = single_file_zimage.original(pipeline.transformer.state_dict())
    vae = renamed(pipeline.vae, (pair for pair in vae_names(pipeline.vae) if not pair[0].endswith("quant_conv")))
    files = {"z_image_bf16": transformer | {"norm_final.weight": torch.ones(32)},
             "qwen_3_4b": single_file_zimage.language_model(pipeline.text_encoder), "ae": dict(vae)}
    for name, tensors in files.items():
        save_file({key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()},
                  place / f"{name}.safetensors")
    at = {name: str(place / f"{name}.safetensors") for name in files}
    return Base(path=at["z_image_bf16"], config=str(place / "config"), texts=(at["qwen_3_4b"],), vae=at["ae"])


@pytest.mark.parametrize("generates", [False, True])
def test_comfyuis_split_files_are_the_same_model(tmp_path, generates):
    pipeline = make_pipeline(seed=3)
    if generates:
        tokens = tiny_qwen3.tokenizer()
        pipeline.register_modules(text_encoder=Qwen3ForCausalLM(tiny_qwen3.config(tokens, WIDTH, 3)))
    base = written(pipeline, tmp_path)
    assert Model.problems(base) == []
    model = Model.load(base, CPU, torch.float32)
    for part in single_file_zimage.PARTS:
        ours, theirs = (one.components[part].state_dict() for one in (model.pipeline, pipeline))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    texts = model.encode_texts(["red apple"])
    (theirs,), _ = pipeline.encode_prompt("red apple", device=CPU, do_classifier_free_guidance=False)
    assert torch.equal(texts["hidden"][0], theirs)


def test_another_models_language_model_is_refused(tmp_path):
    base = written(make_pipeline(), tmp_path)
    config = tiny_qwen3.config(tiny_qwen3.tokenizer(), 2 * WIDTH, 3)
    save_file(single_file_zimage.language_model(Qwen3ForCausalLM(config)), tmp_path / "qwen_3_8b.safetensors")
    (problem,) = Model.problems(base.model_copy(update={"texts": (str(tmp_path / "qwen_3_8b.safetensors"),)}))
    assert problem.startswith("base.texts") and "qwen_3_4b.safetensors" in problem
