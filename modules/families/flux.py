"""FLUX.1 dev and schnell: a CLIP text encoder (pooled), a T5 text encoder (sequence), a transformer, a VAE.

Encoding and sampling are diffusers' own `FluxPipeline`. Latents are packed: 2x2 of them are one token of the
transformer. dev is distilled: it has a guidance embedding instead of being run twice.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.documents import read_object
from modules.families import base as protocol
from modules.families.parts import files
from modules.families.parts.flow import PATCH, FlowModel
from modules.families.parts.names import DENOISER, Files, Place, Spelling, clip, t5, t5_place, transformer
from modules.families.parts.split import CLIP_L, T5
from modules.preset.base_options import Base

DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"

TRAINED_GUIDANCE = 1.0
"""Input of the guidance embedding in training: 1 is no guidance, and pictures of a data set come from none. Other
trainers do the same; a larger value trains the adapter to undo the guidance."""

DOUBLE, SINGLE = "transformer.transformer_blocks.*", "transformer.single_transformer_blocks.*"
ATTENTION = [f"{DOUBLE}.attn.*", f"{SINGLE}.attn.*", "text_encoder.*.self_attn.*"]
ATTENTION += ["text_encoder_2.*.SelfAttention.[qkvo]"]
MLP = [f"{DOUBLE}.ff*.net.*", f"{SINGLE}.proj_mlp", f"{SINGLE}.proj_out", "text_encoder.*.mlp.fc[12]"]
MLP += ["text_encoder_2.*.DenseReluDense.w*"]
REST = [f"{DOUBLE}.norm1*.linear", f"{SINGLE}.norm.linear", "transformer.*_embedder*", "transformer.proj_out"]

# Modules of diffusers' transformer in the naming of the original checkpoints.
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
IN_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "norm1_context.linear": "txt_mod.lin",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
IN_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
PROCESSORS = {
    "img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1",
    "txt_attn.qkv": "qkv_lora2", "txt_attn.proj": "proj_lora2",
    "linear1": "qkv", "linear2": "proj",
}
"""XLabs' names of a block's layers, those of single blocks without the `_lora` that other programs' keys have there
too; of linear1 only the query, key and value."""
ROWS = {
    "to_q": (0, 1), "to_k": (1, 1), "to_v": (2, 1),
    "add_q_proj": (0, 1), "add_k_proj": (1, 1), "add_v_proj": (2, 1),
    "proj_mlp": (3, 4),
}
"""Where a layer begins in the matrix that the original has for several, and how many rows it has; in widths of the
transformer."""

PREFIX = DENOISER
"""Of the transformer in full checkpoints; transformer-only files have it or not."""

MARK = "double_blocks.0.img_attn.norm.key_norm.scale"
"""A tensor that every transformer of this family has, in the original naming."""

GUIDANCE = "guidance_in.in_layer.weight"
GUIDANCE_IN_DIFFUSERS = "time_text_embed.guidance_embedder.linear_1.weight"
"""A tensor that dev has and schnell has not."""


class Model(FlowModel):
    """A loaded FLUX.1 base, dev where its transformer has a guidance embedding, else schnell.

    `Samples.guidance` is the input of dev's guidance embedding (3.5 is usual). With a negative prompt both variants
    are run twice per step: guidance is then the scale of true classifier-free guidance between the two prompts, and the
    embedding's input is 1, no guidance, because both together oversaturate the picture. As in every family, there is
    none at 1 or below. schnell has no embedding, so without a negative prompt guidance has no effect there.
    """

    computed_in = "bfloat16"
    TITLE = "a FLUX.1 model"
    HUB_ID = DEV
    PIPELINE = "FluxPipeline"
    FILE = "flux1-dev.safetensors"
    TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
    TEXT_FILES = {"text_encoder": CLIP_L, "text_encoder_2": T5}
    PARTS = {
        PREFIX + MARK: "a FLUX.1 transformer",
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight": "the first text encoder",
        "text_encoders.t5xxl.transformer.shared.weight": "the second text encoder",
        "vae.encoder.conv_in.weight": "the VAE",
    }
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder", "text_encoder_2")),
        *(f"{part}/tokenizer_config.json" for part in ("tokenizer", "tokenizer_2")),
        "scheduler/scheduler_config.json",
    )
    LIKE = (
        "single_(transformer_)?blocks_|double_blocks_|(^|_)transformer_blocks_[0-9]+_(attn_|norm1_|ff_)|"
        "transformer_x_embedder_|(img|txt|vector|guidance)_in_|te[123]_|text_encoder(_2)?_|clip_l|t5xxl"
    )
    UNLIKE = (
        "joint_blocks|attn[12]_|(down|up)_blocks|mid_block|put_blocks|clip_g|te_text|text_encoder_3|"
        "(?<!single_)transformer_blocks_([0-9]+_img_|19|[2-9][0-9])"
    )
    """There are 19 blocks of the first kind, and more in others' transformers."""

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.guided: bool = pipeline.transformer.config.guidance_embeds

    # -- single files -------------------------------------------------------------------------------------------------

    @classmethod
    def hub_id(cls, path: str) -> str:
        """dev where the file has a guidance embedding."""
        return DEV if _is_guided(files.tensor_names(path) or set()) else SCHNELL

    @classmethod
    def variant_problems(cls, base: Base, names: Collection[str]) -> list[str]:
        """dev's file with schnell's configuration, or the other way round."""
        path, guided = Path(base.config, "transformer", "config.json"), _is_guided(names)
        if not base.config or read_object(path).get("guidance_embeds", False) == guided:
            return []
        has = "has a guidance embedding, like dev" if guided else "has no guidance embedding, like schnell"
        return [f"base.config: {base.path} {has}, but {path} says the opposite; give the configuration of the same "
                "variant"]

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers.

        "double-blocks" and "single-blocks" are the attention and feed-forward layers of these blocks. None has
        `norm_out.linear`: hosts store its halves exchanged, and exchange a low-rank update but no magnitude.
        """
        both = ATTENTION + MLP
        return {
            "attention": ATTENTION,
            "attention-mlp": both,
            "double-blocks": [pattern for pattern in both if not pattern.startswith(SINGLE)],
            "single-blocks": [pattern for pattern in both if not pattern.startswith(DOUBLE)],
            "all": both + REST,
        }

    # -- texts --------------------------------------------------------------------------------------------------------

    @property
    def text_length(self) -> int:
        """Tokens of every caption for the transformer: as dev and schnell were trained, or fewer where the tokenizer
        has a lower limit."""
        return min(512 if self.guided else 256, self.tokenizer.model_max_length)

    @property
    def tokenizer(self) -> Any:
        """T5's: CLIP reads the first 77 tokens only, for the pooled text."""
        return self.pipeline.tokenizer_2

    @property
    def caption_tokens(self) -> int:
        """Tokens that T5 reads, without the end token."""
        return self.text_length - self.tokenizer.num_special_tokens_to_add()

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)` of T5; `pooled (n, dim)` of CLIP."""
        for name in self.text_encoders:
            self.present(name)
        hidden, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=self.device, max_sequence_length=self.text_length
        )
        return {"hidden": hidden, "pooled": pooled}

    # -- denoising ----------------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        transformer, pipeline, hidden = self.pipeline.transformer, self.pipeline, texts["hidden"]
        n, channels, height, width = noisy.shape
        noisy = noisy.to(transformer.dtype)
        like = {"device": noisy.device, "dtype": hidden.dtype}
        predicted = transformer(
            hidden_states=pipeline._pack_latents(noisy, n, channels, height, width),
            timestep=times.to(noisy.dtype) / self.process.count,
            guidance=torch.full((n,), TRAINED_GUIDANCE, device=noisy.device) if self.guided else None,
            pooled_projections=texts["pooled"],
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(hidden.shape[1], 3, **like),
            img_ids=pipeline._prepare_latent_image_ids(n, height // PATCH, width // PATCH, **like),
            return_dict=False,
        )[0]
        return self.unpacked(predicted, height * self.latent_factor, width * self.latent_factor)

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """`(n, tokens, 4 c)` as `(n, c, h, w)`; `height` and `width` in pixels."""
        return self.pipeline._unpack_latents(latents, height, width, self.latent_factor)

    def negative_prompt(self, given: str) -> str | None:
        """None by default: guidance is embedded."""
        return given or None

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """See the class."""
        if away:
            return {"true_cfg_scale": guidance, "guidance_scale": TRAINED_GUIDANCE}
        return {"true_cfg_scale": 1.0, "guidance_scale": guidance}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. kohya's names of the transformer are the original ones; of T5 it has `te3`, and
        OneTrainer `te2`."""
        names = {
            "transformer": transformer(),
            "text_encoder": clip(network, "lora_te1_", "clip_l", alone=True),
            "text_encoder_2": t5(network, "lora_te3_", "lora_te2_"),
        }
        return names[network]

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor."""
        if network == self.DENOISER:
            return transformer_place(path, kind, self.pipeline.transformer.inner_dim)
        return t5_place(path, kind) if network == "text_encoder_2" else Place(f"{path}.{kind}")

    def spellings(self, layer: str) -> list[Spelling]:
        """With ComfyUI's name for query, key and value of a single block without the rest of their matrix, and with
        those of XLabs' processors."""
        found = super().spellings(layer)
        fused = [s for s in found if s.rows and s.name.endswith("linear1") and not layer.endswith("proj_mlp")]
        processors = [replace(s, name=f"{block}.processor.{PROCESSORS[part]}") for s in found
                      for block, part in [split_block(s.name)] if part in PROCESSORS and not layer.endswith("proj_mlp")]
        return found + [replace(spelling, name=f"{spelling.name}_qkv") for spelling in fused] + processors

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "flux-1-dev/lora" if self.guided else "flux-1-schnell/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "flux1",
            "ss_v2": "False",
        }


# -- the original transformer -----------------------------------------------------------------------------------------


def split_block(name: str) -> tuple[str, str]:
    """A name such as `diffusion_model.double_blocks.0.img_attn.qkv` behind the block's number."""
    found = re.fullmatch(r"(.*(?:double|single)_blocks\.\d+)\.(.+)", name)
    return (found[1], found[2]) if found else ("", name)


def transformer_place(path: str, kind: str, width: int) -> Place:
    """Where the original checkpoints have a tensor of diffusers' transformer of this `width`, e.g. in
    `double_blocks.0.img_mlp.0.weight`."""
    blocks, _, rest = path.partition(".")
    number, _, inside = rest.partition(".")
    if blocks == "transformer_blocks":
        original = f"double_blocks.{number}.{IN_DOUBLE[inside]}"
    elif blocks == "single_transformer_blocks":
        original = f"single_blocks.{number}.{IN_SINGLE[inside]}"
    else:
        original = OUTSIDE[path]
    name = f"{original}.{'scale' if original.endswith('_norm') else kind}"
    if (rows := ROWS.get(path.rpartition(".")[2])) is not None:
        return Place(name, rows[0] * width, rows[1] * width)
    return Place(name, exchanged=path == "norm_out.linear")  # the original has the shift first, diffusers the scale


def _is_guided(names: Collection[str]) -> bool:
    """Whether a file's transformer has a guidance embedding, by the original name or diffusers'."""
    return any(name.endswith((GUIDANCE, GUIDANCE_IN_DIFFUSERS)) for name in names)
