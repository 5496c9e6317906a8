"""A base in ComfyUI's split files, made from a diffusers folder and the whole checkpoint of the same weights."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel

from tests.families import single_file_qwenimage
from tests.families.single_file import renamed, vae_names

DENOISER = "model.diffusion_model."
OFTEN = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Split:
    """A base in files, and a folder with the configurations and tokenizers alone."""

    denoiser: Path
    texts: dict[str, Path]
    """By the encoder's name in the pipeline."""
    vae: Path
    config: Path


def write(folder: Path, checkpoint: Path, pipeline: Any, place: Path) -> Split:
    """The files of a pipeline, which is also in `folder` and in `checkpoint`."""
    config = place / "config"
    shutil.copytree(folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    whole = load_file(checkpoint)
    denoiser = {name.removeprefix(DENOISER): t for name, t in whole.items() if name.startswith(DENOISER)}
    found = Split(place / "denoiser.safetensors", {}, place / "vae.safetensors", config)
    save_file(denoiser, found.denoiser)
    for name in OFTEN:
        if pipeline.components.get(name) is not None:
            found.texts[name] = place / f"te_{name}.safetensors"
            save_file(in_comfyui(pipeline.components[name]), found.texts[name])
    save_file(ldm(pipeline.vae), found.vae)
    return found


def in_comfyui(encoder: Any) -> dict[str, Tensor]:
    """A text encoder in ComfyUI's file: CLIP with the level that transformers has dropped, T5's table under one name,
    and something that no program needs."""
    state = {name: tensor.clone().contiguous() for name, tensor in encoder.state_dict().items()}
    if "shared.weight" in state:
        state.pop("encoder.embed_tokens.weight", None)
        return state | {"spiece_model": torch.zeros(8, dtype=torch.uint8)}
    if isinstance(encoder, Qwen3VLModel):
        return {f"model.{name}": tensor for name, tensor in state.items()}
    if isinstance(encoder, Qwen3VLForConditionalGeneration):  # as published
        return {name: tensor for name, tensor in state.items() if not name.startswith("lm_head")}
    if any(name.endswith("embed_tokens.weight") for name in state):  # a language model, without its output
        return {"model." + name.replace("language_model.", "").removeprefix("model."): tensor
                for name, tensor in state.items() if not name.startswith("lm_head")}
    named = {name if name.startswith("text_projection") else f"text_model.{name.removeprefix('text_model.')}": tensor
             for name, tensor in state.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def ldm(vae: Any) -> dict[str, Tensor]:
    """A VAE in the original naming, where convolutions stand for the attention's matrices."""
    if isinstance(vae, AutoencoderKLQwenImage21):  # no other naming is known of it
        return {name: tensor.clone().contiguous() for name, tensor in vae.state_dict().items()}
    if isinstance(vae, AutoencoderKLQwenImage):
        return {name: tensor.clone().contiguous() for name, tensor in single_file_qwenimage.original_vae(vae).items()}
    present = dict(vae.named_modules())
    names = (pair for pair in (*vae_names(vae), ("bn", "bn")) if present.get(pair[0]) is not None)
    return {name: tensor.clone().contiguous() for name, tensor in renamed(vae, names)}
