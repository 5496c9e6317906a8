"""Reading a file back, and the distance of what a program computes from it from what was meant."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from modules.export import keys
from modules.tensorfile import opened

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 8e-3}
"""Largest allowed error of a weight, as a part of the layer's largest weight. In half precision about four roundings
(2^-11 each, bfloat16 2^-9): both factors, and room for a product that partly cancels or exceeds the base."""


@dataclass(frozen=True)
class LayerError:
    """Distance of a file's effect from the trained weight."""

    weight: float
    """max |W_file - W_trained| / max |W_trained|"""
    change: float
    """||W_file - W_trained|| / ||W_trained - W||, Frobenius; 0 for an untrained layer"""


def read(path: Path, spelling: dict[str, str], names: keys.Names) -> dict[str, dict[str, Tensor]]:
    """Tensors of a file by layer and suffix; `spelling` maps full layer names to the file's names.

    Raises ValueError for keys that belong to no layer or are unknown to the format, for incomplete layers and for
    layers without any.
    """
    layers = {key: layer for layer, key in spelling.items()}
    if len(layers) != len(spelling):
        twice = [key for key, count in Counter(spelling.values()).items() if count > 1]
        raise ValueError(f"{path.name}: several layers share one name in the file: {', '.join(twice[:3])}")
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    with opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            name, suffix = names.split(key)
            layer = layers.get(name) if suffix else None
            if layer is None:
                unknown.append(key)
            else:
                found.setdefault(layer, {})[suffix] = file.get_tensor(key)
    if unknown:
        raise ValueError(f"{path.name}: keys that the program would not read: {', '.join(unknown[:5])} "
                         f"({len(unknown)} in all)")
    for layer, tensors in found.items():
        if not names.is_complete(tensors):
            raise ValueError(f"{path.name}: {layer} is incomplete; it has only {', '.join(sorted(tensors))}")
    return found


def compare(trained: Tensor, filed: Tensor, base: Tensor) -> LayerError:
    """Distance of `filed` from `trained`, all three in the layer's shape."""
    error, change = (filed - trained).double(), (trained - base).double()
    largest, moved = trained.abs().max().item(), change.norm().item()
    return LayerError(
        weight=error.abs().max().item() / largest if largest else error.abs().max().item(),
        change=error.norm().item() / moved if moved else 0.0,
    )


def is_too_large(error: LayerError, dtype: str) -> bool:
    """Whether an exact form misses `TOLERANCE`; a value that is not a number does."""
    return not math.isfinite(error.weight) or error.weight > TOLERANCE[dtype]
