"""The programs a file can be for. A program is one file here; this folder is the registry.

Each says how the program names tensors and what it computes from them, bugs included, as `Host` describes. The
exporter has no table of what a program can hold: it asks `effect`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

import torch
from torch import Tensor

from modules.export.arithmetic import Unread
from modules.export.forms import Encoding
from modules.export.keys import Names
from modules.preset.schema import Export

__all__ = ["Host", "How", "Unread", "load", "names"]


@dataclass(frozen=True)
class How:
    """Under which conditions a program reads a file."""

    norm: str = "original"
    """Whose norm ComfyUI divides by for output magnitudes: that of the "original" or of the "adapted" weight."""
    magnitudes: bool = False
    """Whether any layer of the file has a magnitude; peft then gives one to all."""
    dtype: torch.dtype | None = None
    """In which numbers the program computes; None: in those of the weight."""
    node: bool = True
    """Whether ComfyUI has the custom node that a file is for."""


class Host(Protocol):
    """What each file of this folder defines."""

    NAMES: Names
    """Suffixes of its tensors."""
    KINDS: tuple[str, ...]
    """Kinds of `Layer` it reads updates of."""

    def effect(self, W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
        """The weight in the program, from `W` in the layer's own shape and the layer's tensors by suffix.

        Raises `Unread`, with the reason, where the program would refuse the tensors or skip the layer.
        """
        ...

    def own(self, options: Export) -> tuple[Encoding, ...]:
        """Encodings that only this program reads, as the options want them; the same objects for the same options."""
        ...

    def bias_change(self, tensors: dict[str, Tensor], strength: float) -> Tensor | None:
        """What the program adds to the layer's bias `(out)`; None if it finds nothing to add."""
        ...

    def others(self, how: How) -> dict[str, How]:
        """Other conditions that the same file may meet, by "in which version" in words."""
        ...

    def notes(self, forms: Collection[str]) -> list[str]:
        """What the user should know about a file with these forms (`Encoding.words`), as sentences."""
        ...


def names() -> list[str]:
    """All programs, values of export.host. Imports none of them."""
    return [info.name for info in iter_modules(__path__) if not info.ispkg]


@cache
def load(name: str) -> Host:
    """The program `name`. Raises ValueError for a name that is none."""
    if name not in names():
        raise ValueError(f"export.host {name}: there is no such program; there is {', '.join(names())}")
    return cast(Host, import_module(f"{__name__}.{name}"))
