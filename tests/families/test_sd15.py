"""Stable Diffusion 1 and 2 on tiny random pipelines: what this family has beyond the others' contract."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modules.adapters.base import detach
from modules.export.export import export
from modules.families.sd15 import HUB_ID_2, TEXT_ENCODER_2, V_MARK, Model
from modules.files.facts import Facts
from modules.preset.schema import Base, Objective, Targets
from modules.training import noise
from modules.training.setup import match_layers
from tests.export.setup import assert_diffusers_computes, preset, trained
from tests.tiny_sd15 import CLIP, OPEN_CLIP, make_pair

CPU = torch.device("cpu")
LORA = ("lora", {"rank": 3, "alpha": 2.0})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder and a checkpoint of each generation."""
    return {second: make_pair(tmp_path_factory.mktemp("sd15"), second) for second in (False, True)}


def load(path, **options) -> Model:
    return Model.load(Base(path=str(path), **options), CPU, torch.float32)


@pytest.fixture(scope="module")
def models(pairs):
    return {second: load(pairs[second][0]) for second in pairs}


@pytest.fixture(params=[False, True], ids=["1", "2"])
def second(request) -> bool:
    return request.param


@pytest.fixture
def model(models, second):
    """Without adapters, and without a host's after the test."""
    yield models[second]
    for network in models[second].networks.values():
        detach(network)


def changed(pair, path, change):
    tensors = load_file(pair[1])
    change(tensors)
    save_file(tensors, path)
    return path


# -- generations ------------------------------------------------------------------------------------------------------


def test_what_they_predict_follows_from_the_scheduler(models):
    assert [models[second].process.prediction for second in (False, True)] == ["epsilon", "v_prediction"]


def test_layers_of_the_first_are_convolutions_around_attention(model, second):
    inner = model.networks["unet"].get_submodule("down_blocks.1.attentions.0.proj_in")
    assert isinstance(inner, nn.Linear if second else nn.Conv2d)


def test_metadata_names_the_generation(models, pairs):
    first, second = (models[second].metadata() for second in (False, True))
    assert first["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert second["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert [facts["ss_v2"] for facts in (first, second)] == ["False", "True"]
    assert [facts["ss_base_model_version"] for facts in (first, second)] == ["sd_v1", "sd_v2_v"]
    assert [facts["modelspec.prediction_type"] for facts in (first, second)] == ["epsilon", "v"]
    small = load(pairs[True][0])
    small.use_prediction("epsilon")
    assert small.metadata()["modelspec.architecture"] == "stable-diffusion-v2-512/lora"
    assert small.metadata()["ss_base_model_version"] == "sd_v2"


def test_the_preset_may_say_what_is_predicted(pairs, models):
    """In training and in samples."""
    options = ("", 16, 16, 2, 3.0, 0)
    other = load(pairs[True][0])
    noise.prepare(other, Objective(prediction="epsilon"))
    assert other.process.prediction == other.pipeline.scheduler.config.prediction_type == "epsilon"
    assert torch.equal(other.process.alphas_cumprod, models[True].process.alphas_cumprod)
    assert other.sample(["red"], *options)[0].tobytes() != models[True].sample(["red"], *options)[0].tobytes()
    noise.prepare(other, Objective(prediction="v_prediction", zero_terminal_snr=True))
    config = other.pipeline.scheduler.config
    assert config.prediction_type == "v_prediction" and config.rescale_betas_zero_snr
    assert other.process.alphas_cumprod[-1] < 1e-6


# -- single checkpoints -----------------------------------------------------------------------------------------------


def test_the_usual_configuration_of_a_checkpoint(pairs, tmp_path):
    assert Model.hub_id(str(pairs[False][1])) == Model.HUB_ID
    for spread, wanted in ((0.03, f"{HUB_ID_2}-base"), (0.2, HUB_ID_2)):
        bias = spread * torch.tensor([1.0, -1.0] * 8).half()
        path = changed(pairs[True], tmp_path / "x.safetensors", lambda t, bias=bias: t.update({V_MARK: bias}))
        assert Model.hub_id(str(path)) == wanted
    path = changed(pairs[True], tmp_path / "x.safetensors", lambda tensors: tensors.pop(V_MARK))
    assert Model.hub_id(str(path)) == f"{HUB_ID_2}-base"


def test_marks_of_v_prediction_are_followed(pairs, tmp_path):
    path = changed(pairs[False], tmp_path / "x.safetensors", lambda t: t.update(v_pred=torch.zeros(0)))
    assert load(path, config=str(pairs[False][0])).process.prediction == "v_prediction"


def test_a_checkpoint_without_a_text_encoder(pairs, tmp_path, second):
    prefix = OPEN_CLIP if second else CLIP

    def without(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    path = changed(pairs[second], tmp_path / "x.safetensors", without)
    (problem,) = Model.problems(Base(path=str(path), config=str(pairs[second][0])))
    assert "lacks the text encoder" in problem and (TEXT_ENCODER_2 not in load_file(path))


def test_the_other_generations_configuration_is_refused(pairs, second):
    base = Base(path=str(pairs[second][1]), config=str(pairs[not second][0]))
    (problem,) = Model.problems(base)
    assert problem.startswith("base.config") and (HUB_ID_2 if second else Model.HUB_ID) in problem


# -- exporting --------------------------------------------------------------------------------------------------------

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
KEYS = {
    "unet.conv_in": "lora_unet_conv_in",
    BLOCK: "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
    "unet.mid_block.resnets.1.time_emb_proj": "lora_unet_mid_block_resnets_1_time_emb_proj",
    "unet.up_blocks.1.upsamplers.0.conv": "lora_unet_up_blocks_1_upsamplers_0_conv",
    "text_encoder.encoder.layers.0.self_attn.q_proj": "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
}


def test_keys_are_diffusers_names_for_every_host(model, second):
    for host in ("comfyui", "kohya"):
        assert {layer: model.export_key(layer, host) for layer in KEYS} == KEYS
    assert model.export_key(BLOCK, "diffusers") == BLOCK
    clip = "clip_h" if second else "clip_l"
    table = "text_model.embeddings.token_embedding"
    assert model.export_key(f"text_encoder.{table}", "comfyui") == f"text_encoders.{clip}.transformer.{table}"


@pytest.mark.short("2-diffusers-variant3")
@pytest.mark.parametrize(
    "host, variant",
    [
        ("kohya", LORA),
        ("comfyui", LORA),
        ("diffusers", LORA),
        ("diffusers", ("dora", {"rank": 3, "axis": "output"})),
        ("diffusers", ("doft", {"rotation": {"kind": "planes", "planes": 2}})),
    ],
)
def test_diffusers_loads_and_computes_what_was_trained(tmp_path, model, host, variant):
    names, _ = match_layers(model, Targets(layers="all", text_encoders=True))
    every = 1 if (host, variant) == ("diffusers", LORA) else 4
    assert_diffusers_computes(model, variant, names[::every], tmp_path, {"host": host, "dtype": "float32"})


def test_files_say_which_generation(tmp_path, model, second):
    from safetensors import safe_open

    layers = trained(model, *LORA, [BLOCK])
    report = export(model, layers, preset(*LORA), Facts(), tmp_path / "test.safetensors")
    with safe_open(report.path, "pt") as file:
        assert file.metadata()["ss_v2"] == str(second)
