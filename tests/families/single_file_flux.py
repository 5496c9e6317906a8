"""FLUX.1 in single files, made from a diffusers pipeline: the transformer alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modules.families.flux import PREFIX, transformer_place
from tests.families.single_file import renamed, vae_names
from tests.tiny_flux import make_pipeline

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
CLIP, T5, VAE = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer.", "vae."


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    pipeline: Any = make_pipeline(folder)
    for part in PARTS:
        for parameter in pipeline.components[part].parameters():  # no two alike: norms and biases start so
            nn.init.normal_(parameter, std=0.1)
    pipeline.save_pretrained(folder / "base")
    return folder / "base", write_checkpoint(pipeline, folder / "full.safetensors")


def original(state: dict[str, Tensor], width: int, where: Any = transformer_place) -> dict[str, Tensor]:
    """The transformer's tensors as its authors store them: at the places that `where` gives."""
    rows: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")
        place = where(path, kind, width)
        halves = tensor.chunk(2)[::-1] if name.startswith("norm_out.") else [tensor]
        rows.setdefault(place.name, {})[place.row] = torch.cat(halves)
    return {name: torch.cat([found[row] for row in sorted(found)]) for name, found in rows.items()}


def write_transformer(
    pipeline: Any, path: Path, prefix: str = "", dtype: torch.dtype = torch.float32, where: Any = transformer_place
) -> Path:
    """The transformer alone, as ComfyUI's users have it."""
    tensors = original(pipeline.transformer.state_dict(), pipeline.transformer.inner_dim, where)
    save_file({prefix + name: tensor.to(dtype) for name, tensor in tensors.items()}, path)
    return path


def write_checkpoint(pipeline: Any, path: Path) -> Path:
    """All parts in one file."""
    transformer = original(pipeline.transformer.state_dict(), pipeline.transformer.inner_dim)
    vae = renamed(pipeline.vae, (pair for pair in vae_names(pipeline.vae) if not pair[0].endswith("quant_conv")))
    clip = {name.removeprefix("text_model."): tensor for name, tensor in pipeline.text_encoder.state_dict().items()}
    t5 = {name: tensor for name, tensor in pipeline.text_encoder_2.state_dict().items() if "embed_tokens" not in name}
    tensors = {
        **{PREFIX + name: tensor for name, tensor in transformer.items()},
        **{VAE + name: tensor for name, tensor in vae},
        **{f"{CLIP}text_model.{name}": tensor for name, tensor in clip.items()},
        **{T5 + name: tensor for name, tensor in t5.items()},
    }
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
    return path
