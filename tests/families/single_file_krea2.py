"""Krea 2 in single files, made from a diffusers pipeline: each part alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
from torch import Tensor, nn

from modules.families.parts.names import DENOISER
from tests.families.single_file import random_pair
from tests.families.single_file_flux2 import write
from tests.families.single_file_qwenimage import PARTS, VAE, original_vae
from tests.tiny_krea2 import make_pipeline

TEXT = "text_encoders.qwen3vl_4b.transformer."

NAMES = (
    ("txt_in.norm.weight", "txtmlp.0.scale"), ("txt_in.linear_1.", "txtmlp.1."), ("txt_in.linear_2.", "txtmlp.3."),
    ("final_layer.norm.weight", "last.norm.scale"), ("final_layer.scale_shift_table", "last.modulation.lin"),
    ("final_layer.linear.", "last.linear."), ("img_in.", "first."), ("time_embed.linear_1.", "tmlp.0."),
    ("time_embed.linear_2.", "tmlp.2."), ("time_mod_proj.", "tproj.1."), ("text_fusion.", "txtfusion."),
    ("transformer_blocks.", "blocks."), ("to_gate.", "gate."), ("to_out.0.", "wo."), ("to_q.", "wq."),
    ("to_k.", "wk."), ("to_v.", "wv."), ("norm_q.weight", "qknorm.qnorm.scale"),
    ("norm_k.weight", "qknorm.knorm.scale"), (".ff.", ".mlp."), ("norm1.weight", "prenorm.scale"),
    ("norm2.weight", "postnorm.scale"), ("scale_shift_table", "mod.lin"),
)


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    pipeline: Any = make_pipeline()
    return random_pair(folder, pipeline, PARTS, type(pipeline).save_pretrained, write_checkpoint)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors as its authors' file has them; diffusers' own converter gives them back."""
    found = {}
    for name, tensor in state.items():
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        found[name] = tensor.flatten() if name.endswith(".mod.lin") else tensor
    assert convert_krea2_transformer_checkpoint_to_diffusers(dict(found)).keys() == state.keys()
    return found


def text_encoder(encoder: nn.Module) -> dict[str, Tensor]:
    """The text encoder's as published: with what reads pictures."""
    return {f"model.{name}": tensor for name, tensor in encoder.state_dict().items()}


def write_checkpoint(pipeline: Any, path: Path) -> Path:
    """All parts in one file."""
    text = {name.replace("language_model.", "model."): tensor
            for name, tensor in pipeline.text_encoder.state_dict().items()}
    return write({
        **{DENOISER + name: tensor for name, tensor in original(pipeline.transformer.state_dict()).items()},
        **{VAE + name: tensor for name, tensor in original_vae(pipeline.vae).items()},
        **{TEXT + name: tensor for name, tensor in text.items()},
    }, path)
