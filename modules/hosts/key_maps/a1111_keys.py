"""What A1111 (stable-diffusion-webui 1.10.1, its extension Lora) reads of a file.

It searches kohya's names among its own modules, whose paths are the original checkpoint's. It skips names that it does
not find, with a log message at most; a layer that it finds with tensors of an unknown type is an error for the whole
file.
"""

import re
from collections.abc import Mapping
from functools import cache

from torch import Tensor

from modules.families.parts import published
from modules.families.parts.names import joined
from modules.families.parts.published import Published
from modules.files import keys
from modules.hosts.key_maps.loading import NO_FAMILY, Loading

TITLE = "A1111"

EMBEDDINGS = "bundle_emb"
"""Prefixes of the names of embeddings."""

UNET = ("conv_in", "conv_out", "time_embedding", "down_blocks", "mid_block", "up_blocks")
"""Prefixes of diffusers' paths that it converts to original ones."""
QKV = re.compile(r"(.*)[._](to_[qkv])")

KINDS: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((keys.KOHYA.up, keys.KOHYA.down),), ((keys.PEFT.up, keys.PEFT.down),), (keys.HADAMARD,), ((".weight",),),
    tuple((*first, *second) for first in ((".lokr_w1",), (".lokr_w1_a", ".lokr_w1_b"))
          for second in ((".lokr_w2",), (".lokr_w2_a", ".lokr_w2_b"))),
    ((keys.KOHYA.difference,),), ((keys.NORM, keys.NORM_BIAS),), ((*keys.GENERAL, keys.KOHYA.alpha),),
    ((keys.BLOCKS,), (".oft_diag",)),
)
"""The kinds in its order, each with the sets of suffixes that make it. The first that a layer has is read."""

BESIDE = (
    (keys.MIDDLE,), (), keys.HADAMARD_CORES, (".on_input",), keys.KRONECKER, (keys.KOHYA.bias,), (), (), (keys.RESCALE,)
)
"""What it reads with each kind; with peft's names not even alpha."""
ALWAYS = (keys.KOHYA.alpha, keys.KOHYA.magnitude, ".scale")

ON_LAYERS = (0, 1)
"""Kinds that only linear layers and convolutions support."""


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a model of the family."""
    kinds = names(family)
    if not kinds:
        return Loading(unjudged=NO_FAMILY)
    is_flow = any("joint_blocks" in layer.original for layer in published.layers(family))
    layers: dict[str, dict[str, str]] = {}
    read = {key for key in tensors if key.partition(".")[0] == EMBEDDINGS and key.count(".") > 1}
    for key in tensors:
        if is_flow and key.count(".") < 2:
            return Loading(raises=f"ValueError for {key}: for this model family it splits every name at two dots")
        name, dot, suffix = _split_at_the_last(key) if is_flow else key.partition(".")
        layers.setdefault(name, {})[dot + suffix] = key
    for name, parts in layers.items():
        kind = kinds.get(name)
        if kind is None:
            continue
        number = next((number for number, wholes in enumerate(KINDS) if any(set(whole) <= parts.keys()
                                                                             for whole in wholes)), None)
        if number is None:
            return Loading(raises=f"AssertionError: {name} has no tensors of a type that it supports, only "
                                  f"{', '.join(sorted(parts))}")
        if number in ON_LAYERS and kind not in ("Linear", "Conv2d"):
            return Loading(raises=f"AssertionError: {name} is a layer of a type that it cannot change in this way")
        wanted = {suffix for whole in KINDS[number] for suffix in whole} | set(BESIDE[number])
        read |= {parts[suffix] for suffix in (wanted | (set() if number == 1 else set(ALWAYS))) & parts.keys()}
    return Loading(frozenset(read))


def _split_at_the_last(key: str) -> tuple[str, str, str]:
    name, second, last = key.rsplit(".", 2)
    return name, ".", f"{second}.{last}"


@cache
def names(family: str) -> dict[str, str]:
    """The names, without suffixes, that it finds in models of the family, and the classes of these modules."""
    layers = published.layers(family)
    is_flow = any("joint_blocks" in layer.original for layer in layers)
    if not is_flow and all(layer.network != "unet" for layer in layers):
        return {}
    is_two = any(layer.network.endswith("_2") for layer in layers)
    # The roots of its models are modules too, with names that are prefixes of other programs' keys.
    roots = ["diffusion_model"] if is_flow else ["diffusion_model", *([] if is_two else ["transformer"])]
    found = dict.fromkeys(roots, "")
    for layer in layers:
        if not layer.is_text:
            found |= dict.fromkeys(_flow_names(layer) if is_flow else _unet_names(layer), layer.kind)
        elif not is_flow:
            found |= dict.fromkeys(_text_names(layer, is_two), layer.kind)
    return dict.fromkeys(_around(layers, is_flow), "") | found


def _around(layers: tuple[Published, ...], is_flow: bool) -> set[str]:
    """The names of modules with submodules, which it finds as well."""
    found = set()
    for layer in layers:
        if layer.is_text and (is_flow or layer.network.endswith("_2")):
            continue
        parts = (layer.path if layer.is_text else layer.original.removesuffix(".weight")).split(".")
        starts = ["lora_te1"] if layer.is_text else ["lora_unet", "oft_unet"]
        found |= {"_".join((start, *parts[:count])) for start in starts for count in range(layer.is_text, len(parts))}
    return found


def _original(layer: Published) -> list[str]:
    name = joined(layer.original.removesuffix(".weight"))
    return [f"lora_unet_{name}", f"oft_unet_{name}"]


def _unet_names(layer: Published) -> list[str]:
    found = _original(layer)
    # It treats the first upsampler as one without attention before it.
    is_lost = "upsamplers" in layer.path and layer.path.startswith("up_blocks.0.") and ".2.conv" in layer.original
    if layer.path.startswith(UNET) and not is_lost:
        found.append(f"lora_unet_{joined(layer.path)}")
    return found


def _flow_names(layer: Published) -> list[str]:
    """diffusers' names of the image-only attention, among those that it has a table for."""
    if layer.path.endswith((".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0")):
        return [*_original(layer), f"transformer.{layer.path}"]
    return _original(layer)


def _text_names(layer: Published, is_two: bool) -> list[str]:
    path = joined(layer.path)
    if layer.network.endswith("_2"):
        return [f"lora_te2_{path}"] if ".encoder.layers." in layer.path and "layer_norm" not in layer.path else []
    if is_two:
        return [f"lora_te1_{path}"]
    return [f"lora_te1_{path}"] + ([f"lora_te_{path}"] if ".encoder.layers." in layer.path else [])
