"""Krea 2, Raw and Turbo: a Qwen3-VL text encoder that is read at twelve layers, a transformer with one stream of text
and picture, Qwen-Image's VAE.

Encoding and sampling are diffusers' own `Krea2Pipeline`. Latents are packed: 2x2 of them are one token of the
transformer, which gets the position of each, and the captions' tokens before them, with a mask. The pipeline pads
captions to 512 tokens. Here, as in the published trainers and in ComfyUI, the padding is left out: it is masked
everywhere, and texts have no positions, so no prediction depends on it. (In the last bits only: sums have fewer terms.)
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import qwen3, qwen_vl
from modules.families.parts.files import is_named
from modules.families.parts.flow import PATCH, FlowModel
from modules.families.parts.names import DENOISER, Files, Place, transformer
from modules.families.parts.qwen_vae import MARK as VAE_MARK
from modules.families.parts.qwen_vae import QwenVae
from modules.objectives import Flow

RAW, TURBO = "krea/Krea-2-Raw", "krea/Krea-2-Turbo"

TURBO_SHIFT = math.exp(1.15)
"""The pipeline shifts the steps of Turbo by this, whatever the picture's size; those of Raw by its scheduler's line."""

ENCODER = "qwen3vl_4b"
"""ComfyUI's word for the text encoder."""

BLOCKS, MAIN = "transformer.*", "transformer.transformer_blocks.*"
ATTENTION, MLP = (".attn.to_[qkv]", ".attn.to_gate", ".attn.to_out.0"), (".ff.gate", ".ff.up", ".ff.down")
REST = [
    "transformer.img_in",
    "transformer.txt_in.linear_[12]",
    "transformer.time_embed.linear_[12]",
    "transformer.time_mod_proj",
    "transformer.text_fusion.projector",
    "transformer.final_layer.linear",
]

MARK = "txtfusion.projector.weight"
"""A tensor that every transformer of this family has, and no other."""

TABLE = "scale_shift_table"
"""A block's modulation, whose six rows are one in the original naming."""

# Parts of names in diffusers' transformer, and in its authors' files.
RENAMED = {
    "txt_in.norm.weight": "txtmlp.0.scale",
    "final_layer.norm.weight": "last.norm.scale",
    f"final_layer.{TABLE}": "last.modulation.lin",
    "final_layer.linear": "last.linear",
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "text_fusion": "txtfusion",
    "transformer_blocks": "blocks",
    TABLE: "mod.lin",
    "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo",
    "attn.to_": "attn.w",
    "attn.norm_q.weight": "attn.qknorm.qnorm.scale",
    "attn.norm_k.weight": "attn.qknorm.knorm.scale",
    ".ff.": ".mlp.",
    ".norm1.weight": ".prenorm.scale",
    ".norm2.weight": ".postnorm.scale",
}


class Model(qwen_vl.QwenVLReader, QwenVae, FlowModel):
    """A loaded Krea 2 Raw or Turbo, which are told apart by the pipeline's index, or by a file's name.

    `Samples.guidance` is the scale of classifier-free guidance as in every family, none at 1 or below: the pipeline's
    own `guidance_scale` is less by one.
    """

    computed_in = "bfloat16"
    TITLE = "a Krea 2 model"
    HUB_ID = RAW
    PIPELINE = "Krea2Pipeline"
    FILE = "krea2_raw_bf16.safetensors"
    TEXT_ENCODERS = (qwen3.ENCODER,)
    TEXT_FILES = {qwen3.ENCODER: qwen_vl.newer_text_file("qwen3vl_4b_bf16.safetensors")}
    PARTS = {
        DENOISER + MARK: "a Krea 2 transformer",
        f"text_encoders.{ENCODER}.transformer.model.layers.0.self_attn.q_norm.weight": "the text encoder",
        f"vae.{VAE_MARK}": "the VAE",
    }
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", qwen3.ENCODER)),
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )
    SHARES_NAMES = True
    CALLED = r"krea[-_. ]?2"
    ARGUMENTS = {"hidden": "prompt_embeds", "mask": "prompt_embeds_mask"}
    FOREIGN_WIDTHS = (1536, 2432, 3072, 4096)
    LIKE = (
        "(^|_)blocks_[0-9]+_(attn_(w[qkvo]|gate)|mlp_(gate|up|down))|txtfusion|text_fusion|"
        "(^|_)transformer_blocks_[0-9]+_(attn_to_|ff_(gate|up|down))|(^|_)(txtmlp|tproj)_[0-9]|time_mod_proj|qwen3vl|"
        "(^|_)(first|last_linear|tmlp_[02]|img_in|txt_in_linear_[12]|time_embed_linear_[12]|final_layer_linear)_|"
        "te_(model_)?(language_model_)?layers_|text_encoders?_(transformer_)?(model_)?(language_model_)?layers_"
    )
    UNLIKE = (
        "(single|joint|double)_(transformer_|stream_)?blocks|attn[12]_|(down|up)_blocks|mid_block|put_blocks|"
        "(img|txt)_(mlp|mod|attn)|add_[qkv]_proj|to_add_out|norm1_(linear|context)|"
        "blocks_[0-9]+_(ff_(net|context|linear)|self_|cross_)|"
        "(x|context|guidance|text)_embedder|(vector|guidance)_in_|time_(text|guidance)_embed|txt_norm|"
        "stream_modulation|clip_[lg]|t5xxl|te[123]_|text_model|text_encoder_[23]|qwen25|qwen3_|mistral3|noise_refiner|"
        "context_refiner|(^|_)layers_[0-9]+_(attention|feed_forward)|blocks_(2[89]|[3-9][0-9]|[0-9]{3,})_"
    )

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.distilled: bool = pipeline.config.is_distilled
        if self.distilled:
            self.process = Flow(shift=TURBO_SHIFT)
        pipeline.text_encoder.visual = None
        qwen3.cut(pipeline.text_encoder.language_model, self.read)

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def hub_id(cls, path: str) -> str:
        """Turbo where the file's name says so: the tensors have the same names and shapes."""
        return TURBO if is_named(path, "turbo") else RAW

    @classmethod
    def as_named(cls, pipeline: Any, path: str, configured: bool = False) -> None:
        """A file is Raw or Turbo if that is in its name, whatever the configuration given for it says."""
        name = Path(path).name.lower() if Path(path).is_file() else ""
        if found := re.search("turbo|(?<![a-z])raw(?![a-z])", name):
            pipeline.register_to_config(is_distilled=found[0] == "turbo")

    # -- layers -------------------------------------------------------------------------------------------------------

    @property
    def read(self) -> Sequence[int]:
        """The hidden states of the text encoder that are read."""
        return self.pipeline.text_encoder_select_layers

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers. "main-blocks" leaves the small transformers out that make one text of
        the text encoder's layers."""
        attention, mlp = qwen3.targets(self.pipeline.text_encoder.language_model, self.read)
        attention += [BLOCKS + layer for layer in ATTENTION]
        both = attention + mlp + [BLOCKS + layer for layer in MLP]
        return {
            "attention": attention,
            "attention-mlp": both,
            "main-blocks": [pattern.replace(BLOCKS, MAIN) for pattern in both],
            "all": both + REST,
        }

    # -- texts --------------------------------------------------------------------------------------------------------

    def message(self, caption: str) -> str:
        """The text that is tokenized; what is behind the caption by itself."""
        return self.pipeline.prompt_template_encode_prefix + caption + self.pipeline.prompt_template_encode_suffix

    @property
    def caption_tokens(self) -> int:
        """Tokens of a caption that are read: those of the message's end have their places whatever its length."""
        return super().caption_tokens - self.pipeline.prompt_template_encode_num_suffix_tokens

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, layers, dim)`, padded with zeros, and `mask (n, tokens)`: which of them are tokens of the
        caption and the end of its message."""
        self.place_texts()
        hidden, mask = self.pipeline.encode_prompt(
            list(captions), device=self.device, max_sequence_length=self.text_length
        )
        each = (states[tokens] for states, tokens in zip(hidden, mask, strict=True))
        return protocol.together([{"hidden": one[None], "mask": mask.new_ones(1, len(one))} for one in each])

    # -- denoising ----------------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        pipeline, hidden, mask = self.pipeline, texts["hidden"], texts["mask"]
        noisy = noisy.to(pipeline.transformer.dtype)
        n, channels, height, width = noisy.shape
        predicted = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy, n, channels, height, width),
            encoder_hidden_states=hidden,
            timestep=(times.float() / self.process.count).to(noisy.dtype),
            position_ids=pipeline.prepare_position_ids(
                hidden.shape[1], height // PATCH, width // PATCH, noisy.device),
            encoder_attention_mask=None if mask.all() else mask,
            return_dict=False,
        )[0]
        return self.unpacked(predicted, height * self.latent_factor, width * self.latent_factor)

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """`(n, tokens, 4 c)` as `(n, c, h, w)`; `height` and `width` in pixels."""
        return self.pipeline._unpack_latents(latents, height, width).squeeze(2)

    def conditions(self, texts: protocol.Texts, negative: protocol.Texts | None) -> dict[str, Tensor]:
        """Padded to one length: the pipeline counts the positions of the prompt for both."""
        if negative is not None:
            both = protocol.together([texts, negative])
            texts, negative = ({name: value[part : part + 1] for name, value in both.items()} for part in (0, 1))
        return super().conditions(texts, negative)

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """See the class."""
        return {"guidance_scale": max(guidance - 1.0, 0.0)}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. Those of ComfyUI and kohya's, which are musubi-tuner's, have the original
        paths: every version of ComfyUI that has the model reads these, newer ones diffusers' too."""
        if network != self.DENOISER:
            return qwen3.names(ENCODER)
        usual = transformer()
        return replace(usual, comfyui_original=("",), original=(*usual.original, "base_model.model."))

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor."""
        return transformer_place(path, kind) if network == self.DENOISER else qwen3.place(path, kind)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture, in the words of musubi-tuner, OneTrainer and ai-toolkit."""
        return {
            "modelspec.architecture": "Krea-2/lora",
            "modelspec.implementation": "https://github.com/krea-ai/krea-2",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "krea2",
            "ss_v2": "False",
        }


def transformer_place(path: str, kind: str) -> Place:
    """Where the authors' files have a tensor of diffusers' transformer, e.g. in `blocks.0.attn.wq.weight`."""
    name = f"{path}.{kind}"
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return Place(name, flat=path.startswith("transformer_blocks.") and kind == TABLE)
