"""What a program finds in a file and computes from it, bugs included: the second of four rooms, files < hosts <
export < tools. A program is one file here, and this folder is the registry.

    comfyui comfyui_node diffusers kohya lycoris      one program each, as `Host` describes; every other module of this
                folder would be taken for a program too. A quirk of ComfyUI goes into comfyui.py: `effect` what it
                computes, `trouble` the names that it does not find, `bias_change`, and `notes` what the user is told
    key_maps/   which keys of a file each program reads at all; OneTrainer's way is not modelled
    parts/      no programs: what several compute alike, what a program makes of a whole file, the user's own ComfyUI

The exporter has no table of what a program can hold: it asks `effect`. May import modules/files and what is below it,
never modules/export or modules/tools.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

import torch
from torch import Tensor

from modules.files.forms import Encoding
from modules.files.keys import Names
from modules.hosts.parts.arithmetic import Unread
from modules.preset.schema import Export

__all__ = ["TRANSFORMERS", "UNETS", "Host", "How", "Unread", "load", "names"]

UNETS, TRANSFORMERS = ("sd15", "sdxl"), ("sd3", "flux")
"""Families, by what the names that programs know depend on."""


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

    def trouble(self, spelling: str, family: str, names: Collection[str]) -> str:
        """Why the program does not find layers whose names have this spelling (`modules.files.spellings`) in a model of
        `family` ("" if unknown); empty if it does, or nobody knows."""
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
