"""Which layers of a model a name in an adapter file means."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from modules.adapters.base import Adapted
from modules.adapters.layers import KINDS
from modules.families.parts.names import is_unused


@dataclass(frozen=True)
class Part:
    """A layer that a name refers to, and its position in the matrix of that name."""

    layer: str
    """Full name."""
    row: int = 0
    rows: int = 0
    """The layer is the matrix' rows `[row, row + rows)`; 0: it is the whole matrix."""
    exchanged: bool = False
    """Whether the halves of the layer's outputs are exchanged there."""


def index(model: Any) -> dict[str, list[Part]]:
    """The layers of `model` (a skeleton is enough) by all names that files have for them, without the tensors'
    suffixes.

    Parts of a fused matrix come in the order of its rows.
    """
    return _index(model, _names(model, _is_layer))


def norm_index(model: Any) -> dict[str, list[Part]]:
    """The same for norms with weights, which some programs train besides the layers."""
    return _index(model, _names(model, _is_norm))


def _names(model: Any, wanted: Callable[[nn.Module], bool]) -> list[str]:
    found = [f"{network}.{path}" for network, whole in model.networks.items() for path, module in whole.named_modules()
             if wanted(module) and not path.endswith((".base", ".merged"))]
    return [name for name in found if not is_unused(name)]


def _index(model: Any, layers: Iterable[str]) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for layer in layers:
        for s in model.spellings(layer):
            found.setdefault(s.name, []).append(Part(layer, s.row, s.rows, s.exchanged))
    return {name: sorted(parts, key=lambda part: part.row) for name, parts in found.items()}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*KINDS, Adapted))


def _is_norm(module: nn.Module) -> bool:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.dim() == 1
