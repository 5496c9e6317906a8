"""A tiny random Chroma1 pipeline of real diffusers classes."""

from pathlib import Path

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tests import tiny_t5
from tests.tiny_sd3 import small_vae

WIDTH = 16
"""Of the text encoder."""


def make_pipeline(folder: Path, seed: int = 0) -> ChromaPipeline:
    """A random pipeline; it needs nothing in `folder`."""
    torch.manual_seed(seed)
    tokens = tiny_t5.tokenizer()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=24,
        approximator_layers=2,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    t5 = tiny_t5.encoder(tokens, WIDTH)
    return ChromaPipeline(scheduler, small_vae(), t5, tokens, transformer)


def make_folder(folder: Path) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline(folder).save_pretrained(base)
    return base
