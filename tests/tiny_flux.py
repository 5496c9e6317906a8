"""A tiny random FLUX.1 pipeline of real diffusers classes: dev (guidance embedding, growing shift) or schnell."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests import tiny_t5
from tests.tiny_sd3 import small_vae
from tests.tiny_sdxl import tokenizer

WIDTH = 16
"""Of both text encoders."""


def make_pipeline(folder: Path, dev: bool = True, seed: int = 0) -> FluxPipeline:
    """A random pipeline; `folder` takes the first tokenizer's files."""
    torch.manual_seed(seed)
    tokens, t5_tokens = tokenizer(folder / "tokens"), tiny_t5.tokenizer()
    clip = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev)
    t5 = tiny_t5.encoder(t5_tokens, WIDTH)
    return FluxPipeline(scheduler, small_vae(), CLIPTextModel(clip), tokens, t5, t5_tokens, transformer)


def make_folder(folder: Path, dev: bool = True) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline(folder, dev).save_pretrained(base)
    return base
