"""A tiny random SD3.5 pipeline of real diffusers classes.

As in the real ones, the first blocks have a second attention (`attn2`), and the last has no output for the text.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests import tiny_t5
from tests.tiny_sdxl import SMALL_VAE, tokenizer

CLIP_L, CLIP_G, T5 = 12, 20, 40
"""Widths of the text encoders. They differ: diffusers tells those of a single checkpoint apart by them."""


def make_pipeline(folder: Path, t5: bool = True, seed: int = 0) -> StableDiffusion3Pipeline:
    """A random pipeline, with or without its third text encoder; `folder` takes the tokenizer's files."""
    torch.manual_seed(seed)
    tokens, t5_tokens = tokenizer(folder / "tokens"), tiny_t5.tokenizer() if t5 else None
    clip_l, clip_g = (clip(tokens, width) for width in (CLIP_L, CLIP_G))
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=T5,
        caption_projection_dim=32,
        pooled_projection_dim=CLIP_L + CLIP_G,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=small_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_l,
        text_encoder_2=clip_g,
        text_encoder_3=tiny_t5.encoder(t5_tokens, T5) if t5_tokens else None,  # pyright: ignore[reportArgumentType]
        tokenizer=tokens,
        tokenizer_2=tokens,
        tokenizer_3=t5_tokens,  # pyright: ignore[reportArgumentType]
    )


def small_vae() -> AutoencoderKL:
    """Two pixels per latent; shifted latents, no convolutions around them."""
    return AutoencoderKL(
        **SMALL_VAE,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def clip(tokens: Any, width: int) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        projection_dim=width,
    )
    return CLIPTextModelWithProjection(config)


def make_folder(folder: Path, t5: bool = True) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline(folder, t5).save_pretrained(base)
    return base
