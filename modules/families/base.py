"""The interface of a model family. One family = one file with a class `Model` that implements it.

A `Model` is loaded once per run and holds the frozen networks.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from modules.families.parts.index import index_of
from modules.families.parts.names import Files, Place, Spelling
from modules.objectives import Process
from modules.preset.base_options import Base, is_hub_id
from modules.preset.data_options import CHUNK, Data
from modules.tensorfile import A_PICKLE, PICKLES

Texts = dict[str, Tensor]
"""Encoded captions: named tensors, each with the captions along dimension 0. Where captions have different numbers of
tokens, these are along dimension 1, with zeros behind those of the shorter ones, and a tensor among them is `mask`."""


def together(items: Sequence[Texts]) -> Texts:
    """The conditions of several captions, each encoded by itself, as those of one batch."""
    return {name: _stacked([item[name] for item in items]) for name in items[0]}


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Along dimension 0, each made as long as the longest along dimension 1."""
    longest = max((tensor.shape[1] for tensor in tensors if tensor.dim() > 1), default=0)
    return torch.cat([_lengthened(tensor, longest) for tensor in tensors])


def _lengthened(tensor: Tensor, length: int) -> Tensor:
    """With zeros at the end of dimension 1."""
    if tensor.dim() < 2 or tensor.shape[1] == length:
        return tensor
    rest = tensor.new_zeros(tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, rest], 1)


class Shown(Protocol):
    """A reference picture, as a caption or prompt is about it."""

    @property
    def content(self) -> tuple:
        """What a model's view of it depends on."""
        ...

    def image(self) -> Image:
        """The picture, in RGB."""
        ...


@dataclass(frozen=True)
class Instruction:
    """A caption or prompt about reference pictures."""

    text: str
    references: tuple[Shown, ...]


Caption = str | Instruction


def about(text: str, references: tuple[Shown, ...]) -> Caption:
    """A text that is about these reference pictures, if there are any."""
    return Instruction(text, references) if references else text


def negative_of(prompt: Caption, negative: str) -> Caption:
    """The negative prompt that a prompt is drawn with: about the same reference pictures."""
    return about(negative, prompt.references) if isinstance(prompt, Instruction) else negative


def text_of(caption: Caption) -> str:
    """The text alone."""
    return caption if isinstance(caption, str) else caption.text


Encode = Callable[[Sequence[Caption]], Texts]
"""Gives the conditions of captions."""


@dataclass(frozen=True)
class Reading:
    """How text encoders read captions."""

    tokens: int = CHUNK
    """See `data.caption_tokens`."""
    layer: int = 1
    """Which one is read, counted from the last: 1 is the last; see `base.clip_skip`."""
    emphasis: bool = False
    """See `data.emphasis`."""

    @classmethod
    def of(cls, base: Base, data: Data) -> "Reading":
        """As the options say."""
        return cls(data.caption_tokens, base.clip_skip or 1, data.emphasis)


class Model(Protocol):
    """A loaded model of one family."""

    networks: dict[str, nn.Module]
    """The networks that can be adapted, by the first part of their layers' full names; the denoiser comes first."""

    device: torch.device
    """The device it computes on."""

    bucket_step: int
    """Width and height of training pictures are multiples of this, in pixels."""

    longest_side: int | None
    """Pictures cannot be wider or higher than this, in pixels; None: unlimited."""

    latent_channels: int

    latent_factor: int
    """Pixels per latent, along each side."""

    computed_in: str
    """Number format in which programs compute the denoiser on a GPU unless told otherwise; one of `export.dtype`."""

    reads_chunks: bool
    """Whether its text encoders read longer captions in chunks (`data.caption_tokens`)."""

    process: Process
    """The noise process of this family."""

    distilled: bool
    """Whether this base is distilled to few steps, so that training needs a `base.training_adapter`."""

    reads_references: bool
    """Whether conditions of an `Instruction` depend on its reference pictures."""

    one_by_one: bool
    """Whether `predict` runs the denoiser on one sample of a batch after the other."""

    @classmethod
    def problems(cls, base: Base) -> list[str]:
        """Why `load` cannot work (missing or wrong files), as sentences; quick, loads no weights."""
        ...

    @classmethod
    def load(cls, base: Base, device: torch.device, dtype: torch.dtype, pictures: bool = True) -> "Model":
        """The model with all networks frozen, in eval mode, in main memory; `device` is where it will compute. Without
        `pictures` none will be drawn or encoded. Raises ValueError with a sentence for bad files."""
        ...

    @classmethod
    def files_of(cls, base: Base) -> dict[str, Path]:
        """The local files that `load` reads, by names that have the part and do not depend on their place. What still
        has to be downloaded from the hub is left out."""
        ...

    def place(self, base: Base, texts: bool) -> None:
        """Move the denoiser to the device, quantized and offloaded as in `base`, and text encoders if `texts`. Encoders
        are moved when something is encoded, which is better done before."""
        ...

    def place_texts(self) -> None:
        """Move only the text encoders to the device."""
        ...

    def blocks(self) -> list[nn.Module]:
        """The denoiser's repeated blocks, in order: the units of offloading, compiling and sharding."""
        ...

    @classmethod
    def skeleton(cls, base: Base) -> "Model":
        """The same networks without weights, on the meta device: for matching layers and counting parameters."""
        ...

    def named_targets(self) -> dict[str, list[str]]:
        """Named sets of layers: patterns (fnmatch) over full layer names such as `unet.*.attn1.to_q`."""
        ...

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        ...

    def compile_blocks(self, checkpointing: bool) -> None:
        """Compile `blocks`, after adapters are attached and after `enable_checkpointing` if `checkpointing`."""
        ...

    def fingerprint(self, part: str) -> str:
        """A short hash of all that the results of "images" or "texts" encoders depend on besides the picture or
        caption, for cache keys: weights, configuration, tokenizers, device, versions of the libraries. "instructions":
        of captions about reference pictures, if it `reads_references`."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` in [-1, 1] to the encoder's distribution `(n, 2 * latent_channels, h', w')`, float32:
        mean and standard deviation of the scaled latents."""
        ...

    def encode_texts(self, captions: Sequence[Caption]) -> Texts:
        """Conditions of the captions. Differentiable in adapted text encoders."""
        ...

    def use_references(self, base: Base, counts: Mapping[str, int]) -> list[str]:
        """Train and sample with so many reference pictures at most, by the option that has them; without any, give
        back the memory of what reads them. Call it after loading. Returns what is worth knowing, in sentences. Raises
        ValueError, with a sentence, where this base does not take them."""
        ...

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """The size that a reference picture is resized to, in pixels. Raises ValueError, with the end of a sentence,
        for one that the model does not take."""
        ...

    def encode_reference(self, image: Image) -> Tensor:
        """A reference picture's latents `(c, h', w')`, float32 on the CPU, as `predict` takes them."""
        ...

    def use_reading(self, reading: Reading) -> list[str]:
        """Read captions and prompts like this from now on. Returns what of it does not apply to this base, as
        sentences. Raises ValueError, with a sentence, for what it cannot do."""
        ...

    @property
    def caption_tokens(self) -> int:
        """Tokens of a caption that the text encoders read, without start and end tokens."""
        ...

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a caption that they read at once; the rest of `caption_tokens` in further chunks."""
        ...

    def token_starts(self, caption: str) -> list[int]:
        """For each token of a caption, without start and end tokens, the character of the caption it begins at."""
        ...

    def cut_off(self, caption: str) -> str:
        """The end of a caption that is truncated by the text encoders; empty where they read all of it."""
        ...

    def use_prediction(self, prediction: str) -> None:
        """Train and sample with this prediction type, one of the process' `predictions`."""
        ...

    def use_zero_terminal_snr(self) -> None:
        """Train and sample with pure noise in the last step; for diffusion families only."""
        ...

    def use_shift(self, shift: float) -> None:
        """Train and sample with this fixed shift of the noise levels; for rectified flows only."""
        ...

    def predict(
        self, noisy: Tensor, times: Tensor, texts: Texts, sizes: Tensor, references: Sequence[Tensor] = ()
    ) -> Tensor:
        """The denoiser. `noisy (n, c, h, w)`, `times (n)` as `process` gives them, `sizes (n, 6)`: original height and
        width, crop top and left, target height and width. `references`: latents `(n, c, h', w')` of each reference
        picture, in their order; a family that takes none has no such argument."""
        ...

    def negative_prompt(self, given: str) -> str | None:
        """The negative prompt that `sample` encodes when it is given this one; None: it uses none."""
        ...

    def sample(
        self,
        prompts: Sequence[Caption],
        negative: str,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        seed: int,
        encode: Encode | None = None,
    ) -> list[Image]:
        """One picture per prompt from fixed noise, with the networks as they are now (adapted). `encode` gives the
        conditions of prompts; without it the text encoders are moved to the device."""
        ...

    def with_denoiser_problems(self, path: str) -> list[str]:
        """Why `with_denoiser` cannot work with the base at `path`, as sentences that begin with samples.base. Call it
        before adapters are attached; weights are not needed."""
        ...

    def with_denoiser(self, base: Base, path: str, dtype: torch.dtype) -> "Model":
        """A model that draws as the base at `path`, a folder, a hub id or a file, with its denoiser, frozen, in main
        memory and without adapters, and with the other parts of this one, whose base is `base`. Raises ValueError."""
        ...

    def release_encoders(self, texts: bool, images: bool = True) -> None:
        """Move the image encoder if `images`, and the text encoders if `texts`, off the device. Encoding moves them
        back."""
        ...

    def export_key(self, layer: str, host: str) -> str:
        """The name of a full layer name in `host`'s files, without the tensor's suffix; one of `spellings`. Layers
        that the host's files have fused share it. Raises ValueError where the host has none."""
        ...

    def spellings(self, layer: str) -> list[Spelling]:
        """Every name that any known tool's adapter files have for the layer, without the tensors' suffixes."""
        ...

    def checkpoint_place(self, layer: str, kind: str = "weight") -> Place:
        """Where a full single checkpoint of this family has the layer's weight, or its bias."""
        ...

    def names_of(self, network: str) -> Files:
        """The names of one of the networks in files."""
        ...

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether an adapter file's keys look like this family's. More than one family may match, e.g. for text
        encoders alone."""
        ...

    def metadata(self) -> dict[str, str]:
        """Metadata for model managers about the architecture (`modelspec.*`, `ss_*`), without the training's facts."""
        ...

    def base_hash(self) -> str:
        """sha256 of the denoiser's weights, hex."""
        ...


def base_problems(base: Base, index: str, example: str) -> list[str]:
    """What is wrong with `base.path`: `index` is the file that marks a diffusers folder, `example` a hub id."""
    path = Path(base.path)
    how = f"give --base with a diffusers folder, a .safetensors checkpoint or a hub id such as {example}"
    if not base.path:
        return [f"base.path: no model given; {how}"]
    if path.is_dir():
        missing = f"base.path: {path} has no {index}, so it is not a diffusers folder; {how}"
        return [] if index_of(path).is_file() else [missing]
    if path.is_file():
        if found := unread_problems("base.path", path):
            return found
        wrong = path.suffix != ".safetensors"
        if path.suffix in PICKLES:
            how = f"convert it to .safetensors in a sandbox, or {how}"
            return [f"base.path: {path} is not a .safetensors file but {A_PICKLE}; {how}"]
        return [f"base.path: {path} is not a .safetensors file; {how}"] if wrong else _config_problems(base, index)
    looks_local = path.suffix in (".safetensors", ".ckpt", ".pt", ".bin") or base.path.startswith((".", "/"))
    if base.path.count("/") != 1 or looks_local:
        return [f"base.path: {base.path} does not exist; {how}"]
    return _hub_problems(base.path, index, how)


def unread_problems(option: str, path: Path) -> list[str]:
    """Whether a file is one that other programs read, and that is not read here."""
    if path.suffix.lower() == ".gguf":
        return [f"{option}: {path} is a GGUF file, which is not read; give a .safetensors file in bf16, fp16, plain or "
                "scaled fp8, and save memory with base.quantization"]
    shard = re.search(r"-\d{5}-of-(\d{5})\.safetensors$", path.name)
    if path.name.endswith(".safetensors.index.json") or shard and int(shard[1]) > 1:
        what = f"one of {int(shard[1])} files" if shard else "the list of several files"
        return [f"{option}: {path} is {what} with a part of a model; give one file that has all of it, or the whole "
                "model's folder in diffusers layout as base.path"]
    return []


def _config_problems(base: Base, index: str) -> list[str]:
    if base.config and not index_of(Path(base.config)).is_file():
        if is_hub_id(base.config):
            return [f"base.config: {base.config} is no folder here, but may be a model on the hub; download its small "
                    f"files with: hf download {base.config} --exclude '*.safetensors' --local-dir FOLDER, and give "
                    "that folder"]
        return [f"base.config: {base.config} has no {index}; give a folder in diffusers layout, or leave it empty"]
    return []


def _hub_problems(name: str, index: str, how: str) -> list[str]:
    """Whether the hub, or its local cache, has model `name`. Asks the hub only for what is not in the cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(try_to_load_from_cache(name, index), str):
        return []
    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
    except OSError as error:  # no network, no name server, a proxy that refuses
        reason = f"the hub cannot be reached ({type(error).__name__})"
    except Exception as error:  # noqa: BLE001  httpx's own errors derive from Exception alone
        if not type(error).__module__.startswith("httpx"):
            raise
        reason = f"the hub cannot be reached ({type(error).__name__})"
    else:
        return []
    return [f"base.path: {name} is neither a local folder or file nor in the hub's local cache; {reason}; {how}"]
