"""Chroma1 in single files, made from a diffusers pipeline: the transformer alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modules.families.chroma import PREFIX, transformer_place
from tests.families import single_file_flux
from tests.families.single_file import renamed, vae_names
from tests.families.single_file_flux import T5, VAE
from tests.tiny_chroma import make_pipeline

PARTS = ("transformer", "vae", "text_encoder")


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    pipeline: Any = make_pipeline(folder)
    for part in PARTS:
        for parameter in pipeline.components[part].parameters():  # no two alike: norms and biases start so
            nn.init.normal_(parameter, std=0.1)
    pipeline.save_pretrained(folder / "base")
    return folder / "base", write_checkpoint(pipeline, folder / "full.safetensors")


def original(state: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The transformer's tensors as its authors store them."""
    return single_file_flux.original(state, width, transformer_place)


def write_transformer(pipeline: Any, path: Path, prefix: str = "", dtype: torch.dtype = torch.float32) -> Path:
    """The transformer alone, as ComfyUI's users have it."""
    return single_file_flux.write_transformer(pipeline, path, prefix, dtype, transformer_place)


def write_checkpoint(pipeline: Any, path: Path) -> Path:
    """All parts in one file."""
    denoiser = original(pipeline.transformer.state_dict(), pipeline.transformer.inner_dim)
    vae = renamed(pipeline.vae, (pair for pair in vae_names(pipeline.vae) if not pair[0].endswith("quant_conv")))
    t5 = {name: tensor for name, tensor in pipeline.text_encoder.state_dict().items() if "embed_tokens" not in name}
    tensors = {
        **{PREFIX + name: tensor for name, tensor in denoiser.items()},
        **{VAE + name: tensor for name, tensor in vae},
        **{T5 + name: tensor for name, tensor in t5.items()},
    }
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
    return path
