"""Anima: Cosmos-Predict2's transformer, a Qwen3 text encoder with a conditioner behind it, the VAE of Qwen-Image.

Encoding and sampling are the blocks of diffusers' own `AnimaModularPipeline`. The conditioner asks the hidden states of
the text encoder with the tokens of a T5's tokenizer; what it answers is all that the transformer reads, filled up with
zeros. It is a text encoder here, frozen unless it is asked for, as in OneTrainer, which never trains it, and in
sd-scripts (`train_llm_adapter`) and ai-toolkit (`train_text_conditioner`). In files it is a part of the transformer.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from modules.families import base as protocol
from modules.families.parts import qwen3
from modules.families.parts.files import is_named
from modules.families.parts.flow import FlowModel
from modules.families.parts.index import MODULAR_INDEX
from modules.families.parts.loading import original_prefix
from modules.families.parts.names import DENOISER, Files, Place, transformer
from modules.families.parts.qwen_vae import MARK as VAE_MARK
from modules.families.parts.qwen_vae import QwenVae
from modules.families.parts.split import Source
from modules.preset.base_options import Base

ENCODER = "qwen3_06b"
"""ComfyUI's word for the text encoder."""

READ = (-1,)
"""The hidden states of the text encoder that are read."""

CONDITIONER, ADAPTER = "text_conditioner", "llm_adapter."
"""Its name in the pipeline, and the beginning of its names in files."""
MARK, ADAPTER_MARK = "blocks.0.adaln_modulation_mlp.1.weight", f"{ADAPTER}blocks.0.cross_attn.q_proj.weight"
"""A tensor of every transformer of this family, and of every conditioner, in files."""

BLOCKS = "transformer.transformer_blocks.*"
ATTENTION = [f"{BLOCKS}.attn[12].to_[qkv]", f"{BLOCKS}.attn[12].to_out.0", f"{CONDITIONER}.blocks.*_attn.?_proj"]
MLP = [f"{BLOCKS}.ff.net.*", f"{CONDITIONER}.blocks.*.mlp.[02]"]
REST = [
    f"{BLOCKS}.norm[123].linear_[12]",
    "transformer.patch_embed.proj",
    "transformer.time_embed.t_embedder.linear_[12]",
    "transformer.norm_out.linear_[12]",
    "transformer.proj_out",
    f"{CONDITIONER}.*_proj",
]

# Parts of names in diffusers' transformer, and in files; the longer ones first.
RENAMED = {
    "transformer_blocks.": "blocks.",
    "norm1.linear_": "adaln_modulation_self_attn.",
    "norm2.linear_": "adaln_modulation_cross_attn.",
    "norm3.linear_": "adaln_modulation_mlp.",
    "norm_out.linear_": "final_layer.adaln_modulation.",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "to_out.0": "output_proj",
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder": "t_embedder.1",
    "time_embed.norm": "t_embedding_norm",
    "proj_out": "final_layer.linear",
}


class Model(qwen3.Qwen3Reader, QwenVae, FlowModel):
    """A loaded Anima. `Samples.guidance` is the scale of classifier-free guidance; there is none at 1 or below."""

    computed_in = "bfloat16"
    TITLE = "an Anima model"
    HUB_ID = "circlestone-labs/Anima-Base-v1.0-Diffusers"
    PIPELINE = "AnimaModularPipeline"
    INDEX = MODULAR_INDEX
    FILE = "anima-base-v1.0.safetensors"
    TEXT_ENCODERS = (qwen3.ENCODER, CONDITIONER)
    TOKENIZERS = {CONDITIONER: "t5_tokenizer"}
    TEXT_FILES = {qwen3.ENCODER: qwen3.text_file("qwen_3_06b_base.safetensors")}
    PARTS = {
        DENOISER + MARK: "an Anima transformer",
        f"text_encoders.{ENCODER}.transformer.model.norm.weight": "the text encoder",
        DENOISER + ADAPTER_MARK: "the text conditioner",
        f"vae.{VAE_MARK}": "the VAE",
    }
    PARTIAL = True
    UNUSED = rf"{ADAPTER}.+|pos_embedder\..+|accum_.+|.*_extra_state"
    """The conditioner, and what Cosmos-Predict2 saves besides."""
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", qwen3.ENCODER, CONDITIONER)),
        "tokenizer/tokenizer_config.json",
        "t5_tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )
    ARGUMENTS = {"hidden": "prompt_embeds"}
    CALLED = r"\banima\b"
    FOREIGN_WIDTHS = (1536, 2432)
    LIKE = (
        "(^|_)blocks_[0-9]+_((self|cross)_attn_([qkv]_proj|output_proj|[qk]_norm)|adaln_modulation_|mlp_layer[12])|"
        "llm_adapter_|text_conditioner_|(^|_)transformer_blocks_[0-9]+_(attn[12]_|ff_net|norm[123]_linear_[12])|"
        "lora_te_layers_|qwen3_06b|text_encoders?_(transformer_)?(model_)?layers_"
    )
    UNLIKE = (
        "(double|single|joint|down|up)_(transformer_|stream_)?blocks|mid_block|put_blocks|te[123]_|clip_[lg]|t5xxl|"
        "text_model|text_encoder_[23]|refiner|_attn_(add|norm_added)|blocks_[0-9]+_(attn_|img_|txt_)|norm1_linear_(?![12](_|$))|qwen25|qwen3_[48]b"
    )

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.distilled: bool = pipeline.config.get("is_distilled", False)
        config = pipeline.transformer.config
        positions = max(size // patch for size, patch in zip(config.max_size, config.patch_size, strict=True))
        self.longest_side = positions * self.bucket_step
        """The end of its positions."""
        if config.concat_padding_mask:  # it wants torchvision for what is always zeros
            pipeline.transformer.register_to_config(concat_padding_mask=False)
            pipeline.transformer.patch_embed.register_forward_pre_hook(_with_padding_mask)

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def pipeline_class(cls, source: str = "") -> Any:
        """diffusers' class, made of its parts as its other pipelines are."""
        return _pipeline_class()

    @classmethod
    def as_named(cls, pipeline: Any, path: str, configured: bool = False) -> None:
        """Its name alone says that a base is distilled."""
        pipeline.register_to_config(is_distilled=is_named(path, "turbo"))

    @classmethod
    def read_folder(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of a folder or of the hub's model. All parts are read there, wherever its index says they came
        from."""
        return cls._part_by_part(base, dtype)

    @classmethod
    def parts_in(cls, names: Collection[str]) -> dict[str, str]:
        """`PARTS`, those of the transformer with the beginning that it has in a file with tensors of these names."""
        prefix = original_prefix(names, DENOISER + MARK)
        return {name if prefix is None else name.replace(DENOISER, prefix): words for name, words in cls.PARTS.items()}

    def _in_checkpoint(self, path: Path) -> dict[str, Source]:
        """With the beginning of the transformer's names for the conditioner's too."""
        found = super()._in_checkpoint(path)
        if CONDITIONER in found:
            start, source = found[self.DENOISER].whole or "", found[CONDITIONER]
            places = {name: replace(place, name=place.name.replace(DENOISER, start)) if isinstance(place, Place) else
                      place for name, place in source.places.items()}
            found[CONDITIONER] = replace(source, places=places, whole=start + ADAPTER)
        return found

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers."""
        attention, mlp = qwen3.targets(self.pipeline.text_encoder, READ)
        attention = ATTENTION + attention
        both = attention + MLP + mlp
        return {"attention": attention, "attention-mlp": both, "all": both + REST}

    # -- encoding and predicting --------------------------------------------------------------------------------------

    def message(self, caption: str) -> str:
        """The caption itself: there is no template."""
        return caption

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)` of the conditioner, one for each of T5's tokens, with zeros behind them, and `mask
        (n, tokens)`: which there are."""
        from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

        self.place_texts()
        found: Any = AnimaTextEncoderStep.encode_prompt(
            self.pipeline, list(captions), prepare_unconditional_embeds=False, max_sequence_length=self.text_length,
            device=self.device,
        )
        conditioner, mask = self.pipeline.text_conditioner, found["t5_attention_mask"]
        hidden = conditioner(
            source_hidden_states=found["qwen_prompt_embeds"].to(conditioner.dtype),
            target_input_ids=found["t5_input_ids"],
            target_attention_mask=mask,
            source_attention_mask=found["qwen_attention_mask"],
        )
        return {"hidden": hidden[:, : mask.shape[1]].to(self.pipeline.transformer.dtype), "mask": mask.bool()}

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        denoiser = self.pipeline.transformer
        noisy = noisy.to(denoiser.dtype).unsqueeze(2)  # one frame
        time = times.to(noisy.dtype) / self.process.count
        hidden = self._filled(texts["hidden"]).to(noisy.dtype)
        return denoiser(noisy, time, hidden, return_dict=False)[0].squeeze(2)

    def conditions(self, texts: protocol.Texts, negative: protocol.Texts | None) -> dict[str, Tensor]:
        """Encoded prompts as arguments of the pipeline."""
        given = {"prompt_embeds": texts, "negative_prompt_embeds": negative}
        return {name: self._filled(one["hidden"]) for name, one in given.items() if one is not None}

    def _filled(self, hidden: Tensor) -> Tensor:
        """With zeros up to the number of tokens that the transformer reads at least."""
        lacking = self.pipeline.text_conditioner.config.min_sequence_length - hidden.shape[1]
        return pad(hidden, (0, 0, 0, max(lacking, 0)))

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Without frames."""
        return latents.squeeze(2)

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """See the class."""
        return {"guidance_scale": max(guidance, 1.0)}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. ComfyUI knows the original ones alone."""
        if network == qwen3.ENCODER:
            return qwen3.names(ENCODER)
        usual = replace(transformer(), comfyui_reads_paths=False, comfyui_original=("",))
        if network == CONDITIONER:
            return replace(usual, dotted=(f"{CONDITIONER}.", f"transformer.{CONDITIONER}."), joined=())
        return replace(usual, dotted=(*usual.dotted, "transformer.transformer."))

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where ComfyUI's checkpoints have a tensor."""
        if network == qwen3.ENCODER:
            return qwen3.place(path, kind)
        return Place(f"{ADAPTER}{path}.{kind}") if network == CONDITIONER else transformer_place(path, kind)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture, in the words of sd-scripts and ai-toolkit."""
        return {
            "modelspec.architecture": "anima-preview/lora",
            "modelspec.implementation": "https://huggingface.co/circlestone-labs/Anima",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "anima",
            "ss_v2": "False",
        }


def transformer_place(path: str, kind: str) -> Place:
    """Where files have a tensor of diffusers' transformer."""
    for ours, theirs in RENAMED.items():
        path = path.replace(ours, theirs)
    return Place(f"{path}.{kind}")


def _with_padding_mask(module: Any, given: tuple[Tensor]) -> Tensor:
    """Latents with a channel that says which of them are padding: none."""
    (latents,) = given
    return torch.cat([latents, torch.zeros_like(latents[:, :1])], 1)


def _drawing() -> Any:
    """The steps of diffusers' pipeline from encoded prompts to latents, with the parts of the whole pipeline."""
    from diffusers import AnimaAutoBlocks
    from diffusers.modular_pipelines import SequentialPipelineBlocks
    from diffusers.modular_pipelines.anima import before_denoise, denoise

    class Drawing(SequentialPipelineBlocks):
        """See the function."""

        model_name: Any = "anima"
        block_classes = [before_denoise.AnimaTextInputStep, before_denoise.AnimaPrepareLatentsStep,
                         before_denoise.AnimaSetTimestepsStep, denoise.AnimaDenoiseStep]
        block_names = ["input", "prepare_latents", "set_timesteps", "denoise"]

        @property
        def expected_components(self) -> Any:
            """Those of the whole pipeline."""
            return AnimaAutoBlocks().expected_components

    return Drawing()


@cache
def _pipeline_class() -> Any:
    """diffusers' class, made of its own parts; it draws from encoded prompts."""
    logging.getLogger("diffusers.guiders").setLevel(logging.ERROR)  # that these are experimental
    from diffusers import (
        AnimaModularPipeline,
        AnimaTextConditioner,
        AutoencoderKLQwenImage,
        CosmosTransformer3DModel,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
    from transformers import Qwen2Tokenizer, Qwen3Model, T5Tokenizer

    class Pipeline(AnimaModularPipeline):
        """See the function."""

        def __init__(
            self, scheduler: FlowMatchEulerDiscreteScheduler, vae: AutoencoderKLQwenImage, text_encoder: Qwen3Model,
            tokenizer: Qwen2Tokenizer, t5_tokenizer: T5Tokenizer, text_conditioner: AnimaTextConditioner,
            transformer: CosmosTransformer3DModel,
        ):
            super().__init__(_drawing())
            self.update_components(
                scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, t5_tokenizer=t5_tokenizer,
                text_conditioner=text_conditioner, transformer=transformer,
            )

        def __call__(
            self, prompt_embeds: Tensor, guidance_scale: float, width: int, height: int, num_inference_steps: int,
            generator: torch.Generator, output_type: str, negative_prompt_embeds: Tensor | None = None,
        ) -> Any:
            """The latents, whatever `output_type` says."""
            self.guider.guidance_scale = guidance_scale
            latents: Any = super().__call__(
                prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds, width=width, height=height,
                num_inference_steps=num_inference_steps, generator=generator, output="latents",
            )
            return ImagePipelineOutput(latents)

    return Pipeline
