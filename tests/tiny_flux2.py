"""A tiny random FLUX.2 pipeline of real diffusers classes: Klein (base or distilled), or dev."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import nn
from transformers import Qwen3ForCausalLM

from tests import tiny_mistral, tiny_qwen3
from tests.tiny_sdxl import SMALL_VAE

WIDTH = 8
"""Of the text encoders."""


def make_pipeline(kind: str = "base", seed: int = 0) -> Any:
    """A random pipeline; `kind`: "base" or "distilled" of Klein, or "dev"."""
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=kind == "dev",
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    if kind == "dev":
        tokens: Any = tiny_mistral.tokenizer()
        return Flux2Pipeline(scheduler, vae(), tiny_mistral.encoder(tokens, WIDTH), tokens, transformer)
    tokens = tiny_qwen3.tokenizer()
    encoder = Qwen3ForCausalLM(tiny_qwen3.config(tokens, WIDTH, 28))
    return Flux2KleinPipeline(scheduler, vae(), encoder, tokens, transformer, is_distilled=kind == "distilled")


def vae() -> Any:
    """Two pixels per latent, and statistics of latents that are not normalised."""
    found: Any = AutoencoderKLFlux2(**SMALL_VAE)
    nn.init.normal_(found.bn.running_mean, std=0.5)
    nn.init.uniform_(found.bn.running_var, 0.5, 2.0)
    return found


def make_folder(folder: Path, kind: str = "base") -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    save(make_pipeline(kind), base)
    return base


def save(pipeline: Any, folder: Path) -> None:
    """The pipeline as a diffusers folder; of dev with the tokenizer's class as published, which has pictures too."""
    pipeline.save_pretrained(folder)
    if isinstance(pipeline, Flux2Pipeline):
        index = json.loads((folder / "model_index.json").read_text())
        index["tokenizer"] = ["transformers", "PixtralProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))
