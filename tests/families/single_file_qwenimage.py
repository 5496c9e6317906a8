"""Qwen-Image in single files, made from a diffusers pipeline: each part alone, or a checkpoint with all parts."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modules.families.parts.names import DENOISER
from tests.families.single_file import random_pair
from tests.families.single_file_flux2 import write
from tests.tiny_qwenimage import make_pipeline

PARTS = ("transformer", "vae", "text_encoder")
TEXT, VAE = "text_encoders.qwen25_7b.transformer.", "vae."

IN_VAE = (
    ("post_quant_conv.", "conv2."), ("quant_conv.", "conv1."), (".conv_in.", ".conv1."), (".norm_out.", ".head.0."),
    (".conv_out.", ".head.2."), (".norm1.", ".residual.0."), (".norm2.", ".residual.3."),
    ("mid_block.resnets.0.", "middle.0."), ("mid_block.attentions.0.", "middle.1."),
    ("mid_block.resnets.1.", "middle.2."), ("down_blocks.", "downsamples."), ("up_blocks.0.resnets.0.", "upsamples.0."),
    ("up_blocks.0.resnets.1.", "upsamples.1."), ("up_blocks.0.upsamplers.0.", "upsamples.2."),
    ("up_blocks.1.resnets.0.", "upsamples.3."), ("up_blocks.1.resnets.1.", "upsamples.4."),
    (".conv_shortcut.", ".shortcut."),
)
"""Parts of names of the tiny VAE in diffusers, and in the file of its authors."""
RESNET = {".conv1.": ".residual.2.", ".conv2.": ".residual.6."}


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A pipeline as a diffusers folder and as one file with all parts; their paths."""
    pipeline: Any = make_pipeline()
    return random_pair(folder, pipeline, PARTS, type(pipeline).save_pretrained, write_checkpoint)


def original_vae(vae: nn.Module) -> dict[str, Tensor]:
    """The tiny VAE's tensors as its file has them."""
    found = {}
    for name, tensor in vae.state_dict().items():
        if "_block" in name:  # those around the blocks have these names too
            for ours, theirs in RESNET.items():
                name = name.replace(ours, theirs)
        for ours, theirs in IN_VAE:
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def text_encoder(encoder: nn.Module) -> dict[str, Tensor]:
    """The text encoder's as its file has them: with what reads pictures, and with the output."""
    return {name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
            for name, tensor in encoder.state_dict().items()}


def write_checkpoint(pipeline: Any, path: Path) -> Path:
    """All parts in one file."""
    return write({
        **{DENOISER + name: tensor for name, tensor in pipeline.transformer.state_dict().items()},
        **{VAE + name: tensor for name, tensor in original_vae(pipeline.vae).items()},
        **{TEXT + name: tensor for name, tensor in text_encoder(pipeline.text_encoder).items()},
    }, path)
