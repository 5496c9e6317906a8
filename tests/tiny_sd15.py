"""Tiny random Stable Diffusion 1 and 2 pipelines of real diffusers classes, with the real ones' topology."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.families.single_file import UNET, VAE, open_clip, renamed, unet_names, vae_names
from tests.tiny_sdxl import SMALL_VAE, tokenizer

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."


def make_pipeline(folder: Path, second: bool = False, seed: int = 0, short: bool = False) -> StableDiffusionPipeline:
    """A random pipeline of the first or the second generation (768 px); `folder` takes the tokenizer's files. `short`:
    of the UNet's blocks with attention only the second one and the middle."""
    torch.manual_seed(seed)
    tokens = tokenizer(folder / "tokens")
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        hidden_act="gelu" if second else "quick_gelu",
    )
    down, up = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    if short:
        down, up = ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"), ("UpBlock2D",) * 4
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1 if short else 2,
        norm_num_groups=4,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=(1, 1, 2, 2) if second else 2,
        cross_attention_dim=16,
        use_linear_projection=second,
    )
    vae = AutoencoderKL(
        **SMALL_VAE,
    )
    first: Any = PNDMScheduler(skip_prk_steps=True, **NOISE)
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **NOISE) if second else first
    nothing: Any = None
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokens, unet, scheduler, nothing, nothing, requires_safety_checker=False
    )


def make_folder(folder: Path, second: bool = False, short: bool = False) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline(folder, second, short=short).save_pretrained(base)
    return base


def make_pair(folder: Path, second: bool = False) -> tuple[Path, Path]:
    """The pipeline as a diffusers folder, and the same weights as a single checkpoint; their paths."""
    pipeline: Any = make_pipeline(folder, second)
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for parameter in network.parameters():  # no two alike: biases and norms start as zeros and ones
            nn.init.normal_(parameter, std=0.1)
    pipeline.save_pretrained(folder / "base")
    tensors = {
        **{UNET + name: tensor for name, tensor in renamed(pipeline.unet, unet_names(pipeline.unet))},
        **{VAE + name: tensor for name, tensor in renamed(pipeline.vae, vae_names(pipeline.vae))},
        **(second_text(pipeline.text_encoder) if second else first_text(pipeline.text_encoder)),
    }
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "base.safetensors")
    return folder / "base", folder / "base.safetensors"


def first_text(encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The text encoder under transformers' older names."""
    tensors = {CLIP + name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    return {**tensors, CLIP + "embeddings.position_ids": torch.arange(77)[None]}


def second_text(encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The text encoder as OpenCLIP stores it, with the last layer, which nobody uses."""
    tensors = {OPEN_CLIP + name: tensor for name, tensor in open_clip(encoder)}
    last = {name.replace("resblocks.1.", "resblocks.23."): torch.zeros_like(tensor) for name, tensor in tensors.items()}
    return {**last, **tensors, OPEN_CLIP + "text_projection": torch.zeros(16, 16)}
