"""Z-Image in single files, made from a diffusers pipeline: the transformer alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modules.families.parts.names import DENOISER
from tests.families.single_file import random_pair, renamed, vae_names
from tests.tiny_zimage import make_pipeline

PARTS = ("transformer", "vae", "text_encoder")
TEXT, VAE = "text_encoders.qwen3_4b.transformer.", "vae."
NAMES = (
    (".attention.norm_q.", ".attention.q_norm."), (".attention.norm_k.", ".attention.k_norm."),
    (".attention.to_out.0.", ".attention.out."), ("all_final_layer.2-1.", "final_layer."),
    ("all_x_embedder.2-1.", "x_embedder."),
)
"""Parts of names in diffusers and in ComfyUI's files."""


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    pipeline: Any = make_pipeline()
    return random_pair(folder, pipeline, PARTS, type(pipeline).save_pretrained, write_checkpoint)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors as ComfyUI's files have them: query, key and value in one."""
    found = {}
    for name, tensor in state.items():
        start, is_query, end = name.partition(".to_q.")
        if is_query:
            name, tensor = f"{start}.qkv.{end}", torch.cat([state[f"{start}.to_{part}.{end}"] for part in "qkv"])
        elif ".to_k." in name or ".to_v." in name:
            continue
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def language_model(encoder: nn.Module) -> dict[str, Tensor]:
    """The text encoder's tensors as its file has them."""
    return {f"model.{name.removeprefix('model.')}": tensor for name, tensor in encoder.state_dict().items()
            if not name.startswith("lm_head")}


def write_transformer(pipeline: Any, path: Path, prefix: str = "", dtype: torch.dtype = torch.float32) -> Path:
    """The transformer alone, as ComfyUI's users have it."""
    tensors = original(pipeline.transformer.state_dict())
    save_file({prefix + name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_checkpoint(pipeline: Any, path: Path) -> Path:
    """All parts in one file."""
    vae = renamed(pipeline.vae, (pair for pair in vae_names(pipeline.vae) if not pair[0].endswith("quant_conv")))
    tensors = {
        **{DENOISER + name: tensor for name, tensor in original(pipeline.transformer.state_dict()).items()},
        **{VAE + name: tensor for name, tensor in vae},
        **{TEXT + name: tensor for name, tensor in language_model(pipeline.text_encoder).items()},
    }
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
    return path
