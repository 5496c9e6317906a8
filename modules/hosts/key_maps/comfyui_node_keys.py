"""ComfyUI with our node (comfyui_node/), which finds the same layers as ComfyUI and reads more suffixes."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from modules.hosts.comfyui_node import FOREIGN_NAMES, FORMAT, PARTS
from modules.hosts.key_maps import comfyui_keys
from modules.hosts.key_maps.loading import Loading

TITLE = "ComfyUI with Gimbal's node"

SUFFIXES = (FORMAT, *(f".gimbal_{part}" for part in PARTS), *FOREIGN_NAMES)


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a model of the family."""
    found, names = comfyui_keys.loading(tensors, family), comfyui_keys.names(family)
    more = {key for key in tensors for suffix in SUFFIXES if key.endswith(suffix) and key.removesuffix(suffix) in names}
    return found if found.raises else replace(found, read=found.read | more)
