"""Stable Diffusion XL: two CLIP text encoders, a UNet conditioned on text, pooled text and picture sizes, a VAE.

Loading, encoding and sampling are diffusers' own `StableDiffusionXLPipeline`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from modules import quant
from modules.families import base as protocol
from modules.objectives import Diffusion
from modules.preset.schema import Base

HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"
INDEX = "model_index.json"
CONFIGS = [f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")]
CONFIGS += [f"{part}/tokenizer_config.json" for part in ("tokenizer", "tokenizer_2")]
CONFIGS += ["scheduler/scheduler_config.json"]

CHECKPOINT_PARTS = {
    "model.diffusion_model.label_emb.0.0.weight": "an SDXL UNet",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": "the first text encoder",
    "conditioner.embedders.1.model.positional_embedding": "the second text encoder",
    "first_stage_model.encoder.conv_in.weight": "the VAE",
}
"""One tensor of each part of a single-file checkpoint, in the original naming."""

ATTENTION = ["unet.*.attn[12].to_[qkv]", "unet.*.attn[12].to_out.0", "text_encoder*.self_attn.*"]
MLP = ["unet.*.ff.net.0.proj", "unet.*.ff.net.2", "unet.*.proj_in", "unet.*.proj_out", "text_encoder*.mlp.fc[12]"]
CONV = ["unet.*.resnets.*.conv*", "unet.*.resnets.*.time_emb_proj", "unet.*samplers.0.conv"]
REST = ["unet.conv_in", "unet.conv_out", "unet.*_embedding.linear_[12]", "text_encoder_2.text_projection"]


class Model:
    """A loaded SDXL base; see `families.base.Model` for what each part answers."""

    def __init__(self, pipeline: Any, device: torch.device):
        from diffusers import DDPMScheduler

        self.pipeline, self.device = pipeline, device
        self.networks: dict[str, nn.Module] = {
            "unet": pipeline.unet,
            "text_encoder": pipeline.text_encoder,
            "text_encoder_2": pipeline.text_encoder_2,
        }
        vae_blocks = len(pipeline.vae.config.block_out_channels)
        self.latent_factor = 2 ** (vae_blocks - 1)
        self.latent_channels: int = pipeline.vae.config.latent_channels
        self.bucket_step = self.latent_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        schedule: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.process = Diffusion(schedule.alphas_cumprod, pipeline.scheduler.config.prediction_type)
        self._released: set[str] = set()

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def problems(cls, base: Base) -> list[str]:
        """What keeps `load` from working, as sentences."""
        found = protocol.base_problems(base, INDEX, HUB_ID)
        return found if found or not Path(base.path).is_file() else _single_file_problems(base)

    @classmethod
    def load(cls, base: Base, device: torch.device, dtype: torch.dtype) -> "Model":
        """The frozen pipeline. The VAE stays in float32: SDXL's overflows in float16."""
        from diffusers import StableDiffusionXLPipeline
        from diffusers.loaders.single_file_utils import SingleFileComponentError

        options: dict[str, Any] = {"dtype": dtype, "add_watermarker": False}
        try:
            if Path(base.path).is_file():
                options["config"] = base.config or HUB_ID
                pipeline = StableDiffusionXLPipeline.from_single_file(base.path, **options)
                _follow_marks(pipeline, base.path)
            else:
                pipeline = StableDiffusionXLPipeline.from_pretrained(base.path, **options)
            _refuse_gaps(pipeline)
        except (OSError, ValueError, KeyError, RuntimeError, SingleFileComponentError) as error:
            raise ValueError(f"base.path: {base.path} could not be loaded as an SDXL model: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        model = cls(pipeline, device)
        for network in (*model.networks.values(), pipeline.vae):
            network.requires_grad_(False).eval()
        if base.quantization != "none":
            quant.pack_linears(pipeline.unet, base.quantization, device)
        pipeline.to(device)
        pipeline.vae.to(torch.float32)
        return model

    @classmethod
    def skeleton(cls, base: Base) -> "Model":
        """The networks on the meta device, from the configuration files alone."""
        from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        source = base.config or HUB_ID if Path(base.path).is_file() else base.path

        def configured(kind: Any, folder: str) -> Any:
            return kind.from_config(kind.load_config(source, subfolder=folder))

        def text(folder: str) -> Any:
            return CLIPTextConfig.from_pretrained(source, subfolder=folder)

        with torch.device("meta"):
            networks = {
                "vae": configured(AutoencoderKL, "vae"),
                "unet": configured(UNet2DConditionModel, "unet"),
                "text_encoder": CLIPTextModel(text("text_encoder")),
                "text_encoder_2": CLIPTextModelWithProjection(text("text_encoder_2")),
            }
        pipeline = StableDiffusionXLPipeline(
            **networks,
            tokenizer=CLIPTokenizer.from_pretrained(source, subfolder="tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(source, subfolder="tokenizer_2"),
            scheduler=configured(DDPMScheduler, "scheduler"),
            add_watermarker=False,
        )
        return cls(pipeline, torch.device("meta"))

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers."""
        return {
            "attention": ATTENTION,
            "attention-mlp": ATTENTION + MLP,
            "attention-mlp-conv": ATTENTION + MLP + CONV,
            "all": ATTENTION + MLP + CONV + REST,
        }

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass of every network."""
        self.pipeline.unet.enable_gradient_checkpointing()
        for name in ("text_encoder", "text_encoder_2"):
            self.networks[name].gradient_checkpointing_enable()  # pyright: ignore
            self.networks[name].train()  # transformers checkpoints in training mode only; CLIP has no dropout

    # -- encoding -----------------------------------------------------------------------------------------------------

    def fingerprint(self, part: str) -> str:
        """A short hash of the weights of "images" or "texts" encoders."""
        if part == "images":
            return _weights_hash(self.pipeline.vae)[:16]
        return _weights_hash(self.pipeline.text_encoder, self.pipeline.text_encoder_2)[:16]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` in [-1, 1] to mean and standard deviation of the scaled latents, float32."""
        vae = self._present("vae")
        with torch.autocast(self.device.type, enabled=False):
            latents = vae.encode(pixels.to(self.device, torch.float32)).latent_dist
        shift, scale = self._latent_scale()
        return torch.cat([(latents.mean - shift) * scale, latents.std * scale], 1)

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)`: both encoders' last but one layer; `pooled (n, dim)` of the second."""
        for name in ("text_encoder", "text_encoder_2"):
            self._present(name)
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"hidden": hidden, "pooled": pooled}

    @property
    def caption_tokens(self) -> int:
        """Tokens that CLIP reads, without the marks at the beginning and the end."""
        tokenizer = self.pipeline.tokenizer
        return tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()

    def cut_off(self, caption: str) -> str:
        """The caption from the first token on that CLIP does not read."""
        tokens = self.pipeline.tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)
        beyond = tokens.offset_mapping[self.caption_tokens :]
        return caption[beyond[0][0] :] if beyond else ""

    def use_zero_terminal_snr(self) -> None:
        """Pure noise in the last step; sampling then has to begin there."""
        scheduler, changes = self.pipeline.scheduler, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        self.pipeline.scheduler = type(scheduler).from_config(scheduler.config, **changes)
        self.process = self.process.with_zero_terminal_snr()

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The UNet on `noisy (n, c, h, w)`."""
        unet = self.pipeline.unet
        added = {"text_embeds": texts["pooled"], "time_ids": sizes.to(texts["pooled"].dtype)}
        hidden = texts["hidden"]
        return unet(noisy.to(unet.dtype), times.long(), hidden, added_cond_kwargs=added, return_dict=False)[0]

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], negative: str, width: int, height: int, steps: int, guidance: float, seed: int
    ) -> list[Image]:
        """One picture per prompt; the noise of picture `i` follows from `seed + i`."""
        for name in ("text_encoder", "text_encoder_2"):
            self._present(name)
        pictures = []
        for number, prompt in enumerate(prompts):
            latents = self.pipeline(
                prompt=prompt,
                negative_prompt=negative,
                width=width,
                height=height,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(seed + number),
                output_type="latent",
            ).images
            pictures += self._decode(latents)
        self._release_again()
        return pictures

    def _decode(self, latents: Tensor) -> list[Image]:
        shift, scale = self._latent_scale()
        vae = self._present("vae")
        with torch.autocast(self.device.type, enabled=False):
            pixels = vae.decode(latents.float() / scale + shift, return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(pixels)

    def _latent_scale(self) -> tuple[Tensor | float, Tensor | float]:
        config = self.pipeline.vae.config
        if config.latents_mean is None:
            return 0.0, config.scaling_factor
        mean, std = torch.tensor([config.latents_mean, config.latents_std], device=self.device).view(2, 1, -1, 1, 1)
        return mean, config.scaling_factor / std

    def release_encoders(self, texts: bool) -> None:
        """Move the VAE, and the text encoders if `texts`, off the device."""
        self._released = {"vae", "text_encoder", "text_encoder_2"} if texts else {"vae"}
        self._release_again()

    def _release_again(self) -> None:
        for name in self._released:
            self.pipeline.components[name].to("cpu")

    def _present(self, name: str) -> Any:
        return self.pipeline.components[name].to(self.device)

    # -- exporting ----------------------------------------------------------------------------------------------------

    def export_key(self, layer: str, host: str) -> str:
        """`unet.`... or `text_encoder`... as the host spells it; kohya's and ComfyUI's UNet names are the ldm ones."""
        network, _, path = layer.partition(".")
        if network != "unet":
            path = "text_model." + path.removeprefix("text_model.") if path != "text_projection" else path
        if host == "diffusers":
            return f"{network}.{path}"
        if host == "comfyui" and path.endswith("token_embedding"):  # ComfyUI has no kohya spelling for it
            clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[network]
            return f"text_encoders.{clip}.transformer.{path}"
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[network]
        if network == "unet":
            unet = self.pipeline.unet.config
            path = ldm_name(path, unet.layers_per_block, unet.up_block_types)
        return prefix + path.replace(".", "_")

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.prediction_type": "v" if self.process.prediction == "v_prediction" else self.process.prediction,
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
        }

    def base_hash(self) -> str:
        """sha256 of the UNet's weights."""
        return _weights_hash(self.pipeline.unet)


def _single_file_problems(base: Base) -> list[str]:
    """What a single checkpoint, or the configuration beside it, lacks. Reads the file's header only."""
    from huggingface_hub import try_to_load_from_cache

    tensors = _tensor_names(base.path)
    if tensors is None:
        return [f"base.path: {base.path} is damaged or no .safetensors file at all; download it again"]
    lacking = [part for key, part in CHECKPOINT_PARTS.items() if key not in tensors]
    if lacking:
        return [f"base.path: {base.path} is no complete SDXL checkpoint, it lacks {', '.join(lacking)}; give one that "
                "has UNet, text encoders and VAE, or a folder in diffusers layout"]
    if base.config:
        lacking = [name for name in CONFIGS if not (Path(base.config) / name).is_file()]
        return [f"base.config: {base.config} has no {', '.join(lacking)}"] if lacking else []
    lacking = [name for name in (INDEX, *CONFIGS) if not isinstance(try_to_load_from_cache(HUB_ID, name), str)]
    if not lacking or not protocol.base_problems(Base(path=HUB_ID), lacking[0], HUB_ID):
        return []
    return [f"base.config: a single checkpoint needs the configuration of {HUB_ID}, which is not in the hub's local "
            "cache, and the hub cannot be reached; give --base.config with a folder in diffusers layout (its weights "
            "are not needed)"]


def _tensor_names(path: str) -> set[str] | None:
    """Names of the tensors in a safetensors file; None if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except SafetensorError:
        return None


def _follow_marks(pipeline: Any, path: str) -> None:
    """Checkpoints trained on v prediction carry an empty tensor that says so; no configuration folder knows."""
    names = _tensor_names(path) or set()
    if "v_pred" in names:
        changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in names}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)


def _refuse_gaps(pipeline: Any) -> None:
    """diffusers leaves weights that a checkpoint lacks on the meta device, where the first use of them fails."""
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        gaps = [name for name, tensor in pipeline.components[part].named_parameters() if tensor.is_meta]
        if gaps:
            raise ValueError(f"weights of {part} are missing: {', '.join(gaps[:3])} ({len(gaps)} in all)")


def ldm_name(path: str, layers_per_block: int, up_blocks: Sequence[str]) -> str:
    """A layer of diffusers' UNet in the naming of the original checkpoints, e.g. `input_blocks.4.1.proj_in`.

    `up_blocks`: the class names of the up blocks; an upsampler's number depends on whether its block has attention.
    """
    whole = {
        "conv_in": "input_blocks.0.0",
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
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return ".".join(rest) if kind == "attentions" else resnet[rest[0]]


def _weights_hash(*networks: nn.Module) -> str:
    """sha256 over names and bytes of the base weights; adapters do not change it."""
    total = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            if ".adapter." in name:
                continue
            total.update(name.replace(".base.", ".").encode())
            total.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
