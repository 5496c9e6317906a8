"""A tiny random Krea 2 pipeline of real diffusers classes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.tiny_qwenimage import tokenizer, vae

WIDTH = 16
"""Of the text encoder."""

READ = (1, 2)
"""The hidden states that are read, of three blocks."""

SCHEDULE = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
            "max_image_seq_len": 6400}
"""As published."""


def make_pipeline(seed: int = 0, dim: int = 32, turbo: bool = False) -> Krea2Pipeline:
    """A random pipeline; `dim`: width of the transformer."""
    torch.manual_seed(seed)
    tokens: Any = tokenizer("assistant")  # the end of the message has 5 tokens, as the pipeline takes it to have
    transformer = Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=dim // 16, num_key_value_heads=1,
        intermediate_size=2 * dim, timestep_embed_dim=8, text_hidden_dim=WIDTH, num_text_layers=len(READ),
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=24, num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
    )
    for name, parameter in transformer.named_parameters():
        if "norm" in name or "scale_shift_table" in name:  # zeros at first
            nn.init.normal_(parameter, std=0.1)
    return Krea2Pipeline(FlowMatchEulerDiscreteScheduler(**SCHEDULE), vae(), encoder(len(tokens)), tokens, transformer,
                         text_encoder_select_layers=READ, is_distilled=turbo)


def encoder(vocabulary: int, width: int = WIDTH) -> Qwen3VLModel:
    """A language model that also sees pictures."""
    text = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048,
        "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5e6},
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 4}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))


def make_folder(folder: Path) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline().save_pretrained(base)
    return base


def make_turbo(folder: Path) -> Path:
    """The same of one that is distilled: with another transformer, and the same text encoder and VAE."""
    pipeline = make_pipeline(turbo=True)
    with torch.no_grad():
        for number, parameter in enumerate(pipeline.transformer.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    pipeline.save_pretrained(folder / "turbo")
    return folder / "turbo"
