"""A tiny random Qwen-Image pipeline of real diffusers classes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests import tiny_qwen3

WIDTH = 16
"""Of the text encoder."""

TEMPLATE = ("the image by detailing the color shape size texture quantity text spatial relationships of the objects "
            "and background")
"""Words of the pipeline's system message: with them it has as many tokens as the real tokenizer makes of it."""

SCHEDULE = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
            "max_image_seq_len": 8192, "shift_terminal": 0.02}
"""As published."""


def make_pipeline(
    seed: int = 0, dim: int = 32, tokens: Any = None, places: dict[str, int] | None = None
) -> QwenImagePipeline:
    """A random pipeline; `dim`: width of the transformer. `tokens`: another tokenizer, `places`: where it has tokens
    that stand for pictures."""
    torch.manual_seed(seed)
    tokens = tokens or tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=dim // 16,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )
    texts = encoder(len(tokens), places=places)
    return QwenImagePipeline(FlowMatchEulerDiscreteScheduler(**SCHEDULE), vae(), texts, tokens, transformer)


def tokenizer(*words: str) -> Any:
    """One that makes 34 tokens of the system message, as the pipeline takes it to have; and knows `words`."""
    return tiny_qwen3.tokenizer(words=["system", "user", "Describe", *(f"Ġ{one}" for one in TEMPLATE.split()), *words])


def encoder(
    vocabulary: int, width: int = WIDTH, places: dict[str, int] | None = None
) -> Qwen2_5_VLForConditionalGeneration:
    """A language model that also sees pictures."""
    text = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width,
              "fullatt_block_indexes": [0]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **places or {}))


def vae() -> AutoencoderKLQwenImage:
    """Two pixels per latent, and latents that are not normalised."""
    found = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[-0.2, 0.1, 0.3, 0.0], latents_std=[1.5, 0.7, 1.1, 2.0],
    )
    for name, parameter in found.named_parameters():
        if name.endswith("gamma"):  # ones at first
            nn.init.normal_(parameter, 1.0, 0.1)
    return found


def make_folder(folder: Path) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline().save_pretrained(base)
    return base
