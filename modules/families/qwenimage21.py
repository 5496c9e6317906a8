"""Qwen-Image 2.1: a Qwen3-VL text encoder, a transformer with one causal stream of text and picture, a VAE of its own.

Encoding and sampling are diffusers' own `QwenImage21Pipeline`, without its cache of the text's keys and values, which
changes the last bits. A latent is a token, and four of them take the place of what the text encoder would call a part
of a picture. The VAE reads and writes transparency: pictures are opaque here.

ComfyUI's files have diffusers' names, but the two matrices in front of the gate are one there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import qwen3, qwen_vl
from modules.families.parts.files import is_named
from modules.families.parts.flow import FlowModel
from modules.families.parts.names import DENOISER, Files, Place, text_name, transformer
from modules.families.parts.qwen_vae import DIFFUSERS_MARK, QwenVae
from modules.families.parts.split import TextFile
from modules.preset.base_options import Base

BASE, TURBO = "Qwen/Qwen-Image-2.1", "Qwen/Qwen-Image-2.1-Turbo"

ENCODER = "qwen3vl_8b"
"""ComfyUI's word for the text encoder."""

READ = (-1,)
"""The hidden states of the text encoder that are read, without the norm behind them."""

SLOT = 4
"""Tokens of a picture that are one for the text encoder."""

READER = "processor"
"""The pipeline's name of what reads captions, and pictures beside them."""

BLOCKS = "transformer.transformer_blocks.*"
ATTENTION = [f"{BLOCKS}.attn.to_[qkv]", f"{BLOCKS}.attn.to_out.0"]
MLP = [f"{BLOCKS}.img_mlp.*"]
REST = [
    "transformer.modulation.1",
    "transformer.img_in",
    "transformer.txt_in.*_layer",
    "transformer.time_text_embed.timestep_embedder.linear_[12]",
    "transformer.norm_out.linear",
    "transformer.proj_out",
]

MARK = "txt_in.text_norm.weight"
"""A tensor that every transformer of this family has, and no other."""
TEXT_MARK = "model.language_model.layers.0.self_attn.q_norm.weight"
"""A tensor of every file with a Qwen3-VL as published."""
COMFYUI_MARK = "model.visual.merger.linear_fc2.weight"
"""The same of ComfyUI's, which have the language model without a level of its own."""

FUSED = {"gate_layer": 0, "proj": 1}
"""Where a layer begins in the matrix that files have for two, in heights of one."""


class Model(qwen_vl.QwenVLReader, QwenVae, FlowModel):
    """A loaded Qwen-Image 2.1. `Samples.guidance` is the scale of classifier-free guidance, which it is made to go
    without: at 1 or below."""

    computed_in = "bfloat16"
    TITLE = "a Qwen-Image 2.1 model"
    HUB_ID = BASE
    PIPELINE = "QwenImage21Pipeline"
    FILE = "qwen_image_2.1_bf16.safetensors"
    TEXT_ENCODERS = (qwen3.ENCODER,)
    TOKENIZERS = {qwen3.ENCODER: READER}
    TEXT_FILES = {qwen3.ENCODER: TextFile(
        "a Qwen3-VL file such as qwen3vl_8b_bf16.safetensors", TEXT_MARK, str, COMFYUI_MARK,
        lambda path, kind, _: Place(f"{text_name(path)}.{kind}"))}
    PARTS = {
        DENOISER + MARK: "a Qwen-Image 2.1 transformer",
        f"text_encoders.{ENCODER}.transformer.model.norm.weight": "the text encoder",
        f"vae.{DIFFUSERS_MARK}": "the VAE",
    }
    VAE_FILE = "the one in vae of the model's folder in diffusers layout"
    VAE_MARKS = (DIFFUSERS_MARK, DIFFUSERS_MARK)
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", qwen3.ENCODER)),
        f"{READER}/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )
    SHARES_NAMES = True
    TOKEN = 1
    one_by_one = True
    CALLED = r"qwen[-_ ]?image[-_ ]?2[-_.]?1(?!\d)"
    ARGUMENTS = {"hidden": "prompt_embeds", "mask": "prompt_embeds_mask"}
    FOREIGN_WIDTHS = (1536, 2432, 3072, 6144)
    LIKE = (
        "(^|_)transformer_blocks_[0-9]+_(img_mlp_(proj|out|gate_layer|gate_up)|attn_(to_|norm_[qk]))|"
        "txt_in_(in_layer|out_layer|text_norm)|modulation_1|qwen3vl|"
        "te_(model_)?(language_model_)?layers_|text_encoders?_(transformer_)?(model_)?(language_model_)?layers_"
    )
    UNLIKE = (
        "(single|joint)_(transformer_|stream_)?blocks|double_(stream_)?blocks|attn[12]_|(down|up)_blocks|mid_block|"
        "put_blocks|blocks_[0-9]+_(ff_|norm|img_attn|txt_)|(img|txt)_mod_|img_mlp_net|_attn_(add|norm_added|to_add)|"
        "(x|context|guidance|text)_embedder_|(vector|guidance)_in_|transformer_blocks_(3[2-9]|[4-9][0-9]|[0-9]{3,})_|"
        "stream_modulation|time_guidance_embed|clip_[lg]|t5xxl|te[123]_|text_model|text_encoder_[23]|qwen25|qwen3(vl_4b)?_|"
        "mistral3|refiner|(^|_)(?<!transformer_)blocks_[0-9]|llm_adapter"
    )

    text_length: int = 1024
    """Tokens of a caption that are read, as long as the pipeline has no limit."""

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.bucket_step = 2 * self.latent_factor
        pipeline.vae_scale_factor = self.latent_factor  # it takes this to be 16
        self.distilled: bool = pipeline.config.sample_sigmas is not None
        qwen_vl.drop_unread(pipeline.text_encoder)

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def hub_id(cls, path: str) -> str:
        """Turbo where the file's name says so: the tensors have the same names and shapes."""
        return TURBO if is_named(path, "turbo") else BASE

    @classmethod
    def read_folder(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of a folder or of the hub's model, with what reads captions alone."""
        return cls._part_by_part(base, dtype)

    @classmethod
    def assembled(cls, source: str, part: Callable[[Any, str], Any]) -> Any:
        """Without what reads pictures, which wants torchvision."""
        return super().assembled(source, lambda found, name: part(reader_class() if name == READER else found, name))

    def vae_original(self, path: str, kind: str) -> Place:
        """Where files have a tensor of the VAE: where diffusers has it."""
        return Place(f"{path}.{kind}")

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers."""
        attention, mlp = qwen3.targets(self.pipeline.text_encoder.model.language_model, READ)
        attention = ATTENTION + attention
        both = attention + MLP + mlp
        return {"attention": attention, "attention-mlp": both, "all": both + REST}

    # -- captions -----------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The pipeline's, which is called otherwise there."""
        return self.pipeline.processor

    def message(self, caption: str) -> str:
        """The text that is tokenized, as the pipeline makes it."""
        return self.pipeline.prompt_template_t2i.format(caption)

    @property
    def caption_tokens(self) -> int:
        """Tokens of a caption that are read."""
        return self.text_length

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)` of the last block, padded with zeros, and `mask (n, tokens)`: which of them are
        tokens of the caption and the end of its template."""
        self.place_texts()
        read = [caption.removesuffix(self.cut_off(caption)) for caption in captions]
        hidden, mask, _ = self.pipeline.encode_prompt(read, device=self.device)
        every = torch.ones(hidden.shape[:2], dtype=torch.bool, device=self.device)
        return {"hidden": hidden, "mask": every if mask is None else mask.bool()}

    # -- pictures -----------------------------------------------------------------------------------------------------

    def _moments(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """With a channel that says that nothing is transparent."""
        more = vae.config.in_channels - pixels.shape[1]
        return super()._moments(vae, torch.cat([pixels, torch.ones_like(pixels[:, :more])], 1))

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return super()._pixels(vae, latents)[:, :3]

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`, one caption after the other: padding would move the picture away
        from its text. It does not use `sizes`."""
        lengths = texts["mask"].count_nonzero(1).tolist()
        hidden = [one[None, :length] for one, length in zip(texts["hidden"], lengths, strict=True)]
        return torch.cat([self._call(*one) for one in zip(noisy.split(1), times.split(1), hidden, strict=True)])

    def _call(self, noisy: Tensor, time: Tensor, hidden: Tensor) -> Tensor:
        """The transformer on one picture, with the hidden states of its caption."""
        denoiser, (height, width) = self.pipeline.transformer, noisy.shape[2:]
        noisy = noisy.to(denoiser.dtype).flatten(2).mT
        slots = torch.arange(hidden.shape[1] + noisy.shape[1] // SLOT, device=noisy.device) >= hidden.shape[1]
        predicted = denoiser(
            hidden_states=noisy,
            timestep=time.to(noisy.dtype) / self.process.count,
            encoder_hidden_states=hidden.to(noisy.dtype),
            img_shapes=[[(1, height, width)]],
            img_mask=slots[None],
            return_dict=False,
        )[0]
        return predicted[:, -noisy.shape[1] :].mT.unflatten(2, (height, width))

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """`(n, tokens, c)` as `(n, c, h, w)`; `height` and `width` in pixels."""
        return latents.mT.unflatten(2, (height // self.latent_factor, width // self.latent_factor))

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """See the class and the file."""
        return {"true_cfg_scale": guidance, "use_kv_cache": False}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files."""
        if network != self.DENOISER:
            return qwen3.names(ENCODER)
        return replace(transformer(), comfyui_reads_paths=False, comfyui_original=("",))

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where ComfyUI's checkpoints have a tensor."""
        if network != self.DENOISER:
            return qwen3.place(path, kind)
        config = self.pipeline.transformer.config
        return transformer_place(path, kind, config.mlp_ratio * config.num_attention_heads * config.attention_head_dim)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "Qwen-Image-2.1/lora",
            "modelspec.implementation": "https://github.com/QwenLM/Qwen-Image",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "qwen_image_2_1",
            "ss_v2": "False",
        }


def transformer_place(path: str, kind: str, height: int) -> Place:
    """Where ComfyUI's files have a tensor of diffusers' transformer, whose feed-forward layers have `height` outputs:
    of the two matrices in front of the gate, the one that makes the gate comes first."""
    block, _, layer = path.partition(".img_mlp.")
    if layer not in FUSED:
        return Place(f"{path}.{kind}")
    return Place(f"{block}.img_mlp.gate_up.{kind}", FUSED[layer] * height, height)


@cache
def reader_class() -> Any:
    """What the pipeline asks of a Qwen3-VL's processor where there are captions alone: its tokenizer."""
    from transformers import Qwen2Tokenizer

    class Reader(Qwen2Tokenizer):
        """See the function."""

        @property
        def tokenizer(self) -> Any:
            """Itself."""
            return self

        def apply_chat_template(self, conversation: Any, *_: Any, **__: Any) -> Any:
            """The tokens of the pipeline's system message, by which it knows where captions begin."""
            parts = [(one["role"], one["content"][0]["text"]) for one in conversation]
            said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in parts)
            return [self(said, add_special_tokens=False).input_ids]

    return Reader
