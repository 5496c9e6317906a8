"""What sd-scripts (February 2026) reads of a file: `create_network_from_weights`, then `merge_to`.

It makes modules for those of kohya's names that are layers it adapts; all else in a file it passes over in silence.
"""

from collections.abc import Mapping
from functools import cache

from torch import Tensor

from modules.families.parts import published
from modules.families.parts.names import joined
from modules.families.parts.published import Published
from modules.files import keys
from modules.hosts.key_maps.comfyui_keys import CLIP_LAYERS
from modules.hosts.key_maps.loading import Loading

TITLE = "sd-scripts"

NAMES = keys.KOHYA
BLOCKS = ("double_blocks.", "single_blocks.", "joint_blocks.", "img_in.", "txt_in.", "time_in.", "vector_in.",
          "guidance_in.", "context_embedder.", "t_embedder.", "x_embedder.", "y_embedder.")
LAST = "final_layer."
"""Of transformers with three text encoders it adapts this as well."""
UNET_BLOCKS = (".attentions.", ".resnets.", ".downsamplers.", ".upsamplers.")
T5_LAYERS = ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o", "wi_0", "wi_1", "wo")


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a model of the family."""
    known, layers = names(family), {}
    for key in tensors:
        name, dot, suffix = key.partition(".")
        layers.setdefault(name, {})[dot + suffix] = key
    read = set()
    for name, parts in layers.items():
        if name not in known or not any("lora_down" in suffix for suffix in parts):
            continue
        missing = next((suffix for suffix in (NAMES.up, NAMES.down) if suffix not in parts), "")
        if missing:
            return Loading(raises=f"KeyError: {name}{missing}")
        read |= {parts[suffix] for suffix in (NAMES.up, NAMES.down, NAMES.alpha) if suffix in parts}
    return Loading(frozenset(read))


@cache
def names(family: str) -> frozenset[str]:
    """The names, without suffixes, that it finds in models of the family."""
    layers = [layer for layer in published.layers(family) if layer.kind in ("Linear", "Conv2d")]
    number = len({layer.network for layer in layers if layer.is_text})
    found = {name for layer in layers for name in (_text(layer, number) if layer.is_text else _denoiser(layer, number))}
    return frozenset(found)


def _denoiser(layer: Published, encoders: int) -> list[str]:
    original = f"lora_unet_{joined(layer.original.removesuffix('.weight'))}"
    if layer.network != "unet":
        return [original] if layer.original.startswith((*BLOCKS, *((LAST,) if encoders == 3 else ()))) else []
    if not any(block in f".{layer.path}" for block in UNET_BLOCKS):
        return []
    path = f"lora_unet_{joined(layer.path)}"
    return [path] if encoders == 1 else [path, original]  # Stable Diffusion 1's it has under diffusers' paths


def _text(layer: Published, encoders: int) -> list[str]:
    number = layer.network.removeprefix("text_encoder").lstrip("_") or "1"
    if layer.path.endswith(T5_LAYERS):
        return [f"lora_te3_{joined(layer.path)}"]
    known = ".encoder.layers." in layer.path and layer.path.endswith(CLIP_LAYERS)
    return [f"lora_te{'' if encoders == 1 else number}_{joined(layer.path)}"] if known else []
