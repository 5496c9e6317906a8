"""The families' rows in the tests of what every family promises: their tiny bases, and what differs between them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import tiny_sd15
from tests.families import (
    single_file,
    single_file_anima,
    single_file_chroma,
    single_file_flux,
    single_file_flux2,
    single_file_krea2,
    single_file_qwenimage,
    single_file_qwenimage21,
    single_file_sd3,
    single_file_zimage,
)

SIZE = (32, 16)
"""Height and width of pictures, in pixels; multiples of every tiny model's bucket step."""


def unet_call(model: Any, args: tuple, named: dict, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments `noisy` and `times` and the result of `predict` in a pipeline's call of its UNet."""
    noisy, time = args
    return noisy, time.double().expand(len(noisy)), output


def packed_call(model: Any, args: tuple, named: dict, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a transformer that gets 2 x 2 latents as one token."""
    noisy, result = (model.unpacked(t, *SIZE) for t in (named["hidden_states"], output))
    return noisy, model.pipeline.current_timestep.double().expand(len(noisy)), result


def joint_call(model: Any, args: tuple, named: dict, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a transformer that is called by names alone."""
    return named["hidden_states"], named["timestep"].double(), output


def listed_call(model: Any, args: tuple, named: dict, output: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a transformer that gets lists of pictures with frames, and predicts the other way round."""
    scheduler = model.pipeline.scheduler
    noisy, result = (torch.stack(found).squeeze(2) for found in (args[0], output))
    time = scheduler.timesteps[scheduler.begin_index if scheduler.step_index is None else scheduler.step_index]
    return noisy, time.double().expand(len(noisy)), -result


def token_call(model: Any, args: tuple, named: dict, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a transformer that gets each latent as one token."""
    side = [length // model.latent_factor for length in SIZE]
    noisy, result = (tokens.mT.unflatten(2, side) for tokens in (named["hidden_states"], output))
    return noisy, model.pipeline._current_timestep.double().expand(len(noisy)), result


def film_call(model: Any, args: tuple, named: dict, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `packed_call` of a pipeline whose latents are those of a film of one frame."""
    noisy, times, result = packed_call(model, args, named, output)
    return noisy.squeeze(2), times, result.squeeze(2)


def joined_call(model: Any, args: tuple, named: dict, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a transformer that gets each latent as one token, and gives back tokens of text before them."""
    (_, *side), noisy = named["img_shapes"][0][-1], named["hidden_states"]
    noisy, result = (tokens[:, -noisy.shape[1] :].mT.unflatten(2, side) for tokens in (noisy, output))
    return noisy, model.pipeline.current_timestep.double().expand(len(noisy)), result


def frame_call(model: Any, args: tuple, named: dict, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a transformer that gets films of one frame, with times from 0 to 1."""
    return named["hidden_states"].squeeze(2), model.process.count * named["timestep"].double(), output.squeeze(2)


def scaled(pipeline: Any, latents: Tensor, is_spread: bool) -> Tensor:
    """Latents of the VAE, or their standard deviations if `is_spread`, as the pipeline scales them."""
    config = pipeline.vae.config
    return (latents - (0 if is_spread else config.shift_factor or 0)) * config.scaling_factor


def by_channel(pipeline: Any, latents: Tensor, is_spread: bool) -> Tensor:
    """The same by the mean and the standard deviation of each channel."""
    config = pipeline.vae.config
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
    return (latents - (0 if is_spread else mean)) / std


def normalised(pipeline: Any, latents: Tensor, is_spread: bool) -> Tensor:
    """The same by the statistics of a batch norm over 2 x 2 latents."""
    norm = pipeline.vae.bn
    mean, variance = (each.view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var))
    folded = pipeline._patchify_latents(latents)
    return (folded - (0 if is_spread else mean)) / torch.sqrt(variance + pipeline.vae.config.batch_norm_eps)


@dataclass(frozen=True)
class Row:
    """One family, or one kind of its bases."""

    family: str
    make_pair: Callable[[Path], tuple[Path, Path]]
    """Writes a folder in diffusers layout and a single checkpoint of the same weights; their paths."""
    newcomers: dict[str, str]
    """Named sets of layers, growing, and a layer that each has and the one before it has not."""
    joining: dict[str, int]
    """Text encoders, and how many of their layers are in the set "attention"."""
    packed: str
    """A layer of the denoiser that quantisation packs."""
    call: Callable[[Any, tuple, dict, Tensor], tuple[Tensor, Tensor, Tensor]] = unet_call
    never: tuple[str, ...] = ()
    """Patterns of the denoiser's layers that no named set has."""
    unreachable: tuple[str, ...] = ()
    """Patterns of layers that files for diffusers cannot hold."""
    scaled: Callable[[Any, Tensor, bool], Tensor] = scaled
    guidance: float = 4.0
    """Of samples that are compared with predictions."""
    film: bool = False
    """Whether the VAE reads films."""
    prompt_first: bool = False
    """Whether the pipeline's call for both prompts has the negative one behind the other."""
    one_length: bool = False
    """Whether the pipeline pads both prompts to the longer one."""


UNET_SETS = {
    "attention": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "attention-mlp": "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "attention-mlp-conv": "unet.down_blocks.0.downsamplers.0.conv",
    "all": "unet.conv_in",
}
PROJ_IN, FEED = "down_blocks.1.attentions.0.proj_in", "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"

FLUX_SETS = {
    "attention": "transformer.transformer_blocks.0.attn.add_q_proj",
    "attention-mlp": "transformer.single_transformer_blocks.0.proj_out",
    "all": "transformer.time_text_embed.guidance_embedder.linear_1",
}
T5, ONE = "text_encoder_2.*", "transformer_blocks.0.attn.to_q"

CHROMA_SETS = {**FLUX_SETS, "all": "transformer.context_embedder"}

SD3_SETS = {
    "attention": "transformer.transformer_blocks.0.attn2.to_q",
    "attention-mlp": "transformer.transformer_blocks.0.ff_context.net.2",
    "all": "transformer.transformer_blocks.1.norm1_context.linear",
}
SD3_PACKED = "transformer_blocks.0.attn.add_q_proj"
LAST_BLOCK = "transformer.transformer_blocks.2"
SD3_NEVER = ("transformer.norm_out.linear", f"{LAST_BLOCK}.norm1_context.linear", f"{LAST_BLOCK}.attn.add_q_proj")
CLIPS = {"text_encoder": 8, "text_encoder_2": 8}

ZIMAGE_SETS = {
    "attention": "transformer.context_refiner.0.attention.to_q",
    "attention-mlp": "transformer.layers.0.feed_forward.w2",
    "all": "transformer.all_final_layer.2-1.adaLN_modulation.1",
}

FLUX2_SETS = {
    "attention": "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    "attention-mlp": "transformer.transformer_blocks.0.ff_context.linear_in",
    "all": "transformer.double_stream_modulation_txt.linear",
}
FLUX2 = {"call": token_call, "never": ("transformer.norm_out.linear",), "unreachable": ("text_encoder.*",),
         "scaled": normalised}

QWEN_UNREAD = tuple(f"transformer.transformer_blocks.2.{layer}"
                    for layer in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.*"))
QWEN_SETS = {
    "attention": "transformer.transformer_blocks.0.attn.add_q_proj",
    "attention-mlp": "transformer.transformer_blocks.0.txt_mlp.net.2",
    "all": "transformer.transformer_blocks.1.img_mod.1",
}

KREA2_SETS = {
    "attention": "transformer.text_fusion.layerwise_blocks.0.attn.to_gate",
    "attention-mlp": "transformer.transformer_blocks.0.ff.down",
    "all": "transformer.text_fusion.projector",
}
QWEN21_SETS = {
    "attention": "transformer.transformer_blocks.0.attn.to_k",
    "attention-mlp": "transformer.transformer_blocks.1.img_mlp.gate_layer",
    "all": "transformer.modulation.1",
}
ANIMA_SETS = {
    "attention": "transformer.transformer_blocks.0.attn2.to_k",
    "attention-mlp": "transformer.transformer_blocks.1.ff.net.2",
    "all": "transformer.transformer_blocks.0.norm3.linear_2",
}

FAMILIES = {
    "sdxl": Row("sdxl", single_file.make_pair, UNET_SETS, {"text_encoder": 8, "text_encoder_2": 8}, PROJ_IN),
    "sd1": Row("sd15", tiny_sd15.make_pair, UNET_SETS, {"text_encoder": 8}, FEED),
    "sd2": Row("sd15", lambda path: tiny_sd15.make_pair(path, True), UNET_SETS, {"text_encoder": 8}, PROJ_IN),
    "flux": Row("flux", single_file_flux.make_pair, FLUX_SETS, {"text_encoder": 8, "text_encoder_2": 8}, ONE,
                packed_call, ("transformer.norm_out.linear",), (T5,)),
    "chroma": Row("chroma", single_file_chroma.make_pair, CHROMA_SETS, {"text_encoder": 8}, ONE, packed_call,
                  ("transformer.distilled_guidance_layer.*",), ("text_encoder.*",)),
    "sd3": Row("sd3", single_file_sd3.make_pair, SD3_SETS, {**CLIPS, "text_encoder_3": 8}, SD3_PACKED,
               joint_call, SD3_NEVER, ("text_encoder_3.*",)),
    "sd3 without t5": Row("sd3", lambda path: single_file_sd3.make_pair(path, False), SD3_SETS, CLIPS, SD3_PACKED,
                          joint_call, SD3_NEVER),
    "flux2 klein": Row("flux2", single_file_flux2.make_pair, FLUX2_SETS, {"text_encoder": 27 * 4}, ONE, **FLUX2),
    "flux2 dev": Row("flux2", lambda path: single_file_flux2.make_pair(path, "dev"), FLUX2_SETS,
                     {"text_encoder": 30 * 4}, ONE, guidance=1.0, **FLUX2),
    "zimage": Row("zimage", single_file_zimage.make_pair, ZIMAGE_SETS, {"text_encoder": 8}, "layers.0.attention.to_q",
                  listed_call, unreachable=("text_encoder.*",), prompt_first=True),
    "qwenimage": Row("qwenimage", single_file_qwenimage.make_pair, QWEN_SETS, {"text_encoder": 8}, ONE, film_call,
                     QWEN_UNREAD, ("text_encoder.*",), by_channel, film=True),
    "krea2": Row("krea2", single_file_krea2.make_pair, KREA2_SETS, {"text_encoder": 8}, ONE, film_call, (),
                 ("text_encoder.*",), by_channel, film=True, prompt_first=True, one_length=True),
    "qwenimage21": Row("qwenimage21", single_file_qwenimage21.make_pair, QWEN21_SETS, {"text_encoder": 8}, ONE,
                       joined_call, unreachable=("text_encoder.*",), scaled=by_channel, film=True),
    "anima": Row("anima", single_file_anima.make_pair, ANIMA_SETS, {"text_encoder": 8, "text_conditioner": 8},
                 "transformer_blocks.0.attn1.to_q", frame_call, unreachable=("text_encoder.*",), scaled=by_channel,
                 film=True),
}
