"""Anima in single files, made from a diffusers pipeline: each part alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

from torch import Tensor

from modules.families.parts.names import DENOISER
from tests.families.single_file import random_pair
from tests.families.single_file_flux2 import write
from tests.families.single_file_qwenimage import original_vae
from tests.families.single_file_zimage import language_model
from tests.tiny_anima import make_pipeline, save

PARTS = ("transformer", "text_conditioner", "vae", "text_encoder")
TEXT, VAE, ADAPTER = "text_encoders.qwen3_06b.transformer.", "vae.", "llm_adapter."

NAMES = (
    ("transformer_blocks.", "blocks."), ("norm1.linear_", "adaln_modulation_self_attn."),
    ("norm2.linear_", "adaln_modulation_cross_attn."), ("norm3.linear_", "adaln_modulation_mlp."),
    ("attn1.to_out.0.", "self_attn.output_proj."), ("attn2.to_out.0.", "cross_attn.output_proj."),
    ("attn1.to_q.", "self_attn.q_proj."), ("attn1.to_k.", "self_attn.k_proj."), ("attn1.to_v.", "self_attn.v_proj."),
    ("attn2.to_q.", "cross_attn.q_proj."), ("attn2.to_k.", "cross_attn.k_proj."),
    ("attn2.to_v.", "cross_attn.v_proj."), ("attn1.norm_q.", "self_attn.q_norm."),
    ("attn1.norm_k.", "self_attn.k_norm."), ("attn2.norm_q.", "cross_attn.q_norm."),
    ("attn2.norm_k.", "cross_attn.k_norm."), ("ff.net.0.proj.", "mlp.layer1."), ("ff.net.2.", "mlp.layer2."),
    ("norm_out.linear_", "final_layer.adaln_modulation."), ("proj_out.", "final_layer.linear."),
    ("time_embed.t_embedder.", "t_embedder.1."), ("time_embed.norm.", "t_embedding_norm."),
    ("patch_embed.proj.", "x_embedder.proj.1."),
)
"""Parts of names in diffusers and in files: `convert_cosmos_transformer_checkpoint_to_diffusers` of diffusers 0.42.1
has them the other way round."""


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    return random_pair(folder, make_pipeline(), PARTS, save, write_checkpoint)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors as files have them."""
    found = {}
    for name, tensor in state.items():
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def denoiser(pipeline: Any) -> dict[str, Tensor]:
    """The transformer's and the conditioner's."""
    inside = {ADAPTER + name: tensor for name, tensor in pipeline.text_conditioner.state_dict().items()}
    return original(pipeline.transformer.state_dict()) | inside


def write_checkpoint(pipeline: Any, path: Path) -> Path:
    """All parts in one file."""
    return write({
        **{DENOISER + name: tensor for name, tensor in denoiser(pipeline).items()},
        **{VAE + name: tensor for name, tensor in original_vae(pipeline.vae).items()},
        **{TEXT + name: tensor for name, tensor in language_model(pipeline.text_encoder).items()},
    }, path)
