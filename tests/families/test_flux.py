"""What FLUX.1 has of its own, on tiny random pipelines of real diffusers classes, dev and schnell."""

import pytest
import torch

from modules.adapters import methods
from modules.adapters.base import attach, detach
from modules.families.flux import Model
from modules.families.parts import files
from modules.families.parts.pipeline import PipelineModel
from modules.files import layers_by_name
from modules.objectives import Flow
from modules.preset.schema import Base, Preset, Targets
from modules.training.check import examine
from modules.training.setup import layer_names, match_layers, whole
from tests.export.test_hosts import LORA, OUTPUT, PLANES, WORA_OUTPUT, assert_diffusers_computes
from tests.tiny_flux import make_folder

CPU = torch.device("cpu")
SAMPLING = {"width": 16, "height": 24, "steps": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {dev: make_folder(tmp_path_factory.mktemp("flux"), dev) for dev in (True, False)}


@pytest.fixture(scope="module")
def models(folders):
    return {dev: Model.load(Base(path=str(folder)), CPU, torch.float32) for dev, folder in folders.items()}


@pytest.fixture
def model(models):
    return models[True]


@pytest.fixture
def bare(model):
    """dev without adapters, and without a host's after the test."""
    yield model
    for network in model.networks.values():
        detach(network)


def one_call(model, **options) -> tuple[dict, torch.Tensor]:
    """What the pipeline gave to the transformer in its first step, and what it got."""
    calls = []
    hook = model.pipeline.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model.pipeline(prompt="red apple", output_type="latent", max_sequence_length=model.text_length, **options)
    finally:
        hook.remove()
    return calls[0]


# -- denoising --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dev", [True, False])
def test_predict_is_the_pipelines_own_call(folders, dev, dtype):
    model = Model.load(Base(path=str(folders[dev])), CPU, dtype)
    given, theirs = one_call(model, width=16, height=24, num_inference_steps=3, guidance_scale=1.0)
    assert (given["guidance"] is not None) == dev
    noisy = model.pipeline._unpack_latents(given["hidden_states"], 24, 16, model.latent_factor)
    assert noisy.shape == (1, 4, 12, 8)
    texts = model.encode_texts(["red apple"])
    assert torch.equal(texts["hidden"], given["encoder_hidden_states"])
    assert torch.equal(texts["pooled"], given["pooled_projections"])
    with torch.no_grad():
        ours = model.predict(noisy, model.pipeline.scheduler.timesteps[:1].double(), texts, torch.zeros(1, 6))
    assert torch.equal(ours, model.pipeline._unpack_latents(theirs, 24, 16, model.latent_factor))


def test_samples_of_a_batch_do_not_mix(model):
    texts, times = model.encode_texts(["red apple", "face"]), torch.tensor([100.0, 900], dtype=torch.float64)
    noisy = torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        both = model.predict(noisy, times, texts, torch.zeros(2, 6))
        second = {name: tensor[1:] for name, tensor in texts.items()}
        alone = model.predict(noisy[1:], times[1:], second, torch.zeros(1, 6))
    torch.testing.assert_close(both[1:], alone)


def test_levels_are_shifted_as_the_pipeline_shifts_its_steps(models):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    dev, schnell = (models[dev] for dev in (True, False))
    levels = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    for height, width in ((64, 64), (128, 128), (96, 160)):
        scheduler = dev.pipeline.scheduler
        scheduler.set_timesteps(sigmas=levels.tolist(), mu=calculate_shift(height * width // 4))
        torch.testing.assert_close(dev.process.times(levels, height * width).float(), scheduler.timesteps)
    assert schnell.process == Flow(shift=1.0)


def test_what_is_asked_of_a_model(models):
    for dev, model in models.items():
        assert (model.bucket_step, model.latent_factor, model.latent_channels) == (4, 2, 4)
        assert model.text_length == (512 if dev else 256) == model.caption_tokens + 1
        assert model.encode_texts(["red"])["hidden"].shape == (1, model.text_length, 16)
        assert model.metadata()["modelspec.architecture"] == f"flux-1-{'dev' if dev else 'schnell'}/lora"


def test_captions_read_to_different_lengths_are_cached_apart(models):
    """The real dev and schnell have the same text encoders."""
    dev, schnell = (models[dev] for dev in (True, False))
    assert dev.text_length != schnell.text_length
    kept = {name: schnell.pipeline.components[name] for name in schnell.text_encoders}
    try:
        for name in kept:
            schnell.networks[name] = dev.networks[name]
        assert schnell.fingerprint("texts") != dev.fingerprint("texts")
        assert files.weights_hash(*(schnell.networks[n] for n in kept)) == files.weights_hash(
            *(dev.networks[n] for n in kept))
    finally:
        schnell.networks.update(kept)


# -- sampling ---------------------------------------------------------------------------------------------------------


def picture(model, negative: str = "", guidance: float = 3.5, seed: int = 0) -> bytes:
    (found,) = model.sample(["red"], negative, **SAMPLING, guidance=guidance, seed=seed)
    assert found.size == (16, 24)
    return found.tobytes()


def test_dev_is_told_its_guidance_and_schnell_has_none(models):
    assert picture(models[True]) == picture(models[True]) != picture(models[True], guidance=1.0)
    assert picture(models[False]) == picture(models[False], guidance=1.0) != picture(models[False], seed=1)


@pytest.mark.parametrize("dev", [True, False])
def test_a_negative_prompt_is_true_guidance(models, dev, monkeypatch):
    model, given = models[dev], {}
    inside = type(model.pipeline).__call__

    def recorded(pipeline, **options):
        given.update(options)
        return inside(pipeline, **options)

    monkeypatch.setattr(type(model.pipeline), "__call__", recorded)
    with_negative = picture(model, "blue heart", 3.0)
    assert (given["true_cfg_scale"], given["guidance_scale"]) == (3.0, 1.0)
    for name, expected in model.encode_texts(["blue heart"]).items():
        assert torch.equal(given[f"negative_{PipelineModel.ARGUMENTS[name]}"], expected)
    given.clear()
    without = picture(model, "", 3.0)
    assert (given["true_cfg_scale"], given["guidance_scale"]) == (1.0, 3.0)
    assert not any(name.startswith("negative") for name in given)
    assert with_negative != without != picture(model, "a", 3.0) != with_negative


# -- layers and keys --------------------------------------------------------------------------------------------------


def test_targets(model):
    sets = {layers: set(match_layers(model, Targets(layers=layers))[0]) for layers in model.named_targets()}
    assert sets["attention"] < sets["attention-mlp"] < sets["all"]
    assert sets["double-blocks"] | sets["single-blocks"] == sets["attention-mlp"]
    assert {name.split(".")[1] for name in sets["double-blocks"]} == {"transformer_blocks"}
    assert {name.split(".")[1] for name in sets["single-blocks"]} == {"single_transformer_blocks"}
    assert len(sets["attention"]) == 2 * 8 + 2 * 3 and len(sets["attention-mlp"]) == 2 * 12 + 2 * 5


def test_text_encoders_can_be_trained(folders):
    model = Model.load(Base(path=str(folders[True])), CPU, torch.float32)
    names = match_layers(model, Targets(layers="attention-mlp", text_encoders=True))[0]
    config = methods()["lora"].Config(method="lora", rank=2)
    layers = [attach(whole(model), name, config, 0) for name in names if name.startswith("text")]
    model.enable_checkpointing()
    texts = model.encode_texts(["red apple"])
    (texts["hidden"].square().sum() + texts["pooled"].square().sum()).backward()
    assert all(any(p.grad is not None and p.grad.norm() > 0 for p in a.adapter.parameters()) for a in layers)
    again = model.encode_texts(["red apple"])
    assert torch.equal(again["hidden"], texts["hidden"])  # T5's dropout stays off


BLOCK, T5 = "transformer.transformer_blocks.0.attn.to_q", "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
KEYS = {
    (BLOCK, "comfyui"): BLOCK,
    (BLOCK, "diffusers"): BLOCK,
    (BLOCK, "kohya"): "lora_unet_double_blocks_0_img_attn_qkv",
    (BLOCK, "lycoris"): "lycoris_transformer_blocks_0_attn_to_q",
    ("transformer.single_transformer_blocks.1.proj_mlp", "kohya"): "lora_unet_single_blocks_1_linear1",
    ("transformer.norm_out.linear", "kohya"): "lora_unet_final_layer_adaLN_modulation_1",
    ("text_encoder.encoder.layers.0.mlp.fc1", "comfyui"): "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    ("text_encoder.encoder.layers.0.mlp.fc1", "diffusers"): "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    ("text_encoder.embeddings.token_embedding", "comfyui"):
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding",
    (T5, "comfyui"): "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    (T5, "kohya"): "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    ("text_encoder_2.encoder.embed_tokens", "comfyui"): "text_encoders.t5xxl.transformer.shared",
}


@pytest.mark.parametrize("layer, host, key", [(*asked, key) for asked, key in KEYS.items()])
def test_keys(model, layer, host, key):
    assert model.export_key(layer, host) == key


def test_t5_has_no_name_for_diffusers(model):
    with pytest.raises(ValueError, match=r"SelfAttention\.q: diffusers supports no adapters of this text encoder; set"):
        model.export_key(T5, "diffusers")


def test_t5_s_table_of_tokens_is_one_layer(model):
    """transformers has it under two names, looks tokens up by the second, and files have the first: an adapter on the
    first would learn nothing."""
    tables = [name for name in layer_names(model) if name.endswith(("shared", "embed_tokens"))]
    assert tables == ["text_encoder_2.encoder.embed_tokens"]
    found = {name for name, parts in layers_by_name.index(model).items() for part in parts if part.layer == tables[0]}
    assert {"text_encoders.t5xxl.transformer.shared", "lora_te3_shared", "lora_te3_encoder_embed_tokens"} <= found


# -- files in diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [LORA, OUTPUT, WORA_OUTPUT, PLANES])
def test_diffusers_loads_and_computes_what_was_trained(tmp_path, bare, variant):
    names = match_layers(bare, Targets(layers="all", text_encoders=True, exclude=("text_encoder_2.*",)))[0]
    assert_diffusers_computes(bare, variant, names, tmp_path, {"host": "diffusers", "dtype": "float32"})


def test_what_diffusers_cannot_hold_is_said_before_the_training(folders):
    sections = {
        "family": "flux", "base": {"path": str(folders[True])}, "adapter": {"method": "lora"},
        "targets": {"text_encoders": True}, "export": {"host": "diffusers"},
    }
    problems = examine(Preset.model_validate(sections), "cpu").problems
    assert any("diffusers supports no adapters of this text encoder" in problem for problem in problems), problems
