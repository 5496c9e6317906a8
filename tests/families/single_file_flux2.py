"""FLUX.2 in single files, made from a diffusers pipeline: each part alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modules.families.flux2 import PREFIX
from tests.families.single_file import renamed, vae_names
from tests.families.single_file_zimage import language_model
from tests.tiny_flux2 import make_pipeline, save

PARTS = ("transformer", "vae", "text_encoder")
VAE = "vae."
TEXT = {"base": "text_encoders.qwen3_4b.transformer.", "dev": "text_encoders.mistral3_24b.transformer."}

FUSED = {
    "to_q": ("img_attn.qkv", ("to_q", "to_k", "to_v")),
    "add_q_proj": ("txt_attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
}
NAMES = (
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("x_embedder.", "img_in."), ("context_embedder.", "txt_in."), ("_img.linear.", "_img.lin."),
    ("_txt.linear.", "_txt.lin."), ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"), ("proj_out.", "final_layer.linear."),
    ("single_transformer_blocks.", "single_blocks."), ("attn.to_qkv_mlp_proj", "linear1"),
    ("attn.to_out.w", "linear2.w"), ("transformer_blocks.", "double_blocks."), ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"), ("ff.linear_in", "img_mlp.0"), ("ff.linear_out", "img_mlp.2"),
    ("ff_context.linear_in", "txt_mlp.0"),
    ("ff_context.linear_out", "txt_mlp.2"), ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
)
"""Parts of names in diffusers and in the files of Black Forest Labs: diffusers' scripts/convert_flux2_to_diffusers.py
at commit 58eb52c0 has them the other way round."""


def make_pair(folder: Path, kind: str = "base") -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    pipeline: Any = make_pipeline(kind)
    for part in PARTS:
        for parameter in pipeline.components[part].parameters():  # no two alike: norms and biases start so
            nn.init.normal_(parameter, std=0.1)
    save(pipeline, folder / "base")
    return folder / "base", write_checkpoint(pipeline, folder / "full.safetensors", TEXT[kind])


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors as its authors store them."""
    found = {}
    for name, tensor in state.items():
        block, _, rest = name.partition(".attn.")
        layer = rest.removesuffix(".weight")
        if layer in FUSED:
            theirs, members = FUSED[layer]
            name = f"{block}.{theirs}.weight"
            tensor = torch.cat([state[f"{block}.attn.{member}.weight"] for member in members])
        elif layer in ("to_k", "to_v", "add_k_proj", "add_v_proj"):
            continue
        elif layer in ("norm_q", "norm_k"):
            side = "" if block.startswith("single") else "img_attn."
            name = f"{block}.{side}norm.{'query' if layer == 'norm_q' else 'key'}_norm.scale"
        elif name.startswith("norm_out."):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def original_vae(vae: nn.Module) -> dict[str, Tensor]:
    """The VAE's, with the convolutions around the latents in the encoder and the decoder."""
    found = dict(renamed(vae, iter((*vae_names(vae), ("bn", "bn")))))
    around = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    for ours, theirs in around.items():
        found = {theirs + name.removeprefix(ours) if name.startswith(ours) else name: t for name, t in found.items()}
    return found


def text_encoder(encoder: nn.Module) -> dict[str, Tensor]:
    """The text encoder's as its file has them: of dev without the parts for pictures."""
    return {name.replace("model.language_model.", "model."): tensor for name, tensor in language_model(encoder).items()
            if "vision_tower" not in name and "projector" not in name}


def write(tensors: dict[str, Tensor], path: Path, prefix: str = "", dtype: torch.dtype | None = None) -> Path:
    """A file with these tensors; its path."""
    save_file({prefix + name: tensor.detach().to(dtype or tensor.dtype).clone().contiguous()
               for name, tensor in tensors.items()}, path)
    return path


def write_checkpoint(pipeline: Any, path: Path, text: str) -> Path:
    """All parts in one file."""
    return write({
        **{PREFIX + name: tensor for name, tensor in original(pipeline.transformer.state_dict()).items()},
        **{VAE + name: tensor for name, tensor in original_vae(pipeline.vae).items()},
        **{text + name: tensor for name, tensor in text_encoder(pipeline.text_encoder).items()},
    }, path)
