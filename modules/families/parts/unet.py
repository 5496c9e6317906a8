"""UNets of the Stable Diffusion kind: noise in discrete steps, sets of layers, names in original checkpoints."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from modules.families.base import Reading
from modules.families.parts.files import tensor_names
from modules.families.parts.long_texts import tokens_of
from modules.families.parts.names import Place, Spelling
from modules.families.parts.pipeline import PipelineModel
from modules.objectives import Diffusion
from modules.preset.base_options import Base
from modules.preset.data_options import CHUNK

ATTENTION = ["unet.*.attn[12].to_[qkv]", "unet.*.attn[12].to_out.0", "text_encoder*.self_attn.*"]
MLP = ["unet.*.ff.net.0.proj", "unet.*.ff.net.2", "unet.*.proj_in", "unet.*.proj_out", "text_encoder*.mlp.fc[12]"]
CONV = ["unet.*.resnets.*.conv*", "unet.*.resnets.*.time_emb_proj", "unet.*samplers.0.conv"]
REST = ["unet.conv_in", "unet.conv_out", "unet.*_embedding.linear_[12]", "text_encoder*.text_projection"]

ANY_UNET = r"(down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks)_(attentions|resnets|\d)"
"""In names with underscores for dots."""


class UNetModel(PipelineModel):
    """A pipeline with a UNet for diffusion in discrete steps."""

    DENOISER = "unet"
    UNUSED = ".*"
    """Published checkpoints have left-overs of their training."""
    reads_chunks = True
    computed_in = "float16"

    def __init__(self, pipeline: Any, device: torch.device):
        from diffusers import DDPMScheduler

        super().__init__(pipeline, device)
        self.bucket_step = self.latent_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        if pipeline.scheduler.config.get("rescale_betas_zero_snr"):
            pipeline.scheduler = from_pure_noise(pipeline.scheduler)
        schedule: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.process = Diffusion(schedule.alphas_cumprod, pipeline.scheduler.config.prediction_type)

    @classmethod
    def read_file(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of a single checkpoint. One trained on v prediction may have an empty tensor as a mark,
        which no configuration folder has."""
        pipeline = super().read_file(base, dtype)
        names = tensor_names(base.path) or set()
        if "v_pred" in names:
            changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in names}
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
        return pipeline

    # -- captions -----------------------------------------------------------------------------------------------------

    def use_reading(self, reading: Reading) -> list[str]:
        """Of CLIP encoders: all of it applies, but for layers that the text encoder does not have."""
        encoder: Any = self.networks["text_encoder"]
        layers = encoder.config.num_hidden_layers
        if reading.layer > layers:
            raise ValueError(f"base.clip_skip: {reading.layer}, but this base's text encoder has {layers} layers; give "
                             f"at most {layers}, or null for the last one")
        self.reading = reading
        return []

    @property
    def chunk_tokens(self) -> int:
        """As many as CLIP reads."""
        return super().caption_tokens

    @property
    def caption_tokens(self) -> int:
        """Tokens of all chunks, without start and end tokens."""
        return self.reading.tokens // CHUNK * self.chunk_tokens

    def token_starts(self, caption: str) -> list[int]:
        """The character at which each token begins; brackets that weigh words have none."""
        return [token.start for token in tokens_of(self.tokenizer, caption, self.reading.emphasis)]

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers."""
        return {
            "attention": ATTENTION,
            "attention-mlp": ATTENTION + MLP,
            "attention-mlp-conv": ATTENTION + MLP + CONV,
            "all": ATTENTION + MLP + CONV + REST,
        }

    def use_prediction(self, prediction: str) -> None:
        """Use the UNet's output as this, "epsilon" or "v_prediction"."""
        scheduler = self.pipeline.scheduler
        self.pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction)
        self.process = replace(self.process, prediction=prediction)

    def use_zero_terminal_snr(self) -> None:
        """Pure noise in the last step, in training and in samples."""
        self.pipeline.scheduler = from_pure_noise(self.pipeline.scheduler)
        self.process = self.process.with_zero_terminal_snr()

    def unet_place(self, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor of the UNet."""
        config = self.pipeline.unet.config
        return Place(f"{ldm_name(path, config.layers_per_block, config.up_block_types)}.{kind}")

    def spellings(self, layer: str) -> list[Spelling]:
        """With the names of the first adapters in diffusers, which replaced the attention's processor."""
        found = super().spellings(layer)
        parent, attention, part = layer.partition(".attn")
        if attention and layer.startswith(f"{self.DENOISER}."):
            name = f"{parent}{attention}{part[0]}.processor{part[1:].removesuffix('.0')}"
            names = [name] + ([name.replace(".processor", "")] if part.endswith(".0") else [])
            found += [Spelling(start) for name in names for start in (name, name.removeprefix(f"{self.DENOISER}."))]
        return found


def from_pure_noise(scheduler: Any) -> Any:
    """The scheduler with zero terminal SNR: its last step is pure noise, and sampling begins there. Configurations of
    such bases often keep SDXL's "leading" spacing, which begins some steps later, in pictures that are not all noise.

    A scheduler without such a step, as PNDM, is replaced by Euler's.
    """
    from diffusers import EulerDiscreteScheduler

    has_it = "rescale_betas_zero_snr" in inspect.signature(type(scheduler).__init__).parameters
    kind: Any = type(scheduler) if has_it else EulerDiscreteScheduler
    return kind.from_config(scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def prediction_word(prediction: str) -> str:
    """Its name in `modelspec.prediction_type`."""
    return "v" if prediction == "v_prediction" else prediction


def ldm_name(path: str, layers_per_block: int, up_blocks: Sequence[str]) -> str:
    """A layer of diffusers' UNet in the naming of the original checkpoints, e.g. `input_blocks.4.1.proj_in`.

    `up_blocks`: the class names of the up blocks; an upsampler's number depends on whether its block has attention.
    """
    whole = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    if path in whole:
        return whole[path]
    side, *parts = path.split(".")
    if side == "mid_block":
        kind, number, *rest = parts
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_within(kind, rest)}"
    block, kind, number, *rest = parts
    first = int(block) * (layers_per_block + 1)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block + 1}.0.op"
        return f"input_blocks.{first + 1 + int(number)}.{int(kind == 'attentions')}.{_within(kind, rest)}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers_per_block}.{1 + ('CrossAttn' in up_blocks[int(block)])}.conv"
    return f"output_blocks.{first + int(number)}.{int(kind == 'attentions')}.{_within(kind, rest)}"


def _within(kind: str, rest: list[str]) -> str:
    """Names inside a residual block differ; inside attention blocks they are the same."""
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return ".".join(rest) if kind == "attentions" else resnet[rest[0]]
