"""Qwen-Image 2.1 in single files, made from a diffusers pipeline: each part alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.families.parts.names import DENOISER
from tests.families.single_file import random_pair
from tests.families.single_file_flux2 import write
from tests.tiny_qwenimage21 import make_pipeline, save

PARTS = ("transformer", "vae", "text_encoder")
TEXT, VAE = "text_encoders.qwen3vl_8b.transformer.", "vae."


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    return random_pair(folder, make_pipeline(), PARTS, save, write_checkpoint)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors as ComfyUI's files have them: the gate's matrix, and below it the one it multiplies.
    So public readers of Comfy-Org's qwen_image_2.1_bf16.safetensors take it apart."""
    found = {}
    for name, tensor in state.items():
        if name.endswith(".img_mlp.gate_layer.weight"):
            other = state[name.replace("gate_layer", "proj")]
            found[name.replace("gate_layer", "gate_up")] = torch.cat([tensor, other])
        elif not name.endswith(".img_mlp.proj.weight"):
            found[name] = tensor
    return found


def text_encoder(encoder: nn.Module) -> dict[str, Tensor]:
    """The text encoder's as ComfyUI's file has them."""
    return {name.replace("model.language_model.", "model."): tensor for name, tensor in encoder.state_dict().items()}


def write_checkpoint(pipeline: Any, path: Path) -> Path:
    """All parts in one file."""
    return write({
        **{DENOISER + name: tensor for name, tensor in original(pipeline.transformer.state_dict()).items()},
        **{VAE + name: tensor for name, tensor in pipeline.vae.state_dict().items()},
        **{TEXT + name: tensor for name, tensor in text_encoder(pipeline.text_encoder).items()},
    }, path)
