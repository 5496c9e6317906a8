"""Parts of a pipeline in files of their own, as ComfyUI's users have them: text encoders and VAEs.

Which text encoder a file has is found from the names and shapes of its tensors.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from modules.families.parts.names import Place, open_clip_place, t5_path
from modules.families.parts.original import Places, misfit
from modules.tensorfile import Header, read_header


@dataclass(frozen=True)
class TextFile:
    """One kind of file with a text encoder."""

    title: str
    """In sentences: "a T5-XXL file such as t5xxl_fp16.safetensors"."""
    mark: str
    """A tensor that every file of this kind has, and no other kind."""
    names: Callable[[str], str]
    """The name in the file, from that of the tensor in the transformers module."""
    other_mark: str = ""
    """The same as `mark` in a second way to name tensors, its authors'; "" without one."""
    other: Callable[[str, str, Any], Place] | None = None
    """Where files of the second way have a tensor: from a module's path, the tensor's kind, and the network."""
    unused: tuple[str, ...] = ()
    """Beginnings of the names of tensors that no condition depends on, so that a file may lack them."""

    def places(self, network: Any, names: Collection[str]) -> Places | None:
        """Where a file with tensors of these names has those of the network; None: it is of another kind."""
        state = network.state_dict()
        if self.mark in names:
            return {name: self._place(name, self.names(name), names) for name in state}
        if self.other is not None and self.other_mark in names:
            split = {name: name.rpartition(".") for name in state}
            return {name: self.other(path, kind, network) for name, (path, _, kind) in split.items()}
        return None

    def _place(self, name: str, file: str, names: Collection[str]) -> Place | Literal["zeros"]:
        """Where a file with tensors of these names has `name`, which is usually called `file` there."""
        old = file.removesuffix(".weight")
        if file not in names and old in names:
            return Place(old, transposed=True)  # the projection, in OpenCLIP's form, as older ComfyUI saved it
        return "zeros" if file not in names and name.startswith(self.unused) else Place(file)

    def is_in(self, names: Collection[str]) -> bool:
        """Whether a file with tensors of these names is of this kind."""
        return self.mark in names or bool(self.other_mark) and self.other_mark in names


def _clip_name(name: str) -> str:
    """With the level that transformers 5 has dropped."""
    return name if name.startswith("text_projection.") else f"text_model.{name.removeprefix('text_model.')}"


def _t5_name(name: str) -> str:
    path, _, kind = name.rpartition(".")
    return f"{t5_path(path)}.{kind}"


def _clip(title: str) -> TextFile:
    return TextFile(
        title, "text_model.embeddings.token_embedding.weight", _clip_name, "token_embedding.weight", open_clip_place)


CLIP_L = _clip("a CLIP-L file such as clip_l.safetensors")
CLIP_G = _clip("a CLIP-G file such as clip_g.safetensors")
CLIP = _clip("a CLIP file such as clip_l.safetensors")
T5 = TextFile(
    "a T5-XXL file such as t5xxl_fp16.safetensors", "encoder.block.0.layer.0.SelfAttention.k.weight", _t5_name)


# -- VAEs -------------------------------------------------------------------------------------------------------------

VAE_PREFIXES = ("", "first_stage_model.", "vae.")
"""What the names of a VAE begin with, in files with it alone and in whole checkpoints."""
VAE_MARKS = "encoder.down.0.block.0.norm1.weight", "encoder.down_blocks.0.resnets.0.norm1.weight"
"""A tensor of every VAE of Stable Diffusion's kind in the original naming, and in diffusers'."""
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What diffusers called the layers of a VAE's attention before 0.15; newer files of converters still do."""


def vae_place(path: str, kind: str, blocks: int) -> Place:
    """Where original checkpoints have a tensor of diffusers' AutoencoderKL with this many up blocks, which the original
    counts from the output."""
    side, _, inside = path.partition(".")
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", inside):
        way, block, what, number, rest = found.groups()
        block = block if way == "down" else str(blocks - 1 - int(block))
        inner = f"block.{number}.{_in_resnet(rest)}" if what == "resnets" else f"{what[:-2]}.{rest}"
        inside = f"{way}.{block}.{inner.replace('samplers', 'sample')}"
    elif found := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.+)", inside):
        inside = f"mid.block_{int(found[1]) + 1}.{_in_resnet(found[2])}"
    elif found := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", inside):
        inside = f"mid.attn_1.{VAE_ATTENTION[found[1]]}"
    elif inside == "conv_norm_out":
        inside = "norm_out"
    return Place(".".join(part for part in (side, inside, kind) if part))


def _in_resnet(path: str) -> str:
    return path.replace("conv_shortcut", "nin_shortcut")


def vae_places(
    vae: nn.Module, names: Collection[str], place: Callable[[str, str], Place], marks: tuple[str, str]
) -> Places | None:
    """Where a file with tensors of these names has those of the VAE, in the original naming, as `place` has it, or in
    diffusers'; None: it has none. `marks`: a tensor in each of these namings."""
    split = {name: name.rpartition(".") for name in vae.state_dict()}
    for prefix in VAE_PREFIXES:
        if prefix + marks[0] in names:
            ours = {name: place(path, kind) for name, (path, _, kind) in split.items()}
            return {name: replace(found, name=prefix + found.name) for name, found in ours.items()}
        if prefix + marks[1] in names:
            return {name: Place(_present(prefix + name, names)) for name in split}
    return None


def _present(name: str, names: Collection[str]) -> str:
    """The name, or its older form where the file has that."""
    for new, old in OLD_ATTENTION.items():
        if (older := name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")) in names:
            return older
    return name


# -- what else a file may be ------------------------------------------------------------------------------------------

DENOISERS = "a whole checkpoint or a denoiser"
KINDS = {
    "an adapter file such as a LoRA":
        r"(_down|(?<!gate)_up|_A|_B|_w1|_w2)(\.default)?\.weight$|\.alpha$|_w[12](_a|_b)?$",
    DENOISERS: r"^(model\.)?diffusion_model\.|^(double|joint|single|input|output)_blocks\.|"
               r"^(net\.)?(blocks\.\d+|llm_adapter)\.|^txtfusion\.|"
               r"^(transformer\.|unet\.)?((single_)?transformer_blocks|(down|up)_blocks|(noise|context)_refiner)\.",
    "a VAE of Wan's or Qwen-Image's kind":
        r"^(vae\.)?(encoder|decoder)\.(middle\.|mid_block\.resnets\.0\.norm1\.gamma)",
    "a VAE": r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|mid\.block_1|mid_block)",
    "a text encoder (CLIP)": r"(^|\.)text_model\.|^transformer\.resblocks\.",
    "a text encoder (T5)": r"^encoder\.block\.",
    "a text encoder (Qwen or Mistral)": r"^((language_model\.)?model\.(language_model\.)?|language_model\.)layers\.",
}
"""Kinds of files in words, and a pattern of a tensor's name in them."""


def kind_of(names: Collection[str]) -> str:
    """What kind of file has tensors of these names, in words; "" if that is unknown."""
    return next((words for words, pattern in KINDS.items() if any(re.search(pattern, name) for name in names)), "")


@dataclass(frozen=True)
class Source:
    """A file with the weights of one part of a pipeline."""

    option: str
    """That it is given with."""
    path: Path
    places: Places
    whole: str | None = None
    """All names in the file that begin with this have to be known; None: any others may be there."""
    unused: str = ""
    """But not those behind it that match this pattern, unless they are of further blocks."""


def text_sources(
    texts: Sequence[str], networks: dict[str, Any], kinds: dict[str, TextFile], title: str
) -> dict[str, Source]:
    """The files of text encoders, by the encoder that each has. Raises ValueError with a sentence for a file that has
    none of `networks`, whose kinds are `kinds`; `title`: the base's kind."""
    found: dict[str, Source] = {}
    for path in map(Path, texts):
        header = read_header(path)
        fitting = {name: places for name, network in networks.items()
                   if (places := kinds[name].places(network, header.tensors)) is not None}
        if not fitting:
            wanted = " or ".join(dict.fromkeys(kinds[name].title for name in networks))
            raise ValueError(f"base.texts: {path} is no text encoder of {title} but {described(header.tensors)}; give "
                             f"{wanted}")
        said = {name: misfit(networks[name], header, places) for name, places in fitting.items()}
        same = [name for name, words in said.items() if not words]
        free = [name for name in same if name not in found]
        if same and not free:
            raise ValueError(f"base.texts: {found[same[0]].path} and {path} are the same text encoder, {same[0]}; give "
                             "one of them")
        if not same:
            closest = max(fitting, key=lambda name: _agreeing(networks[name], header, fitting[name]))
            raise ValueError(f"base.texts: {path}: {said[closest]}, by the configuration of {title}; give "
                             f"{kinds[closest].title} of this size")
        found[free[0]] = Source("base.texts", path, fitting[free[0]])
    return found


def _agreeing(network: Any, header: Header, places: Places) -> int:
    """How many of the network's tensors the file has in the same shape."""
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return sum(isinstance(place, Place) and shapes.get(place.name) == wanted[name] for name, place in places.items())


def described(names: Collection[str]) -> str:
    """What a file with tensors of these names is."""
    return kind_of(names) or f"a file with tensors such as {min(names, default='none')}"
