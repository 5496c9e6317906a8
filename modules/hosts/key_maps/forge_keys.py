"""What Forge (stable-diffusion-webui-forge, June 2025) reads of a file.

Its reader is an older ComfyUI's: fewer names and no rotations. It rejects a file with more than 12 unknown keys, with a
line in its log.
"""

from collections.abc import Mapping
from functools import cache

from torch import Tensor

from modules.families.parts import published
from modules.families.parts.names import joined
from modules.families.parts.published import Published
from modules.hosts.key_maps import comfyui_keys
from modules.hosts.key_maps.loading import KNOWN, NO_FAMILY, Loading, Suffixes, read

TITLE = "Forge"

SUFFIXES = Suffixes(
    tuple(pair for pair in comfyui_keys.PAIRS if pair.up not in (".lora_B", ".lora_B.default.weight")),
    rotations=False, reshapes=False,
)

PATIENCE = 12
"""Number of unknown keys up to which it reads the rest."""


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a model of the family."""
    if family not in KNOWN:
        return Loading(unjudged=NO_FAMILY)
    renamed = {key: key for key in tensors}
    if all(key in tensors for key in comfyui_keys.CONTROL):
        renamed = {f"diffusion_model.{_controlled(key)}": key for key in tensors}
    found = read({new: tensors[old] for new, old in renamed.items()}, names(family), SUFFIXES).under(renamed)
    strangers = len(tensors) - len(found.read)
    if found.raises or strangers <= PATIENCE:
        return found
    return Loading(refuses=f"it does not recognize {strangers} of {len(tensors)} keys, and with more than {PATIENCE} "
                           "it loads nothing, with a message in its log only")


def _controlled(key: str) -> str:
    """A key of Black Forest Labs' control adapters with Forge's name."""
    return key.replace(".lora_B.bias", ".diff_b").replace("_norm.scale", "_norm.scale.set_weight")


@cache
def names(family: str) -> frozenset[str]:
    """The names, without suffixes, that it finds in models of the family."""
    layers = published.layers(family)
    found = _text_names(layers)
    for layer in layers:
        if layer.is_text:
            continue
        name = layer.original.removesuffix(".weight")  # a norm's `scale` belongs to the name
        found |= {f"diffusion_model.{name}"} | ({f"lora_unet_{joined(name)}"} if name != layer.original else set())
        if layer.network == "unet":
            found |= set(comfyui_keys.unet_names(layer))
        elif family == "flux":
            found |= {f"transformer.{layer.path}", f"lycoris_{joined(layer.path)}",
                      f"lora_transformer_{joined(layer.path)}"}
    return frozenset(found)


def _text_names(layers: tuple[Published, ...]) -> set[str]:
    found = set()
    for network in sorted({layer.network for layer in layers if layer.is_text}):
        own = [layer.path for layer in layers if layer.network == network]
        if comfyui_keys.is_t5(own):
            found |= {f"lora_te{number}_{joined(path)}" for number in (1, 2, 3) for path in own
                      if path != "encoder.embed_tokens"}
        else:
            found |= comfyui_keys.clip_names(own, network)
            found |= {"text_encoder.text_projection"} if network.endswith("_2") else set()
    return found
