"""What sd-scripts (February 2026) reads of a file: `create_network_from_weights`, then `merge_to`.

It makes modules for those of kohya's names that are layers it adapts, and silently ignores everything else in a file.
Its user chooses the module that reads a file: one for low-rank pairs (networks.lora and those that write its files), or
networks.oft for a file whose names begin with `oft`.
"""

from collections.abc import Mapping
from functools import cache

from torch import Tensor

from modules.families.parts import published
from modules.families.parts.names import joined
from modules.families.parts.published import Published
from modules.files import keys
from modules.hosts.key_maps.comfyui_keys import CLIP_LAYERS
from modules.hosts.key_maps.loading import KNOWN, NO_FAMILY, Loading

TITLE = "sd-scripts"

NAMES = keys.KOHYA
BLOCKS = ("double_blocks.", "single_blocks.", "joint_blocks.", "img_in.", "txt_in.", "time_in.", "vector_in.",
          "guidance_in.", "context_embedder.", "t_embedder.", "x_embedder.", "y_embedder.")
LAST = "final_layer."
"""Of transformers with three text encoders it adapts this as well."""
UNET_BLOCKS = (".attentions.", ".resnets.", ".downsamplers.", ".upsamplers.")
RESIDUAL = UNET_BLOCKS[1:]
T5_LAYERS = ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o", "wi_0", "wi_1", "wo")

WIDTH = 320
"""Outputs of the narrowest layers of its U-Nets; all others have a multiple."""


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a model of the family."""
    if family not in KNOWN:
        return Loading(unjudged=NO_FAMILY)
    if next((key for key in tensors if key.startswith(("lora", "oft"))), "").startswith("oft"):
        return _rotations(tensors, family)
    known, layers = names(family), {}
    for key in tensors:
        name, dot, suffix = key.partition(".")
        layers.setdefault(name, {})[dot + suffix] = key
    read, found = set(), {name: parts for name, parts in layers.items()
                          if name in known and any("lora_down" in suffix for suffix in parts)}
    for name, parts in found.items():
        if NAMES.alpha not in parts and not _is_unet(family):
            return Loading(raises=f"KeyError: {name}, which has no alpha")
    for name, parts in found.items():
        missing = next((suffix for suffix in (NAMES.up, NAMES.down) if suffix not in parts), "")
        if missing:
            return Loading(raises=f"KeyError: {name}{missing}")
        read |= {parts[suffix] for suffix in (NAMES.up, NAMES.down, NAMES.alpha) if suffix in parts}
    return Loading(frozenset(read))


def _is_unet(family: str) -> bool:
    return any(layer.network == "unet" for layer in published.layers(family))


def _rotations(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What networks.oft reads: it makes modules of one size for all layers of some kinds, and sets those that it
    can."""
    if not _is_unet(family):
        return Loading(unjudged="how its modules for rotations read files for this model family is not modelled")
    alphas = [key for key in tensors if key.endswith(NAMES.alpha)]
    blocks = [key for key in tensors if not key.endswith(NAMES.alpha)]
    count = len(tensors[blocks[0]]) if blocks and tensors[blocks[0]].dim() else 0
    if not alphas or not count or WIDTH % count:
        return Loading(raises=f"{'TypeError: no alpha' if count else 'RuntimeError: no number of blocks'} that fits")
    known = rotated(family, any("_ff_" in key for key in blocks), any("in_layers_2" in key for key in blocks))
    read = {key for key in tensors for name, dot, suffix in (key.partition("."),)
            if name in known and dot + suffix in (keys.BLOCKS, NAMES.alpha)}
    for key in sorted(read):
        shape = tensors[key].shape
        if shape not in ((), (1,)) if key.endswith(NAMES.alpha) else len(shape) != 3 or shape[0] != count:
            return Loading(raises=f"RuntimeError: {key} has the size {list(shape)}")
    return Loading(frozenset(read), other_arithmetic=True)


@cache
def rotated(family: str, all_linear: bool, convolutions: bool) -> frozenset[str]:
    """The names of the layers that networks.oft makes modules for."""
    wanted = ((".attentions.",) if all_linear else (".attn1.", ".attn2.")) + (RESIDUAL if convolutions else ())
    layers, encoders = _layers(family)
    return frozenset(_denoiser(layer, encoders)[-1].replace("lora_", "oft_", 1) for layer in layers
                     if not layer.is_text and any(part in f".{layer.path}" for part in wanted))


@cache
def names(family: str) -> frozenset[str]:
    """The names, without suffixes, that it finds in models of the family."""
    layers, number = _layers(family)
    found = {name for layer in layers for name in (_text(layer, number) if layer.is_text else _denoiser(layer, number))}
    return frozenset(found)


def _layers(family: str) -> tuple[list[Published], int]:
    """The layers of the kinds that it adapts, and the number of text encoders."""
    layers = [layer for layer in published.layers(family) if layer.kind in ("Linear", "Conv2d")]
    return layers, len({layer.network for layer in layers if layer.is_text})


def _denoiser(layer: Published, encoders: int) -> list[str]:
    original = f"lora_unet_{joined(layer.original.removesuffix('.weight'))}"
    if layer.network != "unet":
        return [original] if layer.original.startswith((*BLOCKS, *((LAST,) if encoders == 3 else ()))) else []
    if not any(block in f".{layer.path}" for block in UNET_BLOCKS):
        return []
    path = f"lora_unet_{joined(layer.path)}"
    return [path] if encoders == 1 else [path, original]  # Stable Diffusion 1's have diffusers' paths


def _text(layer: Published, encoders: int) -> list[str]:
    number = layer.network.removeprefix("text_encoder").lstrip("_") or "1"
    if layer.path.endswith(T5_LAYERS):
        return [f"lora_te3_{joined(layer.path)}"]
    known = ".encoder.layers." in layer.path and layer.path.endswith(CLIP_LAYERS)
    return [f"lora_te{'' if encoders == 1 else number}_{joined(layer.path)}"] if known else []
