"""A tiny random Anima pipeline of real diffusers classes, with the stand-in for torchvision that its own call wants."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaModularPipeline,
    AnimaTextConditioner,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.transformers import transformer_cosmos
from torch import nn
from torch.nn.functional import interpolate
from transformers import Qwen3Model

from tests import tiny_qwen3, tiny_t5
from tests.tiny_qwenimage import vae

WIDTH = 16
"""Of the text encoder and of what the conditioner makes."""

TORCHVISION = SimpleNamespace(
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    functional=SimpleNamespace(resize=lambda mask, size, interpolation: interpolate(mask, size, mode=interpolation)),
)
"""What diffusers' transformer takes of it, to make a mask smaller."""


def make_pipeline(seed: int = 0, dim: int = 32) -> AnimaModularPipeline:
    """A random pipeline; `dim`: width of the transformer."""
    torch.manual_seed(seed)
    tokens, t5 = tiny_qwen3.tokenizer(), tiny_t5.tokenizer()
    transformer = CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=dim // 16, attention_head_dim=16, num_layers=2, mlp_ratio=2,
        text_embed_dim=WIDTH, adaln_lora_dim=8, max_size=(8, 64, 64), rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    )
    conditioner = AnimaTextConditioner(
        source_dim=WIDTH, target_dim=WIDTH, model_dim=2 * WIDTH, num_layers=1, num_attention_heads=4, mlp_ratio=2,
        target_vocab_size=len(t5), min_sequence_length=24,
    )
    for network in (transformer, conditioner):
        for parameter in network.parameters():  # norms are ones at first
            if parameter.dim() == 1:
                nn.init.normal_(parameter, 1.0, 0.1)
    pipeline: Any = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        text_encoder=Qwen3Model(tiny_qwen3.config(tokens, WIDTH, 2)), tokenizer=tokens, t5_tokenizer=t5,
        text_conditioner=conditioner, transformer=transformer, vae=vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return pipeline


def save(pipeline: Any, folder: Path) -> Path:
    """The pipeline as a diffusers folder; its path."""
    pipeline.save_pretrained(f"{folder}", overwrite_modular_index=True)
    return folder


def make_folder(folder: Path) -> Path:
    """A pipeline saved as a diffusers folder; its path."""
    return save(make_pipeline(), folder / "base")


def stand_in(monkeypatch: Any) -> None:
    """Give diffusers' transformer what it takes of torchvision, installed or not."""
    monkeypatch.setattr(transformer_cosmos, "transforms", TORCHVISION, raising=False)
