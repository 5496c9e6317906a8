"""A tiny random SDXL pipeline of real diffusers classes, with the real one's topology (three blocks, depth 1 and 2)."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ["red", "green", "blue", "apple", "heart", "face", "style", "a", "of", ","]

SMALL_VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
"""Sizes of a small image encoder, for every family."""


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows letters and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def make_unet(depth: tuple[int, ...], plain: tuple[int, ...], per_block: int, plain_up: bool) -> UNet2DConditionModel:
    """A random UNet with a block for each number of `depth`, see `make_pipeline`."""
    blocks = range(len(depth))
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16)[: len(depth)],
        layers_per_block=per_block,
        norm_num_groups=4,
        down_block_types=tuple("DownBlock2D" if i in plain else "CrossAttnDownBlock2D" for i in blocks),
        up_block_types=tuple("UpBlock2D" if plain_up or i in plain else "CrossAttnUpBlock2D" for i in reversed(blocks)),
        transformer_layers_per_block=depth,
        attention_head_dim=(1, 2, 2)[: len(depth)],
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )


def make_pipeline(
    folder: Path,
    depth: tuple[int, ...] = (1, 1, 2),
    seed: int = 0,
    plain: tuple[int, ...] = (0,),
    per_block: int = 2,
    plain_up: bool = False,
) -> StableDiffusionXLPipeline:
    """A random pipeline; `folder` takes the tokenizer's files. `plain`: blocks without attention, with `plain_up`
    also all on the way up; `per_block`: ResNets in each block on the way down."""
    torch.manual_seed(seed)
    tokens = tokenizer(folder / "tokens")
    text = {
        "vocab_size": len(tokens),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        "projection_dim": 16,
    }
    first, second = CLIPTextConfig(**text), CLIPTextConfig(**text, hidden_act="gelu")
    unet = make_unet(depth, plain, per_block, plain_up)
    vae = AutoencoderKL(**SMALL_VAE, force_upcast=False)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    )


def make_folder(folder: Path, **sizes: Any) -> Path:
    """The pipeline saved as a diffusers folder; its path."""
    base = folder / "base"
    make_pipeline(folder, **sizes).save_pretrained(base)
    return base
