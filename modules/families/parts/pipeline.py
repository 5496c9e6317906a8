"""A model around a diffusers pipeline: encoding pictures, sampling, memory, hashes; loading.py: how it is loaded.

A family derives from `PipelineModel`, sets the class attributes, and adds the process and the bucket step (in
`__init__`), `encode_texts`, `predict`, `named_targets`, `names_of`, `original`, `LIKE`, `UNLIKE` and `metadata`. The
methods under "defaults that a family may override" hold for most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint

from modules import quant
from modules.families import base as protocol
from modules.families.parts import files, other_denoiser
from modules.families.parts.loading import Loaded
from modules.families.parts.reader import Reader
from modules.preset.base_options import Base

COMPILED_VERSIONS = 64
"""Of a kind of block: one for each width, rank, method of calling (training, sampling) and, at first, bucket. Beyond
torch's own limit of 8 it would silently run the rest uncompiled."""


class PipelineModel(Loaded, Reader):
    """A loaded base; see `families.base.Model` for what each part means."""

    FOLD: ClassVar[int] = 1
    """Latents of the VAE, along each side, that are channels of one latent of the denoiser."""

    TOKENIZERS: ClassVar[dict[str, str]] = {}
    """A text encoder's tokenizer in the pipeline, by its name, where it is not named as in most."""

    ARGUMENTS: ClassVar[dict[str, str]] = {
        "hidden": "prompt_embeds", "pooled": "pooled_prompt_embeds", "mask": "prompt_attention_mask"}
    """Names of the parts of an encoded prompt in the pipeline."""

    bucket_step: int
    longest_side: int | None = None
    distilled: bool = False
    reads_references: bool = False
    one_by_one: bool = False

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(computing_on(device, pipeline), device)
        components = {name: pipeline.components[name] for name in (self.DENOISER, *self.TEXT_ENCODERS)}
        self.networks: dict[str, nn.Module] = {name: part for name, part in components.items() if part is not None}
        self.text_encoders = [name for name in self.TEXT_ENCODERS if name in self.networks]
        factor, channels = self.vae_grid()
        self.latent_factor = self.FOLD * factor
        self.latent_channels: int = self.FOLD**2 * channels
        self._released: set[str] = set()

    # -- defaults that a family may override --------------------------------------------------------------------------

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """The pipeline's arguments for guidance; `away`: from a negative prompt."""
        return {"guidance_scale": guidance}

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The pipeline's latents as `(n, c, h, w)`; `height` and `width` in pixels."""
        return latents

    def negative_prompt(self, given: str) -> str | None:
        """What guidance leads away from: the empty prompt too."""
        return given

    def encode_texts(self, captions: Sequence[protocol.Caption]) -> protocol.Texts:
        """Conditions of the captions, named as in `ARGUMENTS`."""
        raise NotImplementedError

    def use_references(self, base: Base, counts: Mapping[str, int]) -> list[str]:
        """A family that edits has its own, see editing.py."""
        for option in (option for option, count in counts.items() if count):
            raise ValueError(f"{option}: {self.TITLE} takes no reference pictures; remove them, or train a model that "
                             "edits pictures")
        return []

    def drawing(self, prompt: protocol.Caption, width: int, height: int) -> tuple[Any, dict[str, Any]]:
        """The pipeline that draws a prompt, and its further arguments."""
        return self.pipeline, {}

    def vae_grid(self) -> tuple[int, int]:
        """Pixels per latent of the VAE, along each side, and its channels."""
        config = self.pipeline.vae.config
        return 2 ** (len(config.block_out_channels) - 1), config.latent_channels

    # -- memory -------------------------------------------------------------------------------------------------------

    def place(self, base: Base, texts: bool) -> None:
        """Move the denoiser, and text encoders if `texts`, to the device. Linear layers are quantized there one by one.
        Offloaded blocks are moved back before the next one, so that never all of them have to fit."""
        denoiser: Any = self.networks[self.DENOISER]
        packing, blocks = base.quantization != "none", self.blocks()
        for block in blocks[len(blocks) - base.offload_blocks :]:
            if packing:
                quant.pack_linears(block, base.quantization, self.device)
            quant.keep_in_memory(block)
        if packing:
            quant.pack_linears(denoiser, base.quantization, self.device)
        denoiser.to(self.device)
        if texts:
            self.place_texts()

    def place_texts(self) -> None:
        """Move the text encoders to the device."""
        for name in self.text_encoders:
            self.present(name)

    def blocks(self) -> list[nn.Module]:
        """The denoiser's transformer blocks, in order; nearly all of its linear layers are in them."""
        denoiser: Any = self.networks[self.DENOISER]
        names = denoiser._repeated_blocks or denoiser._no_split_modules
        return [module for module in denoiser.modules()
                if any(kind.__name__ in names for kind in type(module).__mro__)]  # a sharded block's class is derived

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass of every network."""
        from diffusers import ModelMixin
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.pipeline.components[self.DENOISER].enable_gradient_checkpointing()
        for name in self.text_encoders:
            part = self.pipeline.components[name]
            if isinstance(part, ModelMixin):
                part.enable_gradient_checkpointing()
            else:
                part.activation_checkpointing_enable()
            for module in self.networks[name].modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True  # it checkpoints in training mode only; dropout inside stays in eval mode

    def compile_blocks(self, checkpointing: bool) -> None:
        """Compile the blocks; blocks of a kind share the compiled code. Checkpointing moves into them: torch does not
        compile what is called by a checkpoint outside."""
        limits: Any = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, COMPILED_VERSIONS)
        if checkpointing:
            recompute_inside(self.networks[self.DENOISER], self.blocks())
        for block in self.blocks():
            block.compile()

    # -- encoding -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` in [-1, 1] to mean and standard deviation of the scaled latents, float32."""
        vae = self.present("vae")
        with torch.autocast(self.device.type, enabled=False):
            moments = self._moments(vae, pixels.to(self.device, self.VAE_DTYPE))
        mean, std = (pixel_unshuffle(moment.float(), self.FOLD) for moment in moments)
        shift, scale = self._latent_scale()
        return torch.cat([(mean - shift) * scale, std * scale], 1)

    def _decode(self, latents: Tensor) -> list[Image]:
        shift, scale = self._latent_scale()
        vae = self.present("vae")
        with torch.autocast(self.device.type, enabled=False):
            folded = latents.float() / scale + shift
            pixels = self._pixels(vae, pixel_shuffle(folded, self.FOLD).to(self.VAE_DTYPE))
        return self.pipeline.image_processor.postprocess(pixels.float())

    def _moments(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's latents."""
        found = vae.encode(pixels).latent_dist
        return found.mean, found.std

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        """What the VAE decodes."""
        return vae.decode(latents, return_dict=False)[0]

    def _latent_scale(self) -> tuple[Tensor | float, Tensor | float]:
        """`(shift, scale)`: scaled latents are `(latents - shift) * scale`."""
        config = self.pipeline.vae.config
        if config.latents_mean is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = torch.tensor([config.latents_mean, config.latents_std], device=self.device).view(2, 1, -1, 1, 1)
        return mean, config.scaling_factor / std

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[protocol.Caption],
        negative: str,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        seed: int,
        encode: protocol.Encode | None = None,
    ) -> list[Image]:
        """One picture per prompt; the noise of picture `i` follows from `seed + i`."""
        encode, against = encode or self.encode_texts, self.negative_prompt(negative)
        pictures, aways = [], {}
        for number, prompt in enumerate(prompts):
            shown = prompt.references if isinstance(prompt, protocol.Instruction) else ()
            if shown not in aways:
                aways[shown] = None if against is None else encode([protocol.about(against, shown)])
            away, (pipeline, more) = aways[shown], self.drawing(prompt, width, height)
            generator, texts = torch.Generator().manual_seed(seed + number), encode([prompt])
            latents = pipeline(
                **self.conditions(texts, away),
                **self.guidance_options(guidance, away is not None),
                **more,
                width=width,
                height=height,
                num_inference_steps=steps,
                generator=generator,
                output_type="latent",
            ).images
            pictures += self._decode(self.unpacked(latents, height, width))
        self._release_again()
        return pictures

    def conditions(self, texts: protocol.Texts, negative: protocol.Texts | None) -> dict[str, Tensor]:
        """Encoded prompts as arguments of the pipeline."""
        given = {self.ARGUMENTS[name]: value for name, value in texts.items()}
        return given | {f"negative_{self.ARGUMENTS[name]}": value for name, value in (negative or {}).items()}

    def release_encoders(self, texts: bool, images: bool = True) -> None:
        """Move the VAE if `images`, and the text encoders if `texts`, off the device."""
        self._released = {*(["vae"] if images else []), *(self.text_encoders if texts else [])}
        self._release_again()

    def share_released(self, other: PipelineModel) -> None:
        """Keep the encoders off the device that `other`, with the same encoders, keeps off it."""
        self._released = other._released

    def with_denoiser_problems(self, path: str) -> list[str]:
        """What is wrong with the base at `path` for `with_denoiser`."""
        return other_denoiser.problems(self, path)

    def with_denoiser(self, base: Base, path: str, dtype: torch.dtype) -> Any:
        """This model, whose base is `base`, with the denoiser of another base."""
        return other_denoiser.with_denoiser(self, base, path, dtype)

    def _release_again(self) -> None:
        for name in self._released:
            self.pipeline.components[name].to("cpu")

    def present(self, name: str) -> Any:
        """The pipeline's part `name`, on the device."""
        part = self.pipeline.components[name]
        if part.device.type != self.device.type:  # moving drops what its adapters have derived
            part.to(self.device)
        return part

    # -- hashes -------------------------------------------------------------------------------------------------------

    def fingerprint(self, part: str) -> str:
        """A short hash of all that the results of "images" or "texts" encoders depend on besides the item. The same
        weights are not enough: variants of a family may share them and read captions to another length."""
        facts = [self.PIPELINE, files.computing(self.device)]
        if part == "images":
            networks: list[Any] = [self.pipeline.vae]
            facts.append(str(self.VAE_DTYPE))
        else:
            networks = [self.networks[name] for name in self.text_encoders]
            tokenizers = [self.TOKENIZERS.get(name, name.replace("text_encoder", "tokenizer"))
                          for name in self.text_encoders]
            facts += self.reading_facts() + [*(files.tokenizing(self.pipeline.components[t]) for t in tokenizers)]
        facts += [files.weights_hash(*networks), *(files.settings(network.config) for network in networks)]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def base_hash(self) -> str:
        """sha256 of the denoiser's weights."""
        return files.weights_hash(self.networks[self.DENOISER])


def recompute_inside(denoiser: Any, blocks: Collection[Any]) -> None:
    """Move checkpointing, which is enabled, from the modules that call the denoiser's `blocks` into the blocks."""
    for name, block in denoiser.named_modules():
        if block in blocks:
            owner = ".".join(name.split(".")[:-2])  # of the list that the block is in
            denoiser.get_submodule(owner).gradient_checkpointing = False
            block.once, block.forward = block.forward, MethodType(_recomputed, block)


def _recomputed(block: Any, *given: Any, **named: Any) -> Any:
    """A block's forward pass, kept as `once`, with checkpointing."""
    return checkpoint(block.once, *given, use_reentrant=False, **named)


def computing_on(device: torch.device, pipeline: Any) -> Any:
    """The pipeline, made to compute on `device`. By default it uses the device of its first network, which may be an
    encoder in main memory."""
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"_execution_device": property(lambda _: device)})
    return pipeline
