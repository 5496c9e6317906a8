"""A single SD3 checkpoint in the original naming, made from a diffusers pipeline: the reverse of reading one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.families.single_file import VAE, renamed, vae_names
from tests.tiny_sd3 import make_pipeline

TRANSFORMER = "model.diffusion_model."
TEXTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}

OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
}
INSIDE = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
JOINED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}


def make_pair(folder: Path, t5: bool = True) -> tuple[Path, Path]:
    """The tiny pipeline as a diffusers folder, and the same weights as a single checkpoint; their paths."""
    pipeline: Any = make_pipeline(folder, t5)
    texts = [pipeline.components[name] for name in TEXTS if pipeline.components[name] is not None]
    for network in (pipeline.transformer, pipeline.vae, *texts):
        for parameter in network.parameters():  # no two alike: biases and norms start as zeros and ones
            nn.init.normal_(parameter, std=0.1)
    nn.init.eye_(pipeline.text_encoder.text_projection.weight)  # what diffusers gives to single checkpoints
    pipeline.save_pretrained(folder / "base")
    save_file(checkpoint(pipeline), folder / "base.safetensors")
    return folder / "base", folder / "base.safetensors"


def checkpoint(pipeline: Any) -> dict[str, Tensor]:
    """All weights of the pipeline under their original names; CLIP-L's projection has none."""
    vae = ((ours, name) for ours, name in vae_names(pipeline.vae) if "quant_conv" not in ours)
    tensors = {VAE + name: tensor for name, tensor in renamed(pipeline.vae, vae)}
    tensors |= {TRANSFORMER + name: tensor for name, tensor in original(pipeline.transformer)}
    for part, name in TEXTS.items():
        if pipeline.components[part] is not None:
            state = pipeline.components[part].state_dict()
            tensors |= {f"text_encoders.{name}.transformer.{key}": tensor for key, tensor in state.items()}
    unwritten = ("clip_l.transformer.text_projection.weight", "embed_tokens.weight")  # the latter: the same as shared
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items() if not name.endswith(unwritten)}


def original(transformer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The transformer's tensors, every one exactly once: query, key and value as one, halves of two norms exchanged."""
    left = transformer.state_dict()
    depth = len(transformer.transformer_blocks)  # pyright: ignore[reportArgumentType]
    yield "pos_embed", left.pop("pos_embed.pos_embed")
    for kind in ("weight", "bias"):
        for ours, name in OUTSIDE.items():
            yield f"{name}.{kind}", left.pop(f"{ours}.{kind}")
        yield f"final_layer.adaLN_modulation.1.{kind}", exchanged(left.pop(f"norm_out.linear.{kind}"))
        for block in range(depth):
            ours, name = f"transformer_blocks.{block}", f"joint_blocks.{block}"
            for joined, separate in JOINED.items():
                keys = [f"{ours}.{part}.{kind}" for part in separate]
                if keys[0] in left:
                    yield f"{name}.{joined}.{kind}", torch.cat([left.pop(key) for key in keys])
            for part, theirs in INSIDE.items():
                if (key := f"{ours}.{part}.{kind}") in left:
                    last = block == depth - 1 and part == "norm1_context.linear"
                    yield f"{name}.{theirs}.{kind}", exchanged(left.pop(key)) if last else left.pop(key)
    assert not left, left.keys()


def exchanged(tensor: Tensor) -> Tensor:
    """Shift and scale are stored the other way round."""
    return torch.cat(tensor.chunk(2)[::-1])
