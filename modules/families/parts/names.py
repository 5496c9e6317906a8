"""Names of a model's layers in files: one mapping to the original checkpoint's names, and every tool's spelling.

A family has the place of a tensor in the original checkpoint (`original`) and the names of its networks in files
(`names_of`). The rest follows: the place in a single checkpoint, the spellings in adapter files (export.md 1.1), the
name that a host's file gets.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

DENOISER = "model.diffusion_model."
"""What the denoiser's names begin with in full checkpoints; files with the denoiser alone often leave it away."""

PREFIXES = (DENOISER, "", "diffusion_model.", "net.")
"""The same of all files with a denoiser in its authors' naming."""

EMBEDDINGS = ("token_embedding", "position_embedding", "shared", "embed_tokens", "relative_attention_bias")
"""Embeddings of text encoders. ComfyUI has only its own names for them."""


NORMS = ("layer_norm", "layer_norm1", "layer_norm2")
"""Ends of the names of text encoders' norms, of which the same is true."""

TEXT_MODEL, MODEL = "text_model.", "model."
"""First levels of the paths in CLIP and in language models."""

HEAD = "lm_head"
"""What a language model says its words with: no condition depends on it."""

BESIDE = ("text_projection", HEAD)
"""Layers of text encoders beside that level."""


GATED = "attn_(to_)?gate|attn_w[qkvo]_|ff_(gate|up|down)_|txt_in_linear|text_fusion|time_mod_proj"
"""A pattern of layers, with underscores for dots, of transformers with gated attention and feed-forward networks, whose
other names are those of older ones."""


@dataclass(frozen=True)
class Spelling:
    """A name that adapter files have for a layer, without the tensors' suffixes."""

    name: str
    row: int = 0
    """The layer's first row in the matrix of that name."""
    rows: int = 0
    """How many rows of a matrix that several layers are fused into; 0: it is not fused."""
    exchanged: bool = False
    """Whether the halves of the layer's outputs are exchanged there."""


@dataclass(frozen=True)
class Place:
    """Where a checkpoint has a tensor."""

    name: str
    row: int = 0
    """The first of its rows, where the checkpoint has one tensor for several."""
    rows: int = 0
    """How many rows it has there; 0: all."""
    exchanged: bool = False
    """Whether its halves are stored exchanged."""
    transposed: bool = False
    flat: bool = False
    """Whether its rows are one there, each behind the one before it."""

    def get(self, stored: Tensor) -> Tensor:
        """The tensor, from the checkpoint's `stored`."""
        part = stored[self.row : self.row + self.rows] if self.rows else stored
        part = part.mT if self.transposed else part
        return exchange_halves(part) if self.exchanged else part

    def put(self, stored: Tensor, tensor: Tensor) -> None:
        """Write `tensor` where `get` found it in `stored`, in place."""
        tensor = exchange_halves(tensor) if self.exchanged else tensor
        part = stored[self.row : self.row + self.rows] if self.rows else stored
        part.copy_(tensor.mT if self.transposed else tensor)


def exchange_halves(tensor: Tensor) -> Tensor:
    """Rows of the second half before those of the first."""
    return torch.cat(tensor.chunk(2)[::-1])


@dataclass(frozen=True)
class Files:
    """The names of one network in files."""

    checkpoint: str
    """Prefix of names in a single checkpoint, followed by those of `Named.original`."""
    kohya: str
    """Prefix of kohya's names, followed by the layer's path, underscores for dots."""
    kohya_original: bool = False
    """Whether kohya's are followed by the original checkpoint's name instead of diffusers' path."""
    dotted: tuple[str, ...] = ()
    """Prefixes of names with diffusers' path. The first is peft's."""
    joined: tuple[str, ...] = ()
    """The same with underscores for dots."""
    original: tuple[str, ...] = ()
    """Prefixes of names with the original checkpoint's name."""
    original_joined: tuple[str, ...] = ()
    comfyui: str = ""
    """Prefix of ComfyUI's generic names of a text encoder, followed by transformers' path."""
    comfyui_reads_paths: bool = False
    """Whether ComfyUI supports diffusers' paths in this network."""
    comfyui_original: tuple[str, ...] = ()
    """What those paths begin with for which it has the original checkpoint's names only, after `original[0]`."""
    peft: bool = True
    """Whether diffusers reads adapters of this network."""
    level: str = ""
    """The first level of the layers' paths, `text_model.` or `model.`, that hosts expect whether the class in
    transformers has it or not (transformers 5 has dropped CLIP's)."""
    kohya_level: bool = True
    """Whether kohya's names have it too."""
    generic_only: bool = False
    """Whether `comfyui` is the only prefix that all versions of ComfyUI read."""


def unet(kohya_original: bool) -> Files:
    """A UNet's names."""
    return Files(
        DENOISER, "lora_unet_", kohya_original,
        dotted=("unet.", "", "base_model.model.", "diffusion_model.", "unet.base_model.model."),
        joined=("lora_unet_", "lycoris_", "oft_unet_"),
        original=("diffusion_model.", DENOISER, "", "unet."),
        original_joined=("lora_unet_", "oft_unet_"),
    )


def transformer() -> Files:
    """A transformer's names. kohya's are the original ones, with query, key and value as one layer."""
    return Files(
        DENOISER, "lora_unet_", True,
        dotted=("transformer.", "", "base_model.model.", "diffusion_model.", "transformer.base_model.model."),
        joined=("lora_transformer_", "lycoris_"),
        original=("diffusion_model.", DENOISER, "", "transformer."),
        original_joined=("lora_unet_", "oft_unet_"),
        comfyui_reads_paths=True,
    )


def clip(network: str, kohya: str, comfyui: str, checkpoint: str = "", alone: bool = False) -> Files:
    """A CLIP text encoder's names; `comfyui` is ComfyUI's word for it, which some checkpoints have too. ai-toolkit has
    kohya's word with a dot, and peft no word at all, which says enough where the encoder is `alone`."""
    generic = f"text_encoders.{comfyui}.transformer."
    dotted = (f"{network}.", generic, f"{comfyui}.transformer.", f"{network}.base_model.model.",
              kohya.removesuffix("_") + ".", *([""] if alone else []))
    return Files(checkpoint or generic, kohya, dotted=dotted, joined=(kohya,), comfyui=generic, level=TEXT_MODEL)


def t5(network: str, *kohya: str) -> Files:
    """A T5 text encoder's names; the first of `kohya` is the one to write."""
    generic = "text_encoders.t5xxl.transformer."
    dotted = (f"{network}.", generic, "t5xxl.transformer.")
    return Files(generic, kohya[0], dotted=dotted, joined=kohya, comfyui=generic, peft=False)


class Named:
    """The part of a model about names; see `families.base.Model`."""

    networks: dict[str, nn.Module]

    LIKE: ClassVar[str]
    """A pattern that is somewhere in this family's adapter files, in a name with underscores for dots."""
    UNLIKE: ClassVar[str]
    """A pattern that is nowhere in them."""

    SHARES_NAMES: ClassVar[bool] = False
    """Whether an older family has the names and shapes of many of its layers. A file with no others may be for either,
    and counts as the older one's where one has to be assumed."""
    PROPORTIONS: ClassVar[dict[str, int]] = {}
    """How many outputs for each input layers have whose names in files match a pattern, where other families have such
    names."""
    FOREIGN_WIDTHS: ClassVar[tuple[int, ...]] = ()
    """How many inputs such layers have in others' models alone."""
    CALLED: ClassVar[str] = ""
    """A pattern that is in what metadata call the architecture, in lower case; "" for a family whose keys show it."""

    @classmethod
    def fits(cls, sizes: Mapping[str, tuple[int, int]]) -> bool:
        """Whether layers with these names in a file can have these numbers of outputs and inputs."""
        return all(out == times * width for name, (out, width) in sizes.items()
                   for pattern, times in cls.PROPORTIONS.items() if re.search(pattern, name)
                   ) and not any(width in cls.FOREIGN_WIDTHS for _, width in sizes.values())

    def names_of(self, network: str) -> Files:
        """The network's names in files."""
        raise NotImplementedError

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where the network's part of an original checkpoint has the `kind` ("weight" or "bias") of a module. CLIP's
        `path` has the `text_model` level."""
        raise NotImplementedError

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether an adapter file's keys look like this family's. More than one family may match."""
        joined = [key.replace(".", "_") for key in keys]
        return any(re.search(cls.LIKE, key) for key in joined) and not any(re.search(cls.UNLIKE, key) for key in joined)

    def split(self, layer: str) -> tuple[str, str, Files]:
        """Network and path of a full layer name, with the level that hosts expect; what files call the network."""
        network, _, path = layer.partition(".")
        files = self.names_of(network)
        return network, with_level(path, files.level), files

    def checkpoint_place(self, layer: str, kind: str = "weight") -> Place:
        """Where a full single checkpoint of this family has the layer's weight (or bias)."""
        network, path, files = self.split(layer)
        place = self.original(network, path, kind)
        return replace(place, name=files.checkpoint + place.name)

    def spellings(self, layer: str) -> list[Spelling]:
        """Every name that any known tool's adapter files have for the layer, each once."""
        network, path, files = self.split(layer)
        found = [Spelling(start + path) for start in files.dotted]
        if files.level:
            found += [Spelling(start + path.removeprefix(files.level)) for start in files.dotted]
        if files.level == TEXT_MODEL:
            found += [Spelling(f"{network}.{old}") for old in before_peft(path)]
        found += [Spelling(start + kohya_path(path, files)) for start in files.joined]
        if path == TOKENS:
            found += [Spelling(start + STORED_TOKENS) for start in (*files.dotted, *files.joined)]
        place = self.original(network, path, "weight")
        name, where = layer_name(place), (place.row, place.rows, place.exchanged)
        found += [Spelling(start + name, *where) for start in files.original]
        found += [Spelling(start + joined(name), *where) for start in files.original_joined]
        return list(dict.fromkeys(found))

    def export_key(self, layer: str, host: str) -> str:
        """The name that `host`'s files have for the layer; see `spellings` for what else there is to know about it.

        Raises ValueError where the host has none.
        """
        network, path, files = self.split(layer)
        if host == "diffusers" and not files.peft:
            raise ValueError(
                f"export.host diffusers: {layer}: diffusers supports no adapters of this text encoder; set "
                f"targets.exclude to {network}.*, or export.host to comfyui"
            )
        if host not in ("diffusers", "kohya", "lycoris") and path.startswith(files.comfyui_original):
            return files.original[0] + layer_name(self.original(network, path, "weight"))
        if host == "diffusers" or (files.comfyui_reads_paths and host not in ("kohya", "lycoris")):
            return f"{network}.{path}"
        if host == "lycoris" and "lycoris_" in files.joined:
            return "lycoris_" + joined(path)
        if host != "kohya" and (files.generic_only or files.comfyui and path.endswith((*EMBEDDINGS, *NORMS))):
            return files.comfyui + t5_path(path)  # ComfyUI has no kohya spelling
        if files.kohya_original:
            path = layer_name(self.original(network, path, "weight"))
        return files.kohya + kohya_path(path, files)


def layer_name(place: Place) -> str:
    """The layer that has this weight (a norm's is called scale by some)."""
    return place.name.removesuffix(".weight").removesuffix(".scale")


def joined(name: str) -> str:
    """Underscores for dots."""
    return name.replace(".", "_")


def kohya_path(path: str, files: Files) -> str:
    """A layer's path with underscores for dots, as kohya's names of the network have it."""
    return joined(path if files.kohya_level else path.removeprefix(files.level))


def before_peft(path: str) -> list[str]:
    """What diffusers 0.17 called a layer of a CLIP text encoder, `self_attn.to_q` for `self_attn.q_proj`."""
    parent, _, part = path.rpartition(".")
    if not parent.endswith("self_attn"):
        return []
    return [f"{start}.to_{part.removesuffix('_proj')}" for start in (parent, parent.removeprefix("text_model."))]


def with_level(path: str, level: str) -> str:
    """A layer of a text encoder with the `level` that hosts expect, which layers beside it do not have."""
    return path if path in BESIDE else level + path.removeprefix(level)


def stored_names(name: str) -> list[str]:
    """What the weights in a diffusers folder may call a tensor that the loaded network calls `name`: CLIP and Qwen have
    their first level or not, T5's table is stored under the name of its other use, and of two levels of a language
    model that also sees pictures one is left out, or both are exchanged."""
    levels = [one for level in (TEXT_MODEL, MODEL) for short in [name.removeprefix(level)]
              for one in (short, level + short)]
    others = name.replace(f"{TOKENS}.", f"{STORED_TOKENS}."), text_name(name), name.replace(*INSIDE, 1)
    return list(dict.fromkeys([name, *levels, *others]))


def text_name(name: str) -> str:
    """A layer or tensor of a language model inside of one that also sees pictures, as files with the text encoder alone
    name it: without the level that transformers' class has for the language model."""
    return name.replace("language_model.", "", 1)


INSIDE = "model.language_model.", "language_model.model."
"""Levels of a language model inside of one that also sees pictures, as transformers names them and as files do."""

TOKENS, STORED_TOKENS = "encoder.embed_tokens", "shared"
"""T5's table of tokens, by the module that looks tokens up in it, and as files and other programs name it."""


def t5_place(path: str, kind: str) -> Place:
    """Where checkpoints have a tensor of T5: they have the table of tokens once."""
    return Place(f"{t5_path(path)}.{kind}")


def t5_path(path: str) -> str:
    """A layer of T5 as files name it."""
    return STORED_TOKENS if path == TOKENS else path


def is_unused(layer: str) -> bool:
    """Whether a full layer name is that of T5's embedding where no tokens are looked up, or of a language model's
    output: an adapter there has no effect."""
    network, _, path = layer.partition(".")
    return network.startswith("text_encoder") and path in (STORED_TOKENS, HEAD)


IN_RESBLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.q_proj": "attn.in_proj",
    "self_attn.k_proj": "attn.in_proj",
    "self_attn.v_proj": "attn.in_proj",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip_place(path: str, kind: str, encoder: Any) -> Place:
    """Where OpenCLIP has a tensor of transformers' CLIP text `encoder`: query, key and value are one matrix, and the
    projection is stored transposed."""
    path = path.removeprefix("text_model.")
    whole = {
        "embeddings.token_embedding": "token_embedding.weight",
        "embeddings.position_embedding": "positional_embedding",
        "final_layer_norm": f"ln_final.{kind}",
    }
    if path == "text_projection":
        return Place("text_projection", transposed=True)
    if path in whole:
        return Place(whole[path])
    number, _, inside = path.removeprefix("encoder.layers.").partition(".")
    name = f"transformer.resblocks.{number}.{IN_RESBLOCK[inside]}"
    if not name.endswith("in_proj"):
        return Place(f"{name}.{kind}")
    width = encoder.config.hidden_size
    return Place(f"{name}_{kind}", "qkv".index(inside[len("self_attn.")]) * width, width)
