"""Reads back a file that was written for a program, all its tensors by layer and suffix."""

from collections import Counter
from pathlib import Path

from torch import Tensor

from modules.files import keys
from modules.files.embeddings import BUNDLE
from modules.tensorfile import opened


def read(path: Path, spelling: dict[str, str], names: keys.Names) -> dict[str, dict[str, Tensor]]:
    """Tensors of a file by layer and suffix, without embeddings of new tokens; `spelling` maps full layer names to the
    file's names.

    Raises ValueError for keys of no layer or unknown to the format, for incomplete layers and for layers without any.
    """
    layers = {key: layer for layer, key in spelling.items()}
    if len(layers) != len(spelling):
        twice = [key for key, count in Counter(spelling.values()).items() if count > 1]
        raise ValueError(f"{path.name}: several layers share one name in the file: {', '.join(twice[:3])}")
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    with opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            if key.startswith(BUNDLE):
                continue
            name, suffix = names.split(key)
            layer = layers.get(name) if suffix else None
            if layer is None:
                unknown.append(key)
            else:
                found.setdefault(layer, {})[suffix] = file.get_tensor(key)
    if unknown:
        raise ValueError(f"{path.name}: keys that the program does not read: {', '.join(unknown[:5])} ({len(unknown)} "
                         "in all)")
    for layer, tensors in found.items():
        if not names.is_complete(tensors):
            raise ValueError(f"{path.name}: {layer} is incomplete; it has only {', '.join(sorted(tensors))}")
    return found
