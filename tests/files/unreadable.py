"""Files that people take for adapters of this kind, or whose kind says nothing without more: each is one sentence."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.files.making import Sample
from tests.files.unets import Q, kohya, of_kind, peft


def plain(words: str, tensors: Callable[[], dict[str, Tensor]], family: str = "") -> Callable[[], Sample]:
    """A file of these tensors, and words of the sentence about it."""
    return lambda: Sample(family, tensors(), refused=words)


def vera_without() -> Sample:
    """VeRA saved without its random projections."""
    sample = peft(of_kind("VeraConfig", r=4))()
    sample.tensors = {key: tensor for key, tensor in sample.tensors.items() if "lambda" in key}
    sample.weights, sample.refused = {}, "VeRA"
    return sample


def peft_of(kind: str, words: str, **options) -> Callable[[], Sample]:
    """A method of peft that is not read."""

    def make() -> Sample:
        sample = peft(of_kind(kind, **options))()
        sample.weights, sample.biases, sample.refused = {}, {}, words
        return sample

    return make


def ones(*shape: int) -> Tensor:
    """Of this shape."""
    return torch.ones(*shape)


SAMPLES: dict[str, Callable[[], Sample]] = {
    "peft VeRA without projection": vera_without,
    "peft HRA": peft_of("HRAConfig", "HRA", r=2),
    "peft BOFT": peft_of("BOFTConfig", "BOFT", boft_block_size=4),
    "peft FourierFT": peft_of("FourierFTConfig", "FourierFT", n_frequency=8),
    "X-LoRA": plain("X-LoRA", lambda: {
        "xlora_classifier.layers.0.weight": ones(2, 4), "base_model.model.a.lora_A.weight": ones(2, 4),
        "base_model.model.a.lora_B.weight": ones(4, 2)}),
    "textual inversion": plain("textual inversion", lambda: {"emb_params": ones(2, 16)}),
    "SDXL embedding": plain("textual inversion", lambda: {"clip_l": ones(2, 16), "clip_g": ones(2, 16)}),
    "whole checkpoint": plain("base model", lambda: {
        "model.diffusion_model.input_blocks.0.0.weight": ones(8, 4, 3, 3),
        "model.diffusion_model.input_blocks.0.0.bias": ones(8)}),
    "diffusers UNet": plain("base model", lambda: {"conv_in.weight": ones(8, 4, 3, 3), "conv_in.bias": ones(8)}),
    "ControlNet": plain("ControlNet", lambda: {
        "control_model.input_blocks.0.0.weight": ones(8, 4, 3, 3),
        "control_model.zero_convs.0.0.weight": ones(8, 8, 1, 1)}),
    "Control-LoRA": plain("Control-LoRA", lambda: {
        "lora_controlnet": torch.empty(0), "input_blocks.4.1.proj_in.up": ones(8, 2),
        "input_blocks.4.1.proj_in.down": ones(2, 8)}),
    "ControlNet-LLLite": plain("ControlNet-LLLite", lambda: {
        "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": ones(2, 8)}),
    "IP-Adapter": plain("IP-Adapter", lambda: {
        "image_proj.proj.weight": ones(8, 8), "ip_adapter.1.to_k_ip.weight": ones(8, 8)}),
    "VAE": plain("VAE", lambda: {
        "encoder.conv_in.weight": ones(8, 3, 3, 3), "decoder.conv_in.weight": ones(8, 4, 3, 3)}),
    "token embeddings alone": plain("bundle_emb", lambda: {"bundle_emb.cat.clip_l": ones(2, 16)}),
    "T-LoRA mask": plain("rank_mask", lambda: {
        f"{kohya(Q)}.lora_up.weight": ones(16, 2), f"{kohya(Q)}.lora_down.weight": ones(2, 16),
        f"{kohya(Q)}.rank_mask": ones(2)}, "sd15"),
}
