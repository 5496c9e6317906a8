"""What FLUX.2 has of its own, on tiny random pipelines of real diffusers classes: Klein base and distilled, and dev."""

import math
import re
import shutil
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from modules.adapters.base import detach
from modules.families.flux2 import DEV, KLEIN, PREFIX, Model
from modules.files.models_by_name import whose
from modules.objectives import add_noise, target
from modules.preset.schema import Base, Targets
from modules.training.setup import layer_names, match_layers
from tests import full_size
from tests.export.test_hosts import LORA, WORA_OUTPUT, assert_diffusers_computes
from tests.families.rows import SIZE, normalised
from tests.families.single_file_flux2 import original, original_vae, text_encoder, write
from tests.families.using import CPU, SIZES, inputs
from tests.tiny_flux2 import make_folder, make_pipeline

pytestmark = pytest.mark.full

KINDS = ("base", "distilled", "dev")
SIDE = [length // 4 for length in SIZE]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make_folder(tmp_path_factory.mktemp("flux2"), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders):
    return {kind: Model.load(Base(path=str(folder)), CPU, torch.float32) for kind, folder in folders.items()}


# -- texts and predictions --------------------------------------------------------------------------------------------


@pytest.mark.short("dev")
@pytest.mark.parametrize("kind", ["base", "dev"])
def test_conditions_are_those_of_the_whole_text_encoder(models, kind):
    """The blocks that nothing is read behind, and dev's reader of pictures, are taken out."""
    whole = make_pipeline(kind)
    expected, _ = whole.encode_prompt(["red apple", ""], device=CPU)
    found = models[kind].encode_texts(["red apple", ""])["hidden"]
    assert torch.equal(found, expected) and found.shape == (2, 512, 24)
    assert sum(p.numel() for p in models[kind].networks["text_encoder"].parameters()) < sum(
        p.numel() for p in whole.text_encoder.parameters())


@pytest.mark.parametrize("kind", ["base", "dev"])
def test_captions_are_read_between_the_templates_words(models, kind):
    model = models[kind]
    message = model.message("a red apple")
    assert message.count("a red apple") == 1 and len(model.token_starts("")) == 0
    before = model.tokenizer(message.partition("a red apple")[0], add_special_tokens=False).input_ids
    assert model.caption_tokens == 512 - len(before)
    long = "x " * 400
    read = long.removesuffix(model.cut_off(long))
    assert torch.equal(*(model.encode_texts([text])["hidden"] for text in (long, read + model.cut_off(long) + " z")))
    assert not torch.equal(*(model.encode_texts([text])["hidden"] for text in (long, "z" + read[1:])))


def first_call(model, guidance: float):
    """What the pipeline gave to the transformer in its first step, and what it got."""
    calls = []
    hook = model.pipeline.transformer.register_forward_hook(
        lambda module, args, named, output: calls.append((named, output[0])), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model.pipeline(prompt="red apple", height=SIZE[0], width=SIZE[1], num_inference_steps=3,
                           guidance_scale=guidance, output_type="latent")
    finally:
        hook.remove()
    return calls[0]


@pytest.mark.parametrize("kind, dtype", [("base", torch.bfloat16), ("dev", torch.bfloat16), ("dev", torch.float32)])
def test_predict_is_the_pipelines_own_call(folders, kind, dtype):
    model = Model.load(Base(path=str(folders[kind])), CPU, dtype)
    given, theirs = first_call(model, 1.0)
    noisy, expected = (tokens.mT.unflatten(2, SIDE) for tokens in (given["hidden_states"], theirs))
    texts = model.encode_texts(["red apple"])
    assert torch.equal(texts["hidden"], given["encoder_hidden_states"])
    assert (given["guidance"] is None) == (kind != "dev")
    with torch.no_grad():
        ours = model.predict(noisy, model.pipeline.scheduler.timesteps[:1].double(), texts, SIZES)
    assert torch.equal(ours, expected)


def test_samples_of_a_batch_do_not_mix(models):
    model = models["base"]
    noisy, times = inputs(model, 2)
    texts = model.encode_texts(["red apple", "face"])
    with torch.no_grad():
        both = model.predict(noisy, times, texts, SIZES.expand(2, -1))
        alone = model.predict(noisy[1:], times[1:], {"hidden": texts["hidden"][1:]}, SIZES)
    torch.testing.assert_close(both[1:], alone)


# -- the arithmetic of published training scripts ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "dev"])
def test_noising_and_target_are_those_of_diffusers_script(models, kind):
    """examples/dreambooth/train_dreambooth_lora_flux2_klein.py at commit 58eb52c0, restated; dev's is the same with a
    guidance. The script sets that to 3.5, OneTrainer, ai-toolkit and musubi-tuner to 1."""
    model = models[kind]
    pipeline, noisy_at = model.pipeline, torch.tensor([250.0, 700.0])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, *SIZE, generator=generator) * 2 - 1
    hidden = model.encode_texts(["red apple", "face"])["hidden"]

    model_input = normalised(pipeline, pipeline.vae.encode(pixels).latent_dist.mode(), False)
    noise = torch.randn(model_input.shape, generator=generator)
    sigmas = (noisy_at / 1000).view(-1, 1, 1, 1)
    noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise
    ids = pipeline._prepare_latent_ids(model_input)
    with torch.no_grad():
        model_pred = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy_model_input), timestep=noisy_at / 1000,
            guidance=torch.full([1], 1.0).expand(2) if kind == "dev" else None, encoder_hidden_states=hidden,
            txt_ids=pipeline._prepare_text_ids(hidden), img_ids=ids, return_dict=False,
        )[0]
    model_pred = pipeline._unpack_latents_with_ids(model_pred, ids)

    latents = model.encode_images(pixels).chunk(2, 1)[0]
    parts = model.process.parts(noisy_at.double())
    noisy = add_noise(latents, noise, parts)
    torch.testing.assert_close(noisy, noisy_model_input)
    torch.testing.assert_close(target(model.process.prediction, latents, noise, parts), noise - model_input)
    with torch.no_grad():
        found = model.predict(noisy, noisy_at.double(), {"hidden": hidden}, SIZES.expand(2, -1))
    torch.testing.assert_close(found, model_pred)


def one_trainer_shift(config, latent_height: int, latent_width: int) -> float:
    """Flux2Model.calculate_timestep_shift of OneTrainer at commit 23df3832, restated: of the VAE's latents. It was once
    called with the size of the transformer's, and so with a quarter of the tokens."""
    m = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    tokens = (latent_width // 2) * (latent_height // 2)
    return math.exp(config.base_shift + m * (tokens - config.base_image_seq_len))


def musubi_shift(h: int, w: int) -> float:
    """`flux2_shift` of musubi-tuner (training/trainer_base.py at commit 30c658c4), restated: of the transformer's
    latents."""
    return math.exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (h * w - 256))


@pytest.mark.parametrize("pixels", [(512, 512), (1024, 1024), (1344, 768)])
def test_levels_are_shifted_as_in_published_scripts(models, pixels):
    """A token is 16 pixels wide in the real models."""
    model = models["base"]
    height, width = (length // 16 for length in pixels)
    shift = model.process.shift_of(height * width)
    assert shift == pytest.approx(musubi_shift(height, width))
    assert shift == pytest.approx(one_trainer_shift(model.pipeline.scheduler.config, 2 * height, 2 * width))
    assert math.log(shift) == pytest.approx(compute_empirical_mu(height * width, 200), abs=1e-4)
    levels = torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(model.process.times(levels, height * width) / 1000,
                               levels * shift / (1 + (shift - 1) * levels))


def test_a_latent_of_the_loop_is_a_token(models):
    """Of a base of real proportions: 1024 pixels are 64 x 64 tokens, by pipeline and process."""
    for model in models.values():
        assert (model.latent_factor, model.bucket_step, model.latent_channels) == (4, 4, 16)
        given, _ = first_call(model, 1.0)
        assert given["hidden_states"].shape == (1, SIDE[0] * SIDE[1], model.latent_channels)


@pytest.mark.parametrize("fixed", [None, 3.0])
def test_samples_have_the_pipelines_own_shift_or_the_given_one(folders, fixed):
    model = Model.load(Base(path=str(folders["base"])), CPU, torch.float32)
    if fixed:
        model.use_shift(fixed)
        assert model.process.shift_of(4096) == fixed
    first_call(model, 1.0)
    levels = torch.tensor([1.0, 2 / 3, 1 / 3])
    shift = fixed or math.exp(compute_empirical_mu(SIDE[0] * SIDE[1], 3))
    torch.testing.assert_close(model.pipeline.scheduler.sigmas[:3], shift * levels / (1 + (shift - 1) * levels))


# -- samples ----------------------------------------------------------------------------------------------------------


def picture(model, negative: str = "", guidance: float = 4.0) -> bytes:
    return model.sample(["red"], negative, SIZE[1], SIZE[0], 2, guidance, 0)[0].tobytes()


def test_guidance(models):
    base, distilled, dev = (models[kind] for kind in KINDS)
    assert picture(base) != picture(base, guidance=1.0) and picture(base) != picture(base, "a face")
    assert picture(distilled) == picture(distilled, guidance=1.0) == picture(distilled, "a face")
    assert picture(dev) != picture(dev, guidance=1.0) and picture(dev) == picture(dev, "a face")
    assert [model.distilled for model in (base, distilled, dev)] == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_the_pipelines(models, kind):
    import numpy

    model = models[kind]
    (theirs,) = model.pipeline(
        prompt="red", height=SIZE[0], width=SIZE[1], num_inference_steps=2, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
    ).images
    (ours,) = model.sample(["red"], "", SIZE[1], SIZE[0], 2, 4.0, 0)
    assert abs(numpy.asarray(ours).astype(int) - numpy.asarray(theirs)).max() <= 1


# -- layers and names -------------------------------------------------------------------------------------------------


def test_targets(models):
    model = models["dev"]
    sets = {layers: set(match_layers(model, Targets(layers=layers))[0]) for layers in model.named_targets()}
    assert sets["double-blocks"] | sets["single-blocks"] == sets["attention-mlp"]
    assert {name.split(".")[1] for name in sets["double-blocks"]} == {"transformer_blocks"}
    assert {name.split(".")[1] for name in sets["single-blocks"]} == {"single_transformer_blocks"}
    assert len(sets["attention"]) == 2 * 8 + 2 * 2 and len(sets["attention-mlp"]) == 2 * 12 + 2 * 2
    assert len(sets["all"] - sets["attention-mlp"]) == 10


DOUBLE, SINGLE = "transformer.transformer_blocks.0.", "transformer.single_transformer_blocks.1."
KEYS = {
    (DOUBLE + "attn.to_q", "comfyui"): DOUBLE + "attn.to_q",
    (DOUBLE + "attn.to_q", "kohya"): "lora_unet_double_blocks_0_img_attn_qkv",
    (DOUBLE + "ff_context.linear_in", "kohya"): "lora_unet_double_blocks_0_txt_mlp_0",
    (SINGLE + "attn.to_qkv_mlp_proj", "kohya"): "lora_unet_single_blocks_1_linear1",
    (SINGLE + "attn.to_out", "lycoris"): "lycoris_single_transformer_blocks_1_attn_to_out",
    ("transformer.time_guidance_embed.timestep_embedder.linear_1", "comfyui"): "diffusion_model.time_in.in_layer",
    ("transformer.time_guidance_embed.timestep_embedder.linear_1", "diffusers"):
        "transformer.time_guidance_embed.timestep_embedder.linear_1",
    ("transformer.single_stream_modulation.linear", "comfyui"): "diffusion_model.single_stream_modulation.lin",
    ("text_encoder.model.language_model.layers.0.self_attn.q_proj", "comfyui"):
        "text_encoders.mistral3_24b.transformer.model.layers.0.self_attn.q_proj",
}


@pytest.mark.parametrize("layer, host, key", [(*asked, key) for asked, key in KEYS.items()])
def test_keys(models, layer, host, key):
    assert models["dev"].export_key(layer, host) == key


@pytest.mark.parametrize("kind, variant", [("base", LORA), ("dev", WORA_OUTPUT)])
def test_diffusers_loads_and_computes_what_was_trained(tmp_path, models, kind, variant):
    model = models[kind]
    names = match_layers(model, Targets(layers="all"))[0]
    try:
        assert_diffusers_computes(model, variant, names, tmp_path, {"host": "diffusers", "dtype": "float32"})
    finally:
        for network in model.networks.values():
            detach(network)


UNREAD_BY_DIFFUSERS = ("_modulation", "guidance_embedder", "norm_out")
"""Layers with names in kohya's files that its conversion lacks."""


@pytest.mark.short("diffusers-flux2_klein_4b", "kohya-flux2_klein_4b")
@pytest.mark.parametrize("name", [name for name, known in full_size.MODELS.items() if known.family == "flux2"])
@pytest.mark.parametrize("host", ["diffusers", "kohya"])
def test_diffusers_loads_every_layer_of_the_real_models(tmp_path, name, host):
    """`load_lora_weights` into the networks in full size, which have no weights."""
    model = full_size.skeleton(name, tmp_path)
    network: Any = model.networks["transformer"]
    layers = [layer for layer in layer_names(model) if layer.startswith("transformer.")]
    shapes: dict[str, tuple[int, int]] = {}
    for layer in layers:
        key, (out, inputs) = model.export_key(layer, host), network.get_submodule(layer.partition(".")[2]).weight.shape
        shapes[key] = (shapes.get(key, (0, 0))[0] + out, inputs)  # layers that are fused share the key
    up, down = (".lora_B.weight", ".lora_A.weight") if host == "diffusers" else (".lora_up.weight", ".lora_down.weight")
    file = {key + end: tensor for key, (out, inputs) in shapes.items()
            for end, tensor in ((up, torch.ones(out, 1)), (down, torch.ones(1, inputs)))}
    model.pipeline.load_lora_weights(file, adapter_name="own")
    tuned: dict[str, Any] = {path: one for path, one in network.named_modules() if isinstance(one, BaseTunerLayer)}
    found = {f"transformer.{path}" for path, module in tuned.items()
             if module.lora_B["own"].weight.shape == (module.get_base_layer().weight.shape[0], 1)}
    assert found == {layer for layer in layers if host == "diffusers" or not any(
        word in layer for word in UNREAD_BY_DIFFUSERS)}


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["base", "dev"])
def split(request, tmp_path_factory, folders):
    """A kind's folder with weights, a folder with its configurations, and a file for each part as ComfyUI has them."""
    place, kind = tmp_path_factory.mktemp("split"), request.param
    pipeline = make_pipeline(kind)  # the same weights: the same seed
    shutil.copytree(folders[kind], place / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    write(original(pipeline.transformer.state_dict()), place / "transformer.safetensors")
    write(text_encoder(pipeline.text_encoder), place / "text.safetensors")
    write(original_vae(pipeline.vae), place / "vae.safetensors")
    return place, folders[kind]


def in_parts(place, **changes) -> Base:
    given = {"path": place / "transformer.safetensors", "texts": (str(place / "text.safetensors"),),
             "vae": place / "vae.safetensors", "config": place / "config"} | changes
    return Base.model_validate({name: value if name == "texts" else str(value) for name, value in given.items()})


def assert_same(base: Base, folder) -> None:
    assert Model.problems(base) == []
    ours, theirs = (Model.load(one, CPU, torch.float32) for one in (base, Base(path=str(folder))))
    for part in ("transformer", "text_encoder", "vae"):
        found, wanted = (model.pipeline.components[part].state_dict() for model in (ours, theirs))
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(*(model.encode_texts(["red"])["hidden"] for model in (ours, theirs)))
    assert [ours.fingerprint(part) for part in ("images", "texts")] == [
        theirs.fingerprint(part) for part in ("images", "texts")]
    assert {path.name for path in Model.files_of(base).values() if path.suffix == ".safetensors"} == {
        "transformer.safetensors", "text.safetensors", "vae.safetensors"}


def test_a_file_for_each_part_is_the_same_model(split):
    place, folder = split
    assert_same(in_parts(place), folder)


def test_files_as_others_write_them(split, tmp_path):
    """With a prefix, with the convolutions around the latents beside encoder and decoder, without a counter, and a text
    encoder without the blocks behind those that are read."""
    place, folder = split
    write(load_file(place / "transformer.safetensors"), tmp_path / "transformer.safetensors", PREFIX)
    vae = {re.sub(r"..coder\.(post_)?quant_conv", r"\1quant_conv", name): tensor
           for name, tensor in load_file(place / "vae.safetensors").items()}
    save_file({name: t for name, t in vae.items() if "num_batches" not in name}, tmp_path / "vae.safetensors")
    texts = load_file(place / "text.safetensors")
    last = 30 if "model.layers.31.mlp.up_proj.weight" in texts else 27
    unread = (*(f"model.layers.{number}." for number in range(last, 32)), "model.norm.")
    save_file({name: t for name, t in texts.items() if not name.startswith(unread)}, tmp_path / "text.safetensors")
    base = in_parts(place, path=tmp_path / "transformer.safetensors", texts=(str(tmp_path / "text.safetensors"),),
                    vae=tmp_path / "vae.safetensors")
    assert_same(base, folder)


@pytest.mark.parametrize("name, width, hub", [
    ("flux-2-klein-4b.safetensors", 3072, KLEIN + "4B"),
    ("flux-2-klein-base-4b-fp8.safetensors", 3072, KLEIN + "base-4B"),
    ("flux-2-klein-9b.safetensors", 4096, KLEIN + "9B"), ("mine.safetensors", 4096, KLEIN + "base-9B"),
    ("flux2-dev.safetensors", 6144, DEV),
])
def test_the_configuration_of_a_file_follows_from_its_width_and_name(tmp_path, name, width, hub):
    for start in ("img_in", PREFIX + "img_in", "x_embedder"):
        save_file({f"{start}.weight": torch.zeros(width, 1)}, tmp_path / name)
        assert Model.hub_id(str(tmp_path / name)) == hub


def test_a_file_of_another_kind_than_the_configuration(split, folders):
    place, folder = split
    other = folders["base" if folder == folders["dev"] else "dev"]
    (problem,) = Model.problems(in_parts(place, config=other))
    assert problem.startswith("base.config") and "guidance embedding" in problem


def test_distilled_bases_are_told_from_the_index(folders, tmp_path):
    write(original(make_pipeline("distilled").transformer.state_dict()), tmp_path / "klein.safetensors")
    for kind in ("base", "distilled"):
        base = Base(path=str(tmp_path / "klein.safetensors"), config=str(folders[kind]))
        assert Model.skeleton(base).distilled == Model.skeleton(Base(path=str(folders[kind]))).distilled == (
            kind == "distilled")
        assert Model.load(base, CPU, torch.float32).distilled == (kind == "distilled")


@pytest.mark.parametrize("out, family", [(27648, "flux2"), (21504, "flux")])
def test_a_file_of_one_layer_is_told_by_its_size(out, family):
    """Klein 4B has FLUX.1's width and a wider layer."""
    name = "diffusion_model.single_blocks.0.linear1"
    pair = {f"{name}.lora_A.weight": torch.zeros(2, 3072), f"{name}.lora_B.weight": torch.zeros(out, 2)}
    found = whose(pair, {}).families
    assert family in found and ("flux2" in found) == (family == "flux2")
