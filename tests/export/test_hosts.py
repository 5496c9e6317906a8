"""Exported files in other programs' own loaders: diffusers with peft, and LyCORIS."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modules.adapters.base import detach
from modules.export.export import export
from modules.families import load_class
from modules.files.facts import Facts
from modules.training.setup import whole
from tests.export.setup import Model, assert_diffusers_computes, preset, trained

LORA = ("lora", {"rank": 3, "alpha": 2.0})
OUTPUT = ("dora", {"rank": 3, "axis": "output"})
WORA_OUTPUT = ("wora", {"rank": 3, "axis": "output"})
PLANES = ("oft", {"rotation": {"kind": "planes", "planes": 2}})
DOFT_PLANES = ("doft", {"rotation": {"kind": "planes", "planes": 2}})
BLOCKS = ("oft", {"rotation": {"kind": "blocks", "block_size": 4}})
DOFT_BLOCKS = ("doft", {"rotation": {"kind": "blocks", "block_size": 4}})
INPUT = ("dora", {"rank": 3, "axis": "input"})

SDXL_LAYERS = [
    "unet.conv_in", "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0", "unet.down_blocks.1.resnets.0.conv1",
    "unet.down_blocks.1.resnets.0.time_emb_proj", "unet.down_blocks.0.downsamplers.0.conv",
    "unet.mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj", "unet.mid_block.resnets.1.conv2",
    "unet.up_blocks.0.attentions.2.proj_in", "unet.up_blocks.1.resnets.0.conv_shortcut",
    "unet.up_blocks.0.upsamplers.0.conv", "unet.time_embedding.linear_1", "unet.conv_out",
]
# All of them: of a kohya file, diffusers silently drops CLIP's q_proj unless out_proj is adapted too.
TEXT_SUFFIXES = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def pipeline():
    """A tiny SDXL with the true topology and random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=(1, 2, 2), cross_attention_dim=16,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )
    text = CLIPTextConfig(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=8, max_position_embeddings=16,
    )
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    return StableDiffusionXLPipeline(
        vae, CLIPTextModel(text), CLIPTextModelWithProjection(text), None, None, unet, DDIMScheduler(),
        add_watermarker=False,
    )


@pytest.fixture(scope="module")
def model():
    found = load_class("sdxl")(pipeline(), torch.device("cpu"))
    for network in found.networks.values():
        network.requires_grad_(False)
    return found


@pytest.fixture
def bare(model):
    """The model without adapters, and without a host's after the test."""
    yield model
    for network in model.networks.values():
        detach(network)


def text_layers(model) -> list[str]:
    names = [name for name, module in whole(model).named_modules() if isinstance(module, nn.Linear)]
    return [n for n in names if n.startswith("text_encoder") and n.endswith(tuple(TEXT_SUFFIXES))]


@pytest.mark.parametrize("host, variant", [
    ("kohya", LORA), ("comfyui", LORA), ("diffusers", LORA), ("diffusers", OUTPUT),
    ("diffusers", WORA_OUTPUT), ("diffusers", PLANES), ("diffusers", DOFT_PLANES), ("diffusers", BLOCKS),
])
def test_diffusers_loads_and_computes_what_was_trained(tmp_path, bare, host, variant):
    names = SDXL_LAYERS + text_layers(bare)
    assert len(names) == len(SDXL_LAYERS) + 24
    approximation = {"form": "compact", "rank": 1000} if variant == BLOCKS else {}
    options = {"host": host, "dtype": "float32", **approximation}
    assert_diffusers_computes(bare, variant, names, tmp_path, options)


@pytest.mark.parametrize("host, starts", [
    ("comfyui", ("lora_te1_text_model_", "lora_te2_text_model_")),
    ("kohya", ("lora_te1_text_model_", "lora_te2_text_model_")),
    ("diffusers", ("text_encoder.text_model.", "text_encoder_2.text_model.")),
])
def test_clip_keys_have_text_model(tmp_path, bare, host, starts):
    layers = trained(bare, *LORA, text_layers(bare))
    report = export(bare, layers, preset(*LORA, host=host), Facts(), tmp_path / "test.safetensors")
    assert all(key.startswith(starts) for key in load_file(report.path))


def test_planes_file_for_comfyui_loads_in_diffusers(tmp_path, bare):
    """A rotation in planes is a plain LoRA wherever that is smaller than the layer, so one file serves both."""
    names = [name for name in SDXL_LAYERS if name.rpartition(".")[2] in ("to_q", "0", "proj", "proj_in")]
    assert_diffusers_computes(bare, ("oft", {"rotation": {"kind": "planes", "planes": 1}}), names, tmp_path,
                              {"host": "comfyui", "dtype": "float32"})


@pytest.mark.parametrize("host, variant", [
    *(("kohya", variant) for variant in (LORA, OUTPUT, WORA_OUTPUT, PLANES, DOFT_PLANES, BLOCKS)),
    *(("lycoris", variant) for variant in (LORA, INPUT, OUTPUT, DOFT_PLANES, BLOCKS, DOFT_BLOCKS)),
])
def test_lycoris_computes_what_was_trained(tmp_path, host, variant, monkeypatch):
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    names = ["unet.wide", "unet.square", "unet.conv", "unet.point"]
    model = Model()
    layers = trained(model, *variant, names)
    options = {"host": host, "dtype": "float32"}
    report = export(model, layers, preset(*variant, **options), Facts(), tmp_path / "test.safetensors")
    monkeypatch.setattr(LycorisNetwork, "LORA_PREFIX", "lora_unet")
    fresh = Model().networks["unet"]
    with torch.no_grad():
        network, _ = create_lycoris_from_weights(1.0, str(report.path), fresh)
        assert len(network.loras) == len(names)
        network.merge_to(1.0)
    for name, adapted in layers.items():
        merged, wanted = fresh.get_submodule(name.removeprefix("unet.")).weight, adapted.adapted_weight()
        assert (merged - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name
