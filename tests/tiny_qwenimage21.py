"""A tiny random Qwen-Image 2.1 pipeline of real diffusers classes, with the tokenizer in the place of the processor."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from modules.families.qwenimage21 import reader_class
from tests import tiny_qwen3
from tests.tiny_qwenimage import SCHEDULE

WIDTH = 16
"""Of the text encoder."""


def make_pipeline(seed: int = 0, dim: int = 32, alpha: bool = False) -> QwenImage21Pipeline:
    """A random pipeline; `dim`: width of the transformer, `alpha`: whether its VAE has transparency."""
    torch.manual_seed(seed)
    tokens: Any = tokenizer()
    transformer = QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=dim // 16,
        context_in_dim=WIDTH, mlp_ratio=2, axes_dims_rope=(4, 6, 6),
    )
    for parameter in transformer.parameters():  # norms are zeros or ones at first
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.1)
    pipeline = QwenImage21Pipeline(FlowMatchEulerDiscreteScheduler(**SCHEDULE), vae(alpha), encoder(len(tokens)),
                                   tokens, transformer)
    pipeline.vae_scale_factor = 2
    return pipeline


def tokenizer() -> Any:
    """Of the class that the family loads."""
    plain = tiny_qwen3.tokenizer()
    found = reader_class().__new__(reader_class())
    found.__dict__.update(plain.__dict__)
    return found


def encoder(vocabulary: int, width: int = WIDTH) -> Qwen3VLForConditionalGeneration:
    """A language model that also sees pictures."""
    text = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5e6},
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))


def vae(alpha: bool = False) -> AutoencoderKLQwenImage21:
    """Two pixels per latent, and latents that are not normalised."""
    channels = 4 if alpha else 3
    found = AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[-0.2, 0.1, 0.3, 0.0], latents_std=[1.5, 0.7, 1.1, 2.0], in_channels=channels,
        out_channels=channels, scale_factor_spatial=2,
    )
    for name, parameter in found.named_parameters():
        if name.endswith("gamma"):  # ones at first
            nn.init.normal_(parameter, 1.0, 0.1)
    return found


def save(pipeline: Any, folder: Path) -> Path:
    """The pipeline as a diffusers folder, with the index that published ones have; its path."""
    pipeline.save_pretrained(folder)
    pipeline.processor.save_pretrained(folder / "processor")
    index = (folder / "model_index.json").read_text()
    start = index.index('"processor": [')
    end = index.index("]", start) + 1
    new = '"processor": ["transformers", "Qwen3VLProcessor"]'
    (folder / "model_index.json").write_text(index[:start] + new + index[end:])
    return folder


def make_folder(folder: Path) -> Path:
    """A pipeline saved as a diffusers folder; its path."""
    return save(make_pipeline(), folder / "base")
