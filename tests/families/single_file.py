"""A single checkpoint in the original naming, made from a diffusers pipeline: the reverse of what diffusers reads.

Names are found by walking through the networks in the order in which the original code numbers its blocks, so that
they are a check of `ldm_name`, which computes them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_sdxl import make_pipeline

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
RESBLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def make_pair(folder: Path) -> tuple[Path, Path]:
    """The tiny SDXL pipeline as a diffusers folder, and the same weights as a single checkpoint; their paths.

    diffusers tells the two text encoders of a checkpoint apart by their widths, so they have to differ.
    """
    pipeline: Any = make_pipeline(folder)
    text = pipeline.text_encoder.config.to_dict()
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(**{**text, "hidden_size": 12}))
    text = pipeline.text_encoder_2.config.to_dict()
    pipeline.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**{**text, "hidden_size": 20}))
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        for parameter in network.parameters():  # no two alike: biases and norms start as zeros and ones
            nn.init.normal_(parameter, std=0.1)
    pipeline.save_pretrained(folder / "base")
    save_file(checkpoint(pipeline), folder / "base.safetensors")
    return folder / "base", folder / "base.safetensors"


def checkpoint(pipeline: Any) -> dict[str, Tensor]:
    """All weights of the pipeline under their original names."""
    tensors = {
        **{UNET + name: tensor for name, tensor in renamed(pipeline.unet, unet_names(pipeline.unet))},
        **{VAE + name: tensor for name, tensor in renamed(pipeline.vae, vae_names(pipeline.vae))},
        **{CLIP_L + name.removeprefix("text_model."): t for name, t in pipeline.text_encoder.state_dict().items()},
        **{CLIP_G + name: tensor for name, tensor in open_clip(pipeline.text_encoder_2)},
        CLIP_L + "embeddings.position_ids": torch.arange(77)[None],
    }
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def renamed(network: nn.Module, names: Iterator[tuple[str, str]]) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors, the modules called as `names` says; every tensor exactly once."""
    left = network.state_dict()
    for ours, original in names:
        inside = [key for key in left if key.startswith(ours + ".")]
        assert inside, ours
        for key in inside:
            tensor = left.pop(key)
            square = "mid.attn_1" in original and tensor.dim() == 2  # the original has 1x1 convolutions there
            yield original + key.removeprefix(ours), tensor[:, :, None, None] if square else tensor
    assert not left, left.keys()


def unet_names(unet: Any) -> Iterator[tuple[str, str]]:
    """(module in diffusers, module in the original), numbered by counting."""
    yield "conv_in", "input_blocks.0.0"
    for ours, original in (("time_embedding", "time_embed"), ("add_embedding", "label_emb.0")):
        if dict(unet.named_children()).get(ours) is not None:
            yield f"{ours}.linear_1", f"{original}.0"
            yield f"{ours}.linear_2", f"{original}.2"
    number = 1
    for block, down in enumerate(unet.down_blocks):
        for layer, resnet in enumerate(down.resnets):
            yield from parts(resnet, RESNET, f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{number}.0")
            if "CrossAttn" in type(down).__name__:
                yield f"down_blocks.{block}.attentions.{layer}", f"input_blocks.{number}.1"
            number += 1
        if down.downsamplers:
            yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    yield from parts(unet.mid_block.resnets[0], RESNET, "mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from parts(unet.mid_block.resnets[1], RESNET, "mid_block.resnets.1", "middle_block.2")
    number = 0
    for block, up in enumerate(unet.up_blocks):
        for layer, resnet in enumerate(up.resnets):
            yield from parts(resnet, RESNET, f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0")
            place = 1
            if "CrossAttn" in type(up).__name__:
                yield f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{number}.1"
                place = 2
            if up.upsamplers and layer == len(up.resnets) - 1:
                yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{number}.{place}.conv"
            number += 1
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"


def vae_names(vae: Any) -> Iterator[tuple[str, str]]:
    """The same for the VAE, whose original counts the decoder's blocks from the output."""
    inside = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
    blocks = {"encoder": ("down", vae.encoder.down_blocks), "decoder": ("up", vae.decoder.up_blocks)}
    for side, (way, stack) in blocks.items():
        for block, module in enumerate(stack):
            number = block if way == "down" else len(stack) - 1 - block
            ours, original = f"{side}.{way}_blocks.{block}", f"{side}.{way}.{number}"
            for layer, resnet in enumerate(module.resnets):
                yield from parts(resnet, inside, f"{ours}.resnets.{layer}", f"{original}.block.{layer}")
            if (module.downsamplers if way == "down" else module.upsamplers):
                yield f"{ours}.{way}samplers.0.conv", f"{original}.{way}sample.conv"
        middle = vae.encoder.mid_block if way == "down" else vae.decoder.mid_block
        for layer, resnet in enumerate(middle.resnets):
            yield from parts(resnet, inside, f"{side}.mid_block.resnets.{layer}", f"{side}.mid.block_{layer + 1}")
        attention = (f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1")
        yield from parts(middle.attentions[0], ATTENTION, *attention)
        for ours, original in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            yield f"{side}.{ours}", f"{side}.{original}"
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"


def parts(module: nn.Module, names: dict[str, str], ours: str, original: str) -> Iterator[tuple[str, str]]:
    """The named parts that `module` has."""
    present = dict(module.named_modules())
    for part, name in names.items():
        if present.get(part) is not None:
            yield f"{ours}.{part}", f"{original}.{name}"


def open_clip(encoder: Any) -> Iterator[tuple[str, Tensor]]:
    """A text encoder as OpenCLIP stores it: one matrix for query, key and value, the projection transposed."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    yield "positional_embedding", state["embeddings.position_embedding.weight"]
    yield "token_embedding.weight", state["embeddings.token_embedding.weight"]
    if "text_projection.weight" in state:
        yield "text_projection", state["text_projection.weight"].T
    yield "logit_scale", torch.tensor(4.6)
    for kind in ("weight", "bias"):
        yield f"ln_final.{kind}", state[f"final_layer_norm.{kind}"]
        for layer in range(encoder.config.num_hidden_layers):
            ours, original = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            fused = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            yield f"{original}.attn.in_proj_{kind}", torch.cat(fused)
            for part, name in RESBLOCK.items():
                yield f"{original}.{name}.{kind}", state[f"{ours}.{part}.{kind}"]


def random_pair(
    folder: Path, pipeline: Any, parts: Sequence[str], save: Callable, write: Callable
) -> tuple[Path, Path]:
    """A pipeline whose `parts` have random weights as a diffusers folder, and by `write` as one file; their paths."""
    for part in parts:
        for parameter in pipeline.components[part].parameters():  # no two alike: norms and biases start so
            nn.init.normal_(parameter, std=0.1)
    save(pipeline, folder / "base")
    return folder / "base", write(pipeline, folder / "full.safetensors")
