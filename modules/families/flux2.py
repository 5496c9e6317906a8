"""FLUX.2: Klein 4B and 9B, base and distilled, with a Qwen3 text encoder; dev with a Mistral text encoder.

Encoding and sampling are diffusers' own `Flux2KleinPipeline` and `Flux2Pipeline`. A latent is what the transformer gets
as one token: 2x2 latents of the VAE with 32 channels, normalised with the statistics of the VAE's batch norm.

The noise levels of training are shifted by the scheduler's line over the number of tokens, as in OneTrainer and
musubi-tuner. It is what the pipelines' `compute_empirical_mu` gives for 200 steps; samples, which have fewer, are
shifted further.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from modules.documents import is_folder, read_object
from modules.families import base as protocol
from modules.families.parts import files, qwen3
from modules.families.parts.components import component_class, read_index
from modules.families.parts.double_single import original_place
from modules.families.parts.editing import joined
from modules.families.parts.flow import FlowModel
from modules.families.parts.index import index_of
from modules.families.parts.names import DENOISER, GATED, Files, Place, text_name, transformer
from modules.families.parts.own_size import OwnSizeEditor
from modules.families.parts.split import Source, TextFile
from modules.preset.base_options import Base
from modules.tensorfile import read_header

DEV_PIPELINE = "Flux2Pipeline"
DEV, KLEIN = "black-forest-labs/FLUX.2-dev", "black-forest-labs/FLUX.2-klein-"

TRAINED_GUIDANCE = 1.0
"""Input of dev's guidance embedding in training: no guidance, as in other trainers."""

KLEIN_LAYERS, DEV_LAYERS = (9, 18, 27), (10, 20, 30)
"""Hidden states of the text encoders that the pipelines read."""

PROCESSORS = (["transformers", "PixtralProcessor"], ["transformers", "AutoProcessor"])
"""What dev's index has as tokenizer: one with a reader of pictures, which needs packages that captions do not."""

DOUBLE, SINGLE = "transformer.transformer_blocks.*", "transformer.single_transformer_blocks.*"
ATTENTION = [f"{DOUBLE}.attn.*", f"{SINGLE}.attn.*"]
MLP = [f"{DOUBLE}.ff*.linear_*"]
REST = ["transformer.*_embed*", "transformer.*_modulation*.linear", "transformer.proj_out"]

# Modules of diffusers' transformer in the naming of the original checkpoints.
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
IN_BLOCKS = {
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
}
IN_SINGLE = IN_BLOCKS | {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}
IN_DOUBLE = IN_BLOCKS | {"attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm"}

ORIGINAL_ONLY = ("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation.")
"""Beginnings of the paths that ComfyUI has only the original names of."""

WIDTH_4B = 3072
"""Of the smallest transformer."""

PREFIX = DENOISER
"""Of the transformer in full checkpoints; transformer-only files have it or not."""

MARK = "double_stream_modulation_img.lin.weight"
"""A tensor that every transformer of this family has, in the original naming."""

INPUTS = ("img_in.weight", "x_embedder.weight")
"""Ends of names of the transformer's first layer, in the original naming and in diffusers'."""
KLEIN_WIDTHS = {3072: "4B", 4096: "9B"}
GUIDANCE = ("guidance_in.in_layer.weight", "time_guidance_embed.guidance_embedder.linear_1.weight")
"""A tensor that dev has and Klein has not."""

WORDS = ("qwen3_4b", "qwen3_8b", "mistral3_24b")
"""ComfyUI's for the text encoders of Klein 4B and 9B, and of dev."""
TEXT_MARK = "text_encoders.qwen3_4b.transformer.model.embed_tokens.weight"

SIDES = {"quant_conv": "encoder", "post_quant_conv": "decoder"}
"""Where the VAE's convolutions around the latents are in the original."""
COUNTER = "bn.num_batches_tracked"
"""Of the VAE's batch norm: nothing depends on it."""


TEXT_FILE = TextFile(
    "the text encoder's file (qwen_3_4b.safetensors for Klein 4B, qwen_3_8b.safetensors for 9B, "
    "mistral_3_small_flux2_bf16.safetensors for dev)", "model.layers.0.self_attn.q_proj.weight", text_name)


class Model(qwen3.Qwen3Reader, OwnSizeEditor, FlowModel):
    """A loaded FLUX.2 base: dev where its transformer has a guidance embedding, else Klein.

    `Samples.guidance` is the input of dev's guidance embedding (2.5 to 4 is usual), and of Klein base the scale of
    classifier-free guidance (4 is usual). Distilled Klein has none.
    """

    computed_in = "bfloat16"
    FOLD, TOKEN = 2, 1
    THINKING = False
    EDITORS = {"Flux2KleinPipeline": None, DEV_PIPELINE: None}
    EXAMPLE = KLEIN + "base-9B"
    ONLY_EDITS = False
    TITLE = "a FLUX.2 model"
    HUB_ID = KLEIN + "base-9B"
    PIPELINE = "Flux2KleinPipeline"
    TEXT_ENCODERS = (qwen3.ENCODER,)
    FILE = "flux-2-klein-base-4b.safetensors"
    TEXT_FILES = {qwen3.ENCODER: TEXT_FILE}
    PARTS = {PREFIX + MARK: "a FLUX.2 transformer", TEXT_MARK: "the text encoder", "vae.bn.running_mean": "the VAE"}
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", qwen3.ENCODER)),
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )
    SHARES_NAMES = True
    CALLED = r"flux[-_. ]?2|klein"
    PROPORTIONS = {"linear1$": 9, r"(img|txt)_mlp[._]0$": 6}
    LIKE = (
        "single_(transformer_)?blocks_[0-9]+_(linear[12]|attn_to_(qkv_mlp|out)|norm_(query|key))|double_blocks_|"
        "(^|_)transformer_blocks_[0-9]+_(attn_|ff(_context)?_linear_)|_stream_modulation|time_guidance_embed|"
        "(img|txt|time|guidance)_in_|transformer_(x|context)_embedder|qwen3_[48]b|mistral3_24b|"
        "(^|_)layers_[0-9]+_(self_attn_[qkvo]_proj|mlp_(gate|up|down)_proj)"
    )
    UNLIKE = (
        "joint_blocks|attn[12]_|(down|up)_blocks_|mid_block|put_blocks|clip_|qwen25|qwen3vl|qwen3_06b|blocks_[0-9]+_(self|cross)_attn_|te_text|te1_|text_model|text_encoder_[23]|"
        "single_transformer_blocks_[0-9]+_(attn_to_[qkv]_|proj_|norm_linear)|t5xxl|double_blocks_([89]|[1-9][0-9])_|transformer_blocks_([89]|[1-3][0-9])_attn_(add|to_(add|out_0|[qkv]_))|"
        "transformer_blocks_[0-9]+_(img|txt)_mlp_|"
        "(img|txt)_mod_|blocks_[0-9]+_modulation_|vector_in_|norm1_(context_)?linear|ff_(context_)?net|proj_mlp|"
        "time_text_embed|distilled_guidance|noise_refiner|context_refiner|layers_[0-9]+_(attention|feed_forward)|"
        f"{GATED}"
    )

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.guided: bool = pipeline.transformer.config.guidance_embeds
        self.distilled: bool = bool(pipeline.config.get("is_distilled", False))
        if self.guided:
            pipeline.text_encoder.model.vision_tower = None
            pipeline.text_encoder.model.multi_modal_projector = None
        qwen3.drop_unread(pipeline.text_encoder, self.language_model, DEV_LAYERS if self.guided else KLEIN_LAYERS)

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def pipeline_name(cls, source: str) -> str:
        """dev's where the index says so."""
        if not source:
            return cls.PIPELINE
        path = Path(source)
        index = read_object(index_of(path)) if is_folder(path) else cls.pipeline_class().load_config(source)
        return DEV_PIPELINE if index.get("_class_name") == DEV_PIPELINE else cls.PIPELINE

    @classmethod
    def index(cls, source: str) -> dict[str, Any]:
        """With the tokenizer alone where dev's has a processor of texts and pictures."""
        found = read_index(cls.pipeline_class(source), source, ("tokenizer",))
        if found.get("tokenizer") in PROCESSORS:
            found["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
        component_class(found.get("tokenizer"), "tokenizer", f"{Path(source) / files.INDEX}")
        return found

    @classmethod
    def read_folder(cls, base: Base, dtype: torch.dtype) -> Any:
        """Part by part: diffusers would want the processor of the folder's own index."""
        return cls._part_by_part(base, dtype)

    @classmethod
    def hub_id(cls, path: str) -> str:
        """The model of the file's width. Distilled Klein where the file's name says Klein and not base: the tensors
        have the same names and shapes."""
        width = next((entry.shape[0] for name, entry in read_header(Path(path)).tensors.items()
                      if name.endswith(INPUTS) and entry.shape), 0)
        if width not in KLEIN_WIDTHS:
            return DEV
        return KLEIN + ("" if _is_distilled(path) else "base-") + KLEIN_WIDTHS[width]

    @classmethod
    def as_named(cls, pipeline: Any, path: str, configured: bool = False) -> None:
        """A file of Klein's is distilled or not by its name, unless a configuration is given for it."""
        if not configured and Path(path).is_file() and files.is_named(path, "klein"):
            pipeline.register_to_config(is_distilled=_is_distilled(path))

    @classmethod
    def parts_in(cls, names: Collection[str]) -> dict[str, str]:
        """With the mark of the text encoder that the file has, if any."""
        start, _, rest = TEXT_MARK.partition("qwen3_4b")
        found = next((word for word in WORDS if start + word + rest in names), "qwen3_4b")
        return {name.replace("qwen3_4b", found): words for name, words in cls.PARTS.items()}

    @classmethod
    def variant_problems(cls, base: Base, names: Collection[str]) -> list[str]:
        """dev's file with Klein's configuration, or the other way round."""
        path, guided = Path(base.config, "transformer", "config.json"), any(name.endswith(GUIDANCE) for name in names)
        if not base.config or read_object(path).get("guidance_embeds", True) == guided:
            return []
        has = "has a guidance embedding, like dev" if guided else "has no guidance embedding, like Klein"
        return [f"base.config: {base.path} {has}, but {path} says the opposite; give the configuration of the same "
                "variant"]

    def sources(self, base: Base) -> dict[str, Source]:
        """A file with the VAE has a counter or not, and the convolutions around the latents beside the encoder and the
        decoder, or in them."""
        found = super().sources(base)
        if "vae" in found:
            names = read_header(found["vae"].path).tensors
            places = {name: _in_vae(place, names) for name, place in found["vae"].places.items()}
            found["vae"] = replace(found["vae"], places=places)
        return found

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers.

        In single blocks the attention's layers have the feed-forward network in them. "double-blocks" and
        "single-blocks" are the attention and feed-forward layers of these blocks. None has `norm_out.linear`: hosts
        store its halves exchanged, and exchange a low-rank update but no magnitude.
        """
        read = DEV_LAYERS if self.guided else KLEIN_LAYERS
        attention, mlp = qwen3.targets(self.language_model, read)
        texts = attention + mlp
        return {
            "attention": ATTENTION + attention,
            "attention-mlp": ATTENTION + MLP + texts,
            "double-blocks": [f"{DOUBLE}.attn.*", *MLP, *texts],
            "single-blocks": [f"{SINGLE}.attn.*", *texts],
            "all": ATTENTION + MLP + REST + texts,
        }

    @property
    def language_model(self) -> Any:
        """The text encoder without what it is wrapped in."""
        encoder: Any = self.networks[qwen3.ENCODER]
        return encoder.model.language_model if self.guided else encoder.model

    # -- latents ------------------------------------------------------------------------------------------------------

    def _latent_scale(self) -> tuple[Tensor, Tensor]:
        """By the statistics of the VAE's batch norm, `(1, c, 1, 1)`."""
        vae = self.pipeline.vae
        found = (vae.bn.running_mean, vae.bn.running_var)
        mean, variance = (each.to(self.device, torch.float32).view(1, -1, 1, 1) for each in found)
        return mean, (variance + vae.config.batch_norm_eps).rsqrt()

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """dev's pipeline gives tokens `(n, tokens, c)`, Klein's what the VAE decodes."""
        if self.guided:
            return grid(latents, height // self.latent_factor, width // self.latent_factor)
        shift, scale = self._latent_scale()
        return (pixel_unshuffle(latents.float(), self.FOLD) - shift) * scale

    # -- reference pictures -------------------------------------------------------------------------------------------

    @classmethod
    def edit_pipeline(cls, base: Base) -> str:
        """Every base edits too."""
        return cls.pipeline_name(cls.source(base))

    # -- texts --------------------------------------------------------------------------------------------------------

    def message(self, caption: str) -> str:
        """dev's has a system message in front."""
        if not self.guided:
            return super().message(caption)
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        (said,) = format_input([caption], self.pipeline.system_message)
        return self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=False)

    def encode_texts(self, captions: Sequence[protocol.Caption]) -> protocol.Texts:
        """`hidden (n, 512, 3 dim)`: three layers of the text encoder."""
        self.place_texts()
        hidden, _ = self.pipeline.encode_prompt([*map(protocol.text_of, captions)], device=self.device)
        return {"hidden": hidden}

    # -- denoising ----------------------------------------------------------------------------------------------------

    def predict(
        self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor, references: Sequence[Tensor] = ()
    ) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        denoiser, pipeline, hidden = self.pipeline.transformer, self.pipeline, texts["hidden"]
        noisy, ids = noisy.to(denoiser.dtype), pipeline._prepare_latent_ids(noisy)
        if references:
            own = pipeline._prepare_image_ids([one[:1] for one in references])
            ids = torch.cat([ids, own.repeat(len(noisy), 1, 1)], 1)
        predicted = denoiser(
            hidden_states=joined(pipeline._pack_latents(noisy),
                                 [pipeline._pack_latents(one.to(noisy.dtype)) for one in references]),
            timestep=times.to(noisy.dtype) / self.process.count,
            guidance=torch.full((len(noisy),), TRAINED_GUIDANCE, device=noisy.device) if self.guided else None,
            encoder_hidden_states=hidden,
            txt_ids=pipeline._prepare_text_ids(hidden).to(noisy.device),
            img_ids=ids.to(noisy.device),
            return_dict=False,
        )[0]
        height, width = noisy.shape[2:]
        return grid(predicted[:, : height * width], height, width)

    def negative_prompt(self, given: str) -> str | None:
        """None where guidance is distilled."""
        return None if self.guided or self.distilled else given

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """Distilled Klein has none, and its pipeline warns of any other."""
        return {"guidance_scale": 1.0 if self.distilled else guidance}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. kohya's names of the transformer are the original ones."""
        if network == self.DENOISER:
            return replace(transformer(), comfyui_original=ORIGINAL_ONLY)
        small, large, dev = WORDS
        return qwen3.names(dev if self.guided else large if self.pipeline.transformer.inner_dim > WIDTH_4B else small)

    def split(self, layer: str) -> tuple[str, str, Files]:
        """dev's text encoder without the level that its class has for the language model."""
        network, path, names = super().split(layer)
        return network, path if network == self.DENOISER else text_name(path), names

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor."""
        if network == self.DENOISER:
            return transformer_place(path, kind, self.pipeline.transformer.inner_dim)
        return qwen3.place(path, kind)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture, in the words of musubi-tuner and ai-toolkit."""
        size = "9b" if self.pipeline.transformer.inner_dim > WIDTH_4B else "4b"
        kind, version = ("dev", "flux2") if self.guided else (f"klein-{size}", f"flux2_klein_{size}")
        return {
            "modelspec.architecture": f"Flux.2-{kind}/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": version,
            "ss_v2": "False",
        }


def _in_vae(place: Any, names: Collection[str]) -> Any:
    """The place of a tensor of the VAE in a file with these names, which may lack the counter, and have the
    convolutions around the latents in the encoder and the decoder."""
    if place.name in names:
        return place
    if place.name.endswith(COUNTER):
        return "zeros"
    name = re.sub(r"(?<![a-z_])(quant_conv|post_quant_conv)", lambda found: f"{SIDES[found[1]]}.{found[1]}", place.name)
    return replace(place, name=name)


def grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """`(n, tokens, c)` as `(n, c, h, w)`."""
    return tokens.mT.unflatten(2, (height, width))


def transformer_place(path: str, kind: str, width: int) -> Place:
    """Where the original checkpoints have a tensor of diffusers' transformer of this `width`, e.g. in
    `double_blocks.0.img_mlp.0.weight`."""
    return original_place(path, kind, width, OUTSIDE, IN_DOUBLE, IN_SINGLE)


def _is_distilled(path: str) -> bool:
    """Whether the file's name is that of distilled Klein."""
    return files.is_named(path, "klein") and not files.is_named(path, "base")
