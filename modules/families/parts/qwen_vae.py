"""The VAE of Qwen-Image and of families that share it: an AutoencoderKLQwenImage, which reads and writes films.

A picture is a film of one frame. The training loop's latents have no frames: `(n, c, h, w)`, normalised by the mean and
the standard deviation of each channel that the VAE's configuration has.

Its file in ComfyUI, qwen_image_vae.safetensors, has the names of its authors, which are those of Wan 2.1's VAE.
"""

import re
from typing import Any

import torch
from torch import Tensor

from modules.families.parts.names import Place
from modules.families.parts.pipeline import PipelineModel

MARK, DIFFUSERS_MARK = "encoder.middle.0.residual.0.gamma", "encoder.mid_block.resnets.0.norm1.gamma"
"""A tensor of every such VAE in the original naming, and in diffusers'."""

# Modules of diffusers' class in the naming of the original file.
OUTSIDE = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
AROUND = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
IN_RESNET = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
             "conv_shortcut": "shortcut"}


class QwenVae(PipelineModel):
    """A pipeline with this VAE. A family derives from it before its other bases."""

    VAE_MARKS = (MARK, DIFFUSERS_MARK)
    VAE_FILE = "qwen_image_vae.safetensors"

    def vae_grid(self) -> tuple[int, int]:
        """Pixels per latent along each side, and channels."""
        vae = self.pipeline.vae
        return vae.spatial_compression_ratio, vae.config.z_dim

    def vae_original(self, path: str, kind: str) -> Place:
        """Where the original file has a tensor of the VAE."""
        return place(path, kind, self.pipeline.vae.config.num_res_blocks)

    def _moments(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = vae.encode(pixels.unsqueeze(2)).latent_dist
        return found.mean.squeeze(2), found.std.squeeze(2)

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return vae.decode(latents.unsqueeze(2), return_dict=False)[0].squeeze(2)

    def _latent_scale(self) -> tuple[Tensor, Tensor]:
        """By the configuration's mean and standard deviation, `(1, c, 1, 1)`."""
        config = self.pipeline.vae.config
        mean, std = torch.tensor([config.latents_mean, config.latents_std], device=self.device).view(2, 1, -1, 1, 1)
        return mean, 1 / std


def place(path: str, kind: str, resnets: int) -> Place:
    """Where the original file has a tensor of diffusers' AutoencoderKLQwenImage with this many `resnets` in each block
    of the encoder; the decoder has one more. There all blocks of a side are one list."""
    side, _, inside = path.partition(".")
    whole = OUTSIDE.get(path) or f"{side}.{_inside(inside, resnets + 1)}"
    return Place(f"{whole}.{kind}")


def _inside(path: str, resnets: int) -> str:
    """A module of the encoder or decoder; `resnets`: of each block of the decoder."""
    if path in AROUND:
        return AROUND[path]
    if found := re.fullmatch(r"mid_block\.((?:resnets|attentions)\.\d)\.(.+)", path):
        return f"{MIDDLE[found[1]]}.{_in_block(found[2])}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", path):
        return f"downsamples.{found[1]}.{_in_block(found[2])}"
    _, block, kind, number, rest = path.split(".", 4)
    at = int(block) * (resnets + 1) + (int(number) if kind == "resnets" else resnets)
    return f"upsamples.{at}.{_in_block(rest)}"


def _in_block(path: str) -> str:
    """A module of a residual block, or of what is named alike everywhere."""
    return IN_RESNET.get(path, path)
