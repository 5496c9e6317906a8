"""Chroma1: a T5 text encoder with a mask, a transformer of FLUX.1's blocks, FLUX.1's VAE; no CLIP.

Encoding and sampling are diffusers' own `ChromaPipeline`. Instead of modulations and a guidance embedding there is one
small network, the distilled guidance layer, which computes the modulations of all blocks from the time.

Which texts the transformer sees: the caption, its end token and one padding token, as the model was trained. T5 itself
reads no padding. diffusers up to 0.42.1 means the same, but adds its mask of 0 and 1 to the attention's scores, so
that all padding is seen (its issues 12116 and 13619); `_with_real_mask` corrects that. Others: OneTrainer lets T5 read
the one padding token too, ai-toolkit lets T5 read all padding, and ComfyUI's transformer sees no padding unless the
node T5TokenizerOptions asks for it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import double_single
from modules.families.parts.double_single import DoubleSingleModel, original_place
from modules.families.parts.flow import PATCH
from modules.families.parts.names import DENOISER, Files, Place, t5, t5_place, transformer
from modules.families.parts.pipeline import recompute_inside
from modules.families.parts.split import T5

HD = "lodestones/Chroma1-HD"

TOKENS = 512
"""Of every caption for the transformer, padding included."""

ATTENTION = [*double_single.ATTENTION, "text_encoder.*.SelfAttention.[qkvo]"]
MLP = [*double_single.MLP, "text_encoder.*.DenseReluDense.w*"]
REST = ["transformer.*_embedder", "transformer.proj_out"]

# Modules of diffusers' transformer outside of its blocks in the naming of the original checkpoints.
OUTSIDE = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
GUIDANCE = "distilled_guidance_layer."
IN_GUIDANCE = {"linear_1": "in_layer", "linear_2": "out_layer"}

PREFIX = DENOISER
"""Of the transformer in full checkpoints; transformer-only files have it or not."""

MARK = f"{GUIDANCE}layers.0.in_layer.weight"
"""A tensor that every transformer of this family has, and no other, in the original naming alone."""

MODULATED = (
    "(img|txt)_mod_|modulation_lin|norm1(_context)?_linear|(?<!final_)norm_linear|norm_out_linear|adaLN|time_in_|"
    "(vector|guidance)_in_|time_text_embed_"
)
"""In names of FLUX.1's layers that this family has not."""


class Model(DoubleSingleModel):
    """A loaded Chroma1 base. `Samples.guidance` is the scale of classifier-free guidance; there is none at 1 or
    below."""

    TITLE = "a Chroma model"
    HUB_ID = HD
    PIPELINE = "ChromaPipeline"
    FILE = "Chroma1-HD.safetensors"
    TEXT_ENCODERS = ("text_encoder",)
    TEXT_FILES = {"text_encoder": T5}
    PARTS = {
        PREFIX + MARK: "a Chroma transformer",
        "text_encoders.t5xxl.transformer.shared.weight": "the text encoder",
        "vae.encoder.conv_in.weight": "the VAE",
    }
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder")),
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )
    SHARES_NAMES = True
    CALLED = "chroma"
    LIKE = f"{double_single.LIKE}|{GUIDANCE[:-1]}|te[13]_encoder|text_encoder_encoder|t5xxl"
    UNLIKE = f"{double_single.UNLIKE}|{MODULATED}|te1?_text_model|text_encoder_text_model|text_encoder_2|te2_|clip_l"

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        _with_real_mask(pipeline)

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers.

        "double-blocks" and "single-blocks" are the attention and feed-forward layers of these blocks. None has the
        distilled guidance layer, which modulates all blocks, and which other trainers leave as it is.
        """
        both = ATTENTION + MLP
        return {
            "attention": ATTENTION,
            "attention-mlp": both,
            "double-blocks": [pattern for pattern in both if not pattern.startswith(double_single.SINGLE)],
            "single-blocks": [pattern for pattern in both if not pattern.startswith(double_single.DOUBLE)],
            "all": both + REST,
        }

    def enable_checkpointing(self) -> None:
        """Inside the blocks: diffusers recomputes single blocks without the mask of the texts."""
        super().enable_checkpointing()
        recompute_inside(self.pipeline.transformer, self.blocks())

    def compile_blocks(self, checkpointing: bool) -> None:
        """Checkpointing is inside already."""
        super().compile_blocks(checkpointing=False)

    # -- texts --------------------------------------------------------------------------------------------------------

    @property
    def text_length(self) -> int:
        """Tokens of every caption, padding included: as the model was trained, or fewer where the tokenizer has a lower
        limit."""
        return min(TOKENS, self.tokenizer.model_max_length)

    @property
    def caption_tokens(self) -> int:
        """Tokens that T5 reads, without the end token."""
        return self.text_length - self.tokenizer.num_special_tokens_to_add()

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)` of T5; `mask (n, tokens)`, 1 for those that the transformer sees, else 0."""
        self.present("text_encoder")
        hidden, _, mask, *_ = self.pipeline.encode_prompt(
            list(captions), device=self.device, max_sequence_length=self.text_length, do_classifier_free_guidance=False
        )
        return {"hidden": hidden, "mask": mask}

    # -- denoising ----------------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        tokens = noisy[0, 0].numel() // PATCH**2
        mask = self.pipeline._prepare_attention_mask(len(noisy), tokens, noisy.dtype, texts["mask"])
        return self.call(noisy, times, texts["hidden"], {"attention_mask": mask})

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. kohya's names of the transformer are the original ones; of T5 it has `te3`, and
        OneTrainer and ComfyUI `te1`."""
        whole = replace(transformer(), comfyui_original=(GUIDANCE,))
        return {"transformer": whole, "text_encoder": t5(network, "lora_te1_", "lora_te3_")}[network]

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor."""
        if network == self.DENOISER:
            return transformer_place(path, kind, self.pipeline.transformer.inner_dim)
        return t5_place(path, kind)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "chroma/lora",
            "modelspec.implementation": "https://huggingface.co/lodestones/Chroma",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "chroma",
            "ss_v2": "False",
        }


def transformer_place(path: str, kind: str, width: int) -> Place:
    """Where the original checkpoints have a tensor of diffusers' transformer of this `width`, e.g. in
    `distilled_guidance_layer.layers.0.in_layer.weight`."""
    if not path.startswith(GUIDANCE):
        return original_place(path, kind, width, OUTSIDE)
    block, _, last = path.rpartition(".")
    name = f"{block}.{IN_GUIDANCE.get(last, last)}"
    return Place(f"{name}.{'scale' if re.search(r'norms.[0-9]+$', path) else kind}")


def _with_real_mask(pipeline: Any) -> None:
    """Let the pipeline give its transformer a mask of booleans. With numbers nothing is masked: they are added to the
    attention's scores."""
    prepare = pipeline._prepare_attention_mask

    def prepared(batch_size: int, sequence_length: int, dtype: torch.dtype, attention_mask: Tensor | None) -> Any:
        mask = None if attention_mask is None else attention_mask.bool()
        return prepare(batch_size, sequence_length, dtype, mask)

    pipeline._prepare_attention_mask = prepared
