"""Z-Image, base and turbo: a Qwen3 text encoder, a transformer with one stream of picture and text, FLUX.1's VAE.

Encoding and sampling are diffusers' own `ZImagePipeline`. Its transformer counts time from noise to picture, predicts
the picture minus the noise, and takes captions of different lengths as they are: they are padded to a multiple of 32
tokens inside, and to the longest of a batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import qwen3
from modules.families.parts.files import is_named
from modules.families.parts.flow import FlowModel
from modules.families.parts.names import GATED, Files, Place, transformer

BASE, TURBO = "Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"

TURBO_SHIFT = 3.0
"""The scheduler's shift of turbo; the base has 6. Nothing else in the configurations differs."""

ENCODER = "qwen3_4b"
"""ComfyUI's word for the text encoder."""

READ = (-2,)
"""The hidden states of the text encoder that are read."""

BLOCKS, MAIN = "transformer.*", "transformer.layers.*"
ATTENTION, MLP = (".attention.to_[qkv]", ".attention.to_out.0"), (".feed_forward.w[123]",)
REST = [
    "transformer.*.adaLN_modulation.[01]",
    "transformer.all_x_embedder.*",
    "transformer.all_final_layer.*.linear",
    "transformer.cap_embedder.1",
    "transformer.t_embedder.mlp.*",
]

# Parts of names in diffusers' transformer, and in ComfyUI's files.
RENAMED = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1": "final_layer",
    "attention.to_q": "attention.qkv",
    "attention.to_k": "attention.qkv",
    "attention.to_v": "attention.qkv",
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
}
ROWS = {"to_q": 0, "to_k": 1, "to_v": 2}
"""Where a layer begins in the matrix that these files have for three, in widths of the transformer."""


class Model(qwen3.Qwen3Reader, FlowModel):
    """A loaded Z-Image base or turbo, which are told apart by their schedulers.

    `Samples.guidance` is the scale of classifier-free guidance as in every family, none at 1 or below: the pipeline's
    own `guidance_scale` is less by one.
    """

    computed_in = "bfloat16"
    TITLE = "a Z-Image model"
    HUB_ID = BASE
    PIPELINE = "ZImagePipeline"
    FILE = "z_image_bf16.safetensors"
    TEXT_ENCODERS = ("text_encoder",)
    TEXT_FILES = {"text_encoder": qwen3.text_file("qwen_3_4b.safetensors")}
    PARTS = {
        "model.diffusion_model.noise_refiner.0.attention.q_norm.weight": "a Z-Image transformer",
        f"text_encoders.{ENCODER}.transformer.model.norm.weight": "the text encoder",
        "vae.encoder.conv_in.weight": "the VAE",
    }
    UNUSED = r"norm_final\.weight"
    """A last norm that some files have."""
    THINKING = True
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder")),
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )
    LIKE = (
        "(^|_)(layers|(noise|context)_refiner)_[0-9]+_(attention_(to_|qkv|out|norm_|q_norm|k_norm)|feed_forward_w[123]|"
        "adaLN_modulation)|all_(x_embedder|final_layer)_|cap_embedder_|lora_te_layers_|qwen3_4b|"
        "text_encoders?_(transformer_)?(model_)?layers_"
    )
    UNLIKE = (
        "(double|single|joint|transformer|down|up)_blocks|mid_block|put_blocks|te[123]_|clip_[lg]|t5xxl|"
        f"qwen3_06b|blocks_[0-9]+_(self|cross)_attn_|adaln_modulation_|{GATED}"
    )

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        config = pipeline.transformer.config
        self.longest_side = min(config.axes_lens[1:]) * self.bucket_step
        """The end of its positions."""
        self.distilled: bool = pipeline.scheduler.config.shift == TURBO_SHIFT

    @classmethod
    def hub_id(cls, path: str) -> str:
        """Turbo where the file's name says so: the tensors have the same names and shapes."""
        return TURBO if is_named(path, "turbo") else BASE

    @classmethod
    def as_named(cls, pipeline: Any, path: str, configured: bool = False) -> None:
        """A file called turbo takes turbo's steps, unless a configuration is given for it."""
        if not configured and Path(path).is_file() and is_named(path, "turbo"):
            kept = pipeline.scheduler
            pipeline.register_modules(scheduler=type(kept).from_config(kept.config, shift=TURBO_SHIFT))

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers. "main-blocks" leaves the two small transformers out that refine picture
        and text before they meet."""
        attention, mlp = qwen3.targets(self.pipeline.text_encoder, READ)
        attention += [BLOCKS + layer for layer in ATTENTION]
        both = attention + mlp + [BLOCKS + layer for layer in MLP]
        return {
            "attention": attention,
            "attention-mlp": both,
            "main-blocks": [pattern.replace(BLOCKS, MAIN) for pattern in both],
            "all": both + REST,
        }

    # -- encoding and predicting --------------------------------------------------------------------------------------

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)` of the last but one block, padded with zeros, and `mask (n, tokens)`: which of them
        are tokens of the caption in its template."""
        for name in self.text_encoders:
            self.present(name)
        found, _ = self.pipeline.encode_prompt(
            list(captions), device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.text_length
        )
        mask = torch.ones(1, self.text_length, dtype=torch.bool, device=self.device)
        return protocol.together([{"hidden": one[None], "mask": mask[:, : len(one)]} for one in found])

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        denoiser = self.pipeline.transformer
        pictures = noisy.to(denoiser.dtype).unsqueeze(2)  # one frame
        clean = (self.process.count - times.float()) / self.process.count
        found = denoiser(list(pictures.unbind()), clean, unpadded(texts), return_dict=False)[0]
        return -torch.stack(found).squeeze(2)

    def conditions(self, texts: protocol.Texts, negative: protocol.Texts | None) -> dict[str, Any]:
        """Encoded prompts as arguments of the pipeline: lists."""
        away = {} if negative is None else {"negative_prompt_embeds": unpadded(negative)}
        return {"prompt_embeds": unpadded(texts), **away}

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """See the class."""
        return {"guidance_scale": max(guidance - 1.0, 0.0)}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. kohya's names of the transformer, those of musubi-tuner, have diffusers' paths;
        ComfyUI's `lora_unet_` has its own."""
        if network != self.DENOISER:
            return qwen3.names(ENCODER)
        usual = transformer()
        return replace(usual, kohya_original=False, joined=(*usual.joined, usual.kohya))

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where ComfyUI's checkpoints have a tensor."""
        if network != self.DENOISER:
            return qwen3.place(path, kind)
        return transformer_place(path, kind, self.pipeline.transformer.config.dim)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "Z-Image/lora",
            "modelspec.implementation": "https://github.com/Tongyi-MAI/Z-Image",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "zimage",
            "ss_v2": "False",
        }


def unpadded(texts: protocol.Texts) -> list[Tensor]:
    """The hidden states `(tokens, dim)` of each caption."""
    lengths = texts["mask"].count_nonzero(1).tolist()  # one copy from the device
    return [hidden[:length] for hidden, length in zip(texts["hidden"], lengths, strict=True)]


def transformer_place(path: str, kind: str, width: int) -> Place:
    """Where ComfyUI's files have a tensor of diffusers' transformer of this `width`, e.g. in
    `layers.0.attention.qkv.weight`. The padding tokens are tensors beside all modules: their `path` is empty."""
    name = f"{path}.{kind}" if path else kind
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    row = ROWS.get(path.rpartition(".")[2])
    return Place(name) if row is None else Place(name, row * width, width)
