"""The SDXL family on a tiny random pipeline of real diffusers classes."""

import fnmatch

import pytest
import torch

from modules.families.parts.unet import ldm_name
from modules.families.sdxl import Model
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers
from tests.tiny_sdxl import make_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def model(folder):
    return Model.load(Base(path=str(folder)), CPU, torch.float32)


def test_what_captions_are_too_long_by(model):
    assert model.cut_off("red") == ""
    for caption in ("x " * 100, "a red apple, " * 3 + "été 猫 " * 30):
        beyond = model.cut_off(caption)
        assert beyond and caption.endswith(beyond)
        for tokenizer in (model.pipeline.tokenizer, model.pipeline.tokenizer_2):
            read = tokenizer(caption, truncation=True, max_length=tokenizer.model_max_length).input_ids
            assert len(read) == model.caption_tokens + 2
            kept = tokenizer(caption.removesuffix(beyond)).input_ids
            assert kept[:-1] == read[: len(kept) - 1] and len(read) - len(kept) < 3  # a letter may be cut in two


@pytest.mark.parametrize(
    "targets, words",
    [
        (Targets(layers="atention"), ["targets.layers", "'atention'", "did you mean attention?"]),
        (Targets(include=("unet.mid_blok.*",)), ["targets.include", "'unet.mid_blok.*'", "unet.mid_block"]),
        (Targets(exclude=("*attn3*",)), ["targets.exclude", "'*attn3*'"]),
        (Targets(exclude=("*",)), ["no layer is left"]),
    ],
)
def test_bad_targets_are_explained(model, targets, words):
    (problem,) = match_layers(model, targets)[1]
    assert problem.startswith("targets.") and all(word in problem for word in words), problem


def test_layers_that_do_match_are_found_beside_bad_patterns(model):
    targets = Targets(layers="atention", include=("unet.conv_in", "nothing"), exclude=("nowhere",))
    found, problems = match_layers(model, targets)
    assert found == ["unet.conv_in"]
    assert [problem.split(":")[0] for problem in problems] == ["targets.layers", "targets.include", "targets.exclude"]


def test_patterns_add_and_remove(model):
    found, _ = match_layers(model, Targets(layers="attention", include=("unet.conv_in",), exclude=("*attn2*",)))
    assert "unet.conv_in" in found and not fnmatch.filter(found, "*attn2*")


# Key names as in a real SDXL file (two resnets per down block, three per up block).
KEYS = {
    "unet.conv_in": "lora_unet_input_blocks_0_0",
    "unet.conv_out": "lora_unet_out_2",
    "unet.time_embedding.linear_2": "lora_unet_time_embed_2",
    "unet.add_embedding.linear_1": "lora_unet_label_emb_0_0",
    "unet.down_blocks.0.resnets.1.conv1": "lora_unet_input_blocks_2_0_in_layers_2",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "unet.down_blocks.1.resnets.0.conv_shortcut": "lora_unet_input_blocks_4_0_skip_connection",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "unet.down_blocks.2.attentions.1.proj_in": "lora_unet_input_blocks_8_1_proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj":
        "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj",
    "unet.mid_block.resnets.1.time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "unet.up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0":
        "lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_out_0",
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "unet.up_blocks.2.resnets.2.conv2": "lora_unet_output_blocks_8_0_out_layers_3",
    "text_encoder.encoder.layers.0.self_attn.q_proj": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "text_encoder.text_model.encoder.layers.1.mlp.fc1": "lora_te1_text_model_encoder_layers_1_mlp_fc1",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc2": "lora_te2_text_model_encoder_layers_0_mlp_fc2",
    "text_encoder_2.text_projection": "lora_te2_text_projection",
}


@pytest.mark.parametrize("layer, key", KEYS.items())
def test_keys_of_comfyui_and_kohya(model, layer, key):
    assert model.export_key(layer, "comfyui") == model.export_key(layer, "kohya") == key


def test_comfyui_reads_token_embeddings_under_its_own_names(model):
    key = model.export_key("text_encoder_2.text_model.embeddings.token_embedding", "comfyui")
    assert key == "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding"


def test_upsampler_of_a_block_without_attention():
    assert ldm_name("up_blocks.0.upsamplers.0.conv", 2, ["UpBlock2D"]) == "output_blocks.2.1.conv"


def test_diffusers_keys_spell_the_text_model(model):
    assert model.export_key("unet.conv_in", "diffusers") == "unet.conv_in"
    key = model.export_key("text_encoder.encoder.layers.0.mlp.fc1", "diffusers")
    assert key == "text_encoder.text_model.encoder.layers.0.mlp.fc1"
