"""Qwen-Image, the first and 2512, and Qwen-Image-Edit: a Qwen2.5-VL text encoder, a transformer with two streams, a VAE
of its own.

Encoding and sampling are diffusers' own `QwenImagePipeline`; with reference pictures, which the text encoder sees too,
`QwenImageEditPipeline`, or of 2509 and later `QwenImageEditPlusPipeline`. Latents are packed: 2x2 of them are one token
of the transformer, which gets captions of different lengths with a mask. ComfyUI's files have diffusers' names.

The noise levels of training are shifted by the scheduler's line over the number of tokens, as in OneTrainer. Samples
end at a small level besides (`shift_terminal`), which training, there and here, has none of.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import qwen3, qwen_vl
from modules.families.parts.editing import joined
from modules.families.parts.flow import PATCH, FlowModel
from modules.families.parts.names import DENOISER, GATED, Files, Place, transformer
from modules.families.parts.qwen_edit import QwenEditor
from modules.families.parts.qwen_vae import MARK as VAE_MARK
from modules.families.parts.qwen_vae import QwenVae

FIRST, NEWER = "Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"
EDIT = "Qwen/Qwen-Image-Edit"
PLUS = ("2511", "2509")
"""Later ones that edit, by the end of their names."""

ENCODER = "qwen25_7b"
"""ComfyUI's word for the text encoder."""

READ = (-1,)
"""The hidden states of the text encoder that are read."""

BLOCKS = "transformer.transformer_blocks.*"
ATTENTION = [f"{BLOCKS}.attn.{layer}" for layer in ("to_[qkv]", "to_out.*", "add_[kv]_proj")]
MLP = [f"{BLOCKS}.img_mlp.net.*"]
UNREAD = ["attn.add_q_proj", "attn.to_add_out"], ["txt_mlp.net.*"]
"""The same of the text: nothing reads what they make of it in the last block."""
REST = [
    f"{BLOCKS}.img_mod.1",
    f"{BLOCKS}.txt_mod.1",
    "transformer.img_in",
    "transformer.txt_in",
    "transformer.time_text_embed.*",
    "transformer.norm_out.linear",
    "transformer.proj_out",
]

MARK = "txt_norm.weight"
"""A tensor that every transformer of this family has, and no other."""


class Model(qwen_vl.QwenVLReader, QwenVae, QwenEditor, FlowModel):
    """A loaded Qwen-Image. `Samples.guidance` is the scale of classifier-free guidance; there is none at 1 or below."""

    computed_in = "bfloat16"
    EXAMPLE = f"{EDIT}-2509"
    TITLE = "a Qwen-Image model"
    HUB_ID = FIRST
    PIPELINE = "QwenImagePipeline"
    FILE = "qwen_image_bf16.safetensors"
    TEXT_ENCODERS = (qwen3.ENCODER,)
    TEXT_FILES = {qwen3.ENCODER: qwen_vl.text_file("qwen_2.5_vl_7b.safetensors")}
    PARTS = {
        DENOISER + MARK: "a Qwen-Image transformer",
        f"text_encoders.{ENCODER}.transformer.{qwen_vl.MARK}": "the text encoder",
        f"vae.{VAE_MARK}": "the VAE",
    }
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", qwen3.ENCODER)),
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )
    SHARES_NAMES = True
    CALLED = r"qwen[-_. ]?image(?![-_ ]?2[-_.]?1(?!\d))"
    ARGUMENTS = {"hidden": "prompt_embeds", "mask": "prompt_embeds_mask"}
    FOREIGN_WIDTHS = (1536, 2432, 4096, 6144)
    LIKE = (
        "(^|_)transformer_blocks_[0-9]+_((img|txt)_(mlp|mod)_|attn_)|(^|_)(img|txt)_in_|txt_norm|qwen25_7b|"
        "te_(model_)?(language_model_)?layers_|text_encoders?_(transformer_)?(model_)?(language_model_)?layers_"
    )
    UNLIKE = (
        "(single|joint)_(transformer_|stream_)?blocks|double_(stream_)?blocks|attn[12]_|(down|up)_blocks|mid_block|"
        "put_blocks|blocks_[0-9]+_(ff_|norm|img_attn|txt_attn)|(x|context|guidance|text)_embedder_|(vector|guidance)_in_|"
        "transformer_blocks_([6-9][0-9]|[0-9]{3,})_|stream_modulation|time_guidance_embed|clip_[lg]|t5xxl|te[123]_|"
        "img_mlp_(proj|out|gate)|text_model|text_encoder_[23]|qwen3|mistral3|refiner|"
        f"(^|_)(?<!transformer_)blocks_[0-9]|{GATED}"
    )

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.eyes = qwen_vl.drop_unread(pipeline.text_encoder)

    @classmethod
    def hub_id(cls, path: str) -> str:
        """What the file's name says: the tensors have the same names and shapes."""
        name = Path(path).name.lower()
        if re.search(r"(^|[-_. ])edit", name):
            return next((f"{EDIT}-{one}" for one in PLUS if one in name), EDIT)
        return NEWER if "2512" in name else FIRST

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers. None has those of the last block that no prediction depends on."""
        attention, mlp = qwen3.targets(self.pipeline.text_encoder.model.language_model, READ)
        earlier = [BLOCKS.replace("*", str(number)) for number in range(len(self.blocks()) - 1)]
        first, second = ([f"{block}.{layer}" for block in earlier for layer in layers] for layers in UNREAD)
        attention = [*ATTENTION, *first, *attention]
        both = [*attention, *MLP, *second, *mlp]
        return {"attention": attention, "attention-mlp": both, "all": both + REST}

    # -- encoding and predicting --------------------------------------------------------------------------------------

    def encode_texts(self, captions: Sequence[protocol.Caption]) -> protocol.Texts:
        """`hidden (n, tokens, dim)` of the last block, padded with zeros, and `mask (n, tokens)`: which of them are
        tokens of the caption and the end of its template, and of its reference pictures."""
        self.place_texts()
        if any(isinstance(caption, protocol.Instruction) for caption in captions):
            return protocol.together([self._condition(*self.seen(caption)) for caption in captions])
        return self._condition(*self.pipeline.encode_prompt(
            list(captions), device=self.device, max_sequence_length=self.text_length
        ))

    def _condition(self, hidden: Tensor, mask: Tensor | None) -> protocol.Texts:
        every = torch.ones(hidden.shape[:2], dtype=torch.bool, device=self.device)
        return {"hidden": hidden, "mask": every if mask is None else mask.bool()}

    def predict(
        self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor, references: Sequence[Tensor] = ()
    ) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        denoiser, mask, (height, width) = self.pipeline.transformer, texts["mask"], noisy.shape[2:]
        noisy = noisy.to(denoiser.dtype)
        tokens, *others = (self.pipeline._pack_latents(one.to(noisy.dtype), *one.shape) for one in (noisy, *references))
        grids = [(1, one.shape[2] // PATCH, one.shape[3] // PATCH) for one in (noisy, *references)]
        predicted = denoiser(
            hidden_states=joined(tokens, others),
            timestep=times.to(noisy.dtype) / self.process.count,
            encoder_hidden_states=texts["hidden"],
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[grids] * len(noisy),
            return_dict=False,
        )[0]
        return self.unpacked(predicted[:, : tokens.shape[1]], height * self.latent_factor, width * self.latent_factor)

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """`(n, tokens, 4 c)` as `(n, c, h, w)`; `height` and `width` in pixels."""
        return self.pipeline._unpack_latents(latents, height, width, self.latent_factor).squeeze(2)

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """See the class."""
        return {"true_cfg_scale": guidance}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. kohya's names of the transformer are those of musubi-tuner."""
        return replace(transformer(), kohya_original=False) if network == self.DENOISER else qwen3.names(ENCODER)

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where ComfyUI's checkpoints have a tensor: where diffusers has it."""
        return Place(f"{path}.{kind}") if network == self.DENOISER else qwen3.place(path, kind)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture, in the words of musubi-tuner and ai-toolkit."""
        return {
            "modelspec.architecture": "Qwen-Image/lora",
            "modelspec.implementation": "https://github.com/QwenLM/Qwen-Image",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "qwen_image",
            "ss_v2": "False",
        }
