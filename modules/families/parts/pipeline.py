"""A model around a diffusers pipeline: loading, encoding pictures, sampling, memory, hashes.

A family derives from `PipelineModel`, sets the class attributes, and adds the process and the bucket step (in
`__init__`), `encode_texts`, `predict`, `named_targets`, `names_of`, `original`, `LIKE`, `UNLIKE` and `metadata`. The
methods under "defaults that a family may override" hold for most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from pkgutil import resolve_name
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules import quant
from modules.documents import is_folder
from modules.families import base as protocol
from modules.families.parts import files
from modules.families.parts.components import component_class, pickle_problems, read_index
from modules.families.parts.names import Named
from modules.families.parts.reader import Reader
from modules.preset.base_options import Base

if TYPE_CHECKING:
    from typing import Self


COMPILED_VERSIONS = 64
"""Of a kind of block: one for each width, rank, method of calling (training, sampling) and, at first, bucket. Beyond
torch's own limit of 8 it would silently run the rest uncompiled."""

ARGUMENTS = {"hidden": "prompt_embeds", "pooled": "pooled_prompt_embeds", "mask": "prompt_attention_mask"}
"""Names of the parts of an encoded prompt in diffusers' pipelines."""


class PipelineModel(Reader, Named):
    """A loaded base; see `families.base.Model` for what each part means."""

    TITLE: ClassVar[str]
    """In sentences: "an SDXL model"."""
    HUB_ID: ClassVar[str]
    """The usual base on the hub."""
    PIPELINE: ClassVar[str]
    """Name of the class in diffusers."""
    OPTIONS: ClassVar[dict[str, Any]] = {}
    """For making the pipeline in any way: what it has besides the parts below."""
    DENOISER: ClassVar[str]
    """Name of the denoiser in the pipeline."""
    TEXT_ENCODERS: ClassVar[tuple[str, ...]]
    """Names of the text encoders in the pipeline, in order. One that is None there is left out."""
    PARTS: ClassVar[dict[str, str]]
    """One tensor of each part of a single-file checkpoint, in the original naming, and the part in words."""
    CONFIGS: ClassVar[tuple[str, ...]]
    """Files that a folder of configurations needs besides the index."""
    VAE_DTYPE: ClassVar[torch.dtype] = torch.float32

    bucket_step: int
    longest_side: int | None = None

    def __init__(self, pipeline: Any, device: torch.device):
        self.pipeline, self.device = _computing_on(device, pipeline), device
        components = {name: pipeline.components[name] for name in (self.DENOISER, *self.TEXT_ENCODERS)}
        self.networks: dict[str, nn.Module] = {name: part for name, part in components.items() if part is not None}
        self.text_encoders = [name for name in self.TEXT_ENCODERS if name in self.networks]
        vae = pipeline.vae.config
        self.latent_factor = 2 ** (len(vae.block_out_channels) - 1)
        self.latent_channels: int = vae.latent_channels
        self._released: set[str] = set()

    # -- defaults that a family may override --------------------------------------------------------------------------

    @classmethod
    def hub_id(cls, path: str) -> str:
        """The model on the hub whose configuration the single checkpoint at `path` has."""
        return cls.HUB_ID

    @classmethod
    def file_problems(cls, base: Base) -> list[str]:
        """What a single checkpoint, or the configuration beside it, lacks."""
        found = files.checkpoint_problems(base.path, cls.TITLE, cls.PARTS)
        return found or files.config_problems(base, cls.CONFIGS, cls.hub_id(base.path))

    @classmethod
    def read_file(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of a single checkpoint."""
        config = base.config or cls.hub_id(base.path)
        cls.index(config)
        return cls.pipeline_class().from_single_file(base.path, config=config, dtype=dtype, **cls.OPTIONS)

    @classmethod
    def read_folder(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of a folder or of the hub's model, without the parts that its index does not have."""
        absent = {name: None for name, kind in cls.index(base.path).items() if kind == [None, None]}
        given = {**absent, **cls.OPTIONS}
        return cls.pipeline_class().from_pretrained(base.path, dtype=dtype, use_safetensors=True, **given)

    @classmethod
    def beside(cls, base: Base) -> Sequence[str]:
        """Parts whose weights a single checkpoint lacks, so that they are read from its configuration's folder."""
        return ()

    @classmethod
    def skeleton_pipeline(cls, source: str) -> Any:
        """The pipeline on the meta device, from the configuration in the folder, or of the hub's model, `source`."""
        found = cls.index(source).items()
        components = {name: _component(component_class(kind, name, source), name, source) for name, kind in found
                      if isinstance(kind, list) and name not in cls.OPTIONS}
        return cls.pipeline_class()(**components, **cls.OPTIONS)

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """The pipeline's arguments for guidance; `away`: from a negative prompt."""
        return {"guidance_scale": guidance}

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The pipeline's latents as `(n, c, h, w)`; `height` and `width` in pixels."""
        return latents

    def negative_prompt(self, given: str) -> str | None:
        """What guidance leads away from: the empty prompt too."""
        return given

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """Conditions of the captions, named as in `ARGUMENTS`."""
        raise NotImplementedError

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def pipeline_class(cls) -> Any:
        """diffusers' class."""
        return resolve_name(f"diffusers:{cls.PIPELINE}")

    @classmethod
    def problems(cls, base: Base) -> list[str]:
        """Why `load` cannot work, as sentences."""
        if found := protocol.base_problems(base, files.INDEX, cls.HUB_ID):
            return found
        if is_folder(Path(base.path)):
            parts = (cls.DENOISER, *cls.TEXT_ENCODERS, "vae")
            return cls._index_problems("base.path", base.path) or pickle_problems(Path(base.path), parts)
        if not Path(base.path).is_file():
            return []
        found = cls.file_problems(base)
        return found or (cls._index_problems("base.config", base.config) if base.config else [])

    @classmethod
    def _index_problems(cls, option: str, source: str) -> list[str]:
        try:
            cls.index(source)
        except ValueError as error:
            return [f"{option}: {error}; give a complete copy"]
        return []

    @classmethod
    def index(cls, source: str) -> dict[str, Any]:
        """The index of parts of the folder, or of the hub's model, `source`; checked, or ValueError."""
        return read_index(cls.pipeline_class(), source, cls.OPTIONS)

    @classmethod
    def load(cls, base: Base, device: torch.device, dtype: torch.dtype, pictures: bool = True) -> Self:
        """The frozen pipeline in main memory. The VAE gets its own dtype if `pictures`, else the stored one."""
        try:
            pipeline = cls.read_file(base, dtype) if Path(base.path).is_file() else cls.read_folder(base, dtype)
            model = cls(pipeline, device)
            files.refuse_gaps({**model.networks, "vae": pipeline.vae})
        except Exception as error:  # noqa: BLE001  diffusers raises anything for values of wrong kinds in its files
            raise ValueError(f"base.path: {base.path} could not be loaded as {cls.TITLE}: {_said(error)}") from error
        pipeline.set_progress_bar_config(disable=True)
        for network in (*model.networks.values(), pipeline.vae.to(cls.VAE_DTYPE) if pictures else pipeline.vae):
            network.requires_grad_(False).eval()
        return model

    @classmethod
    def files_of(cls, base: Base) -> dict[str, Path]:
        """The files that `load` reads, by part."""
        path = Path(base.path)
        if not path.is_file():
            return files.files_of_parts(base.path, cls.OPTIONS)
        source, others = base.config or cls.hub_id(base.path), cls.beside(base)
        return {"checkpoint": path, **files.files_of_parts(source, cls.OPTIONS, others)}

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
        return [module for module in denoiser.modules() if type(module).__name__ in names]

    @classmethod
    def skeleton(cls, base: Base) -> Self:
        """The networks on the meta device, from the configuration files alone."""
        source = base.config or cls.hub_id(base.path) if Path(base.path).is_file() else base.path
        try:
            return cls(cls.skeleton_pipeline(source), torch.device("meta"))
        except Exception as error:  # noqa: BLE001  as in `load`
            raise ValueError(_said(error)) from error

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass of every network."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.pipeline.components[self.DENOISER].enable_gradient_checkpointing()
        for name in self.text_encoders:
            self.pipeline.components[name].activation_checkpointing_enable()
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
            latents = vae.encode(pixels.to(self.device, self.VAE_DTYPE)).latent_dist
        shift, scale = self._latent_scale()
        return torch.cat([(latents.mean.float() - shift) * scale, latents.std.float() * scale], 1)

    def _decode(self, latents: Tensor) -> list[Image]:
        shift, scale = self._latent_scale()
        vae = self.present("vae")
        with torch.autocast(self.device.type, enabled=False):
            pixels = vae.decode((latents.float() / scale + shift).to(self.VAE_DTYPE), return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(pixels.float())

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
        prompts: Sequence[str],
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
        away = None if against is None else encode([against])
        pictures = []
        for number, prompt in enumerate(prompts):
            generator, texts = torch.Generator().manual_seed(seed + number), encode([prompt])
            latents = self.pipeline(
                **self.conditions(texts, away),
                **self.guidance_options(guidance, away is not None),
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
        given = {ARGUMENTS[name]: value for name, value in texts.items()}
        return given | {f"negative_{ARGUMENTS[name]}": value for name, value in (negative or {}).items()}

    def release_encoders(self, texts: bool, images: bool = True) -> None:
        """Move the VAE if `images`, and the text encoders if `texts`, off the device."""
        self._released = {*(["vae"] if images else []), *(self.text_encoders if texts else [])}
        self._release_again()

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
            tokenizers = [name.replace("text_encoder", "tokenizer") for name in self.text_encoders]
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


def _computing_on(device: torch.device, pipeline: Any) -> Any:
    """The pipeline, made to compute on `device`. By default it uses the device of its first network, which may be an
    encoder in main memory."""
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"_execution_device": property(lambda _: device)})
    return pipeline


def _said(error: Exception) -> str:
    """The message of a library's error, in one line that begins with its class where it is not a sentence."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: {text}"


def _component(found: Any, name: str, source: str) -> Any:
    """Part `name` of a pipeline, of class `found` if any; networks without weights, on the meta device."""
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    if found is None:
        return None
    is_network, is_text = issubclass(found, ModelMixin), issubclass(found, PreTrainedModel)
    if not is_network and not is_text:
        return found.from_pretrained(source, subfolder=name)
    with torch.device("meta"):
        if is_network:
            return found.from_config(found.load_config(source, subfolder=name))
        return found(found.config_class.from_pretrained(source, subfolder=name))
