"""A tiny random Z-Image pipeline of real diffusers classes: base or turbo, which differ in their shift."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import nn
from transformers import Qwen3Model

from tests import tiny_qwen3
from tests.tiny_sd3 import small_vae

WIDTH = 16
"""Of the text encoder."""


def make_pipeline(turbo: bool = False, seed: int = 0, dim: int = 32) -> ZImagePipeline:
    """A random pipeline; `dim`: width of the transformer."""
    torch.manual_seed(seed)
    tokens = tiny_qwen3.tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=dim, n_layers=2, n_refiner_layers=1, n_heads=dim // 16, n_kv_heads=dim // 16,
        cap_feat_dim=WIDTH, axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # zeros, unlike the real ones
        nn.init.normal_(token)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if turbo else 6.0)
    encoder = Qwen3Model(tiny_qwen3.config(tokens, WIDTH, 3))
    tokenizer: Any = tokens
    return ZImagePipeline(scheduler, small_vae(), encoder, tokenizer, transformer)


def make_folder(folder: Path, turbo: bool = False) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline(turbo).save_pretrained(base)
    return base
