"""What a program reads from a file and computes from it, bugs included: the second of four rooms, files < hosts <
export < tools. A program is one file here, and this folder is the registry.

    a1111 comfyui comfyui_node diffusers forge lycoris sd_scripts      one program each, as `Host` describes; every
                other module of this folder would count as a program too. A quirk of ComfyUI goes into comfyui.py:
                `effect` what it computes, `trouble` the names that it does not find, `bias_change`, and `notes` what
                the user should know; versions that differ are `others`
    kohya       a value of export.host that is several programs: what they have in common
    key_maps/   which keys of a file each program reads at all; OneTrainer's way is not modelled
    parts/      not programs: shared arithmetic, a program's results for a whole file, the user's ComfyUI

The exporter has no table of what a program supports: it calls `effect`. May import modules/files and what is below it,
never modules/export or modules/tools.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor

from modules import families
from modules.files.forms import Encoding
from modules.files.keys import Names
from modules.hosts.parts.arithmetic import Unread
from modules.preset.export_options import Export

__all__ = [
    "SEVERAL", "Host", "How", "Member", "Several", "Unread", "Way", "is_transformer", "is_unet", "load",
    "magnitude_norm", "names", "programs", "several",
]

SEVERAL = ("kohya",)
"""Modules of this folder that are several programs at once."""


@cache
def is_transformer(family: str) -> bool:
    """Whether a family's denoiser is a transformer, which decides the names that programs recognize; "" is no
    family."""
    return family in families.names() and families.load_class(family).DENOISER == "transformer"


def is_unet(family: str) -> bool:
    """Whether it is a UNet."""
    return family in families.names() and not is_transformer(family)


@dataclass(frozen=True)
class How:
    """Under which conditions a program reads a file."""

    norm: str = "original"
    """Whose norm ComfyUI divides by for output magnitudes: that of the "original" or of the "adapted" weight."""
    magnitudes: bool = False
    """Whether any layer of the file has a magnitude; peft then gives one to all."""
    dtype: torch.dtype | None = None
    """The dtype in which the program computes the weight; None: that of the weight."""
    update: torch.dtype | None = None
    """The dtype of the update, and of the ratio of a magnitude; None: `dtype`."""
    model: torch.dtype | None = None
    """The dtype of the base, and of the result; None: `dtype`."""
    node: bool = True
    """Whether ComfyUI has the custom node that a file is for."""
    generation: str = ""
    """Which generation of A1111; its newest if empty."""
    family: str = ""
    """The model family, if known: not every program supports each."""

    def base(self, W: Tensor) -> Tensor:
        """The weight in the program before it computes."""
        return W.to(self.model or self.dtype or W.dtype).to(self.dtype or W.dtype)


class Way(NamedTuple):
    """The dtypes in which a program computes a layer; see `How`."""

    dtype: torch.dtype
    update: torch.dtype
    model: torch.dtype

    def of(self, how: How) -> How:
        """The same conditions with these dtypes."""
        return replace(how, dtype=self.dtype, update=self.update, model=self.model)


class Host(Protocol):
    """What each file of this folder defines."""

    NAMES: Names
    """Suffixes of its tensors."""
    KINDS: tuple[str, ...]
    """Kinds of `Layer` it reads updates of."""
    WAYS: dict[str, Way]
    """The dtypes in which it may compute, by their names for users; those of `export.computes_in` are among them. Empty
    if unknown."""

    def effect(self, W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
        """The weight in the program, from `W` in the layer's own shape and the layer's tensors by suffix.

        Raises `Unread`, with the reason, where the program would reject the tensors or skip the layer.
        """
        ...

    def fitted(self, W: Tensor, tensors: dict[str, Tensor], how: How) -> dict[str, Tensor]:
        """The tensors adjusted so that the program, in the dtypes of `how`, computes from them as nearly as possible
        what it computes from the given ones in the dtype of `W`. Raises `Unread` as `effect` does."""
        ...

    def own(self, options: Export) -> tuple[Encoding, ...]:
        """Encodings that only this program reads, for these options; the same objects for the same options."""
        ...

    def trouble(self, spelling: str, family: str, names: Collection[str]) -> str:
        """Why the program does not find layers whose names have this spelling (`modules.files.spellings`) in a model of
        `family` ("" if unknown); empty if it does, or if unknown."""
        ...

    def bias_change(self, tensors: dict[str, Tensor], strength: float) -> Tensor | None:
        """What the program adds to the layer's bias `(out)`; None if there is none."""
        ...

    def others(self, how: How) -> dict[str, How]:
        """Other conditions for the same file, by "in which version" in words."""
        ...

    def notes(self, forms: Collection[str]) -> list[str]:
        """What the user should know about a file with these forms (`Encoding.words`), as sentences."""
        ...


class Member(Host, Protocol):
    """One of several programs that a file is for."""

    WORDS: str
    """Its name."""

    def unfound(self, family: str, names: Collection[str]) -> dict[str, str]:
        """Those of these names, all as in the file, that it does not find, and why."""
        ...


class Several(Host, Protocol):
    """What a module of `SEVERAL` defines. Its `effect` is what most of its programs compute."""

    def unfound(self, family: str, layers: Mapping[str, str]) -> list[tuple[str, str, list[str]]]:
        """By program and reason: those of the `layers` (full name by the file's) whose names it does not find."""
        ...

    def apart(self) -> tuple[Member, ...]:
        """The programs that `effect` does not include."""
        ...


def names() -> list[str]:
    """All values of export.host. One that is not a program stands for several. Imports none."""
    return sorted(get_args(Export.model_fields["host"].annotation))


def programs() -> list[str]:
    """All programs. Imports none of them."""
    return [info.name for info in iter_modules(__path__) if not info.ispkg and info.name not in SEVERAL]


@cache
def load(name: str) -> Host:
    """A program, or what several have in common. Raises ValueError for an unknown name."""
    if name not in (*programs(), *SEVERAL):
        raise ValueError(f"export.host {name}: unknown program; choose one of {', '.join(names())}")
    return cast(Host, import_module(f"{__name__}.{name}"))


def several(name: str) -> Several | None:
    """The module if it stands for several programs, else None."""
    return cast(Several, load(name)) if name in SEVERAL else None


def magnitude_norm(options: Export) -> str:
    """Whose norm the program divides output magnitudes by, as `How.norm`; a file says so in its metadata."""
    if options.host.startswith("comfyui"):
        return options.comfyui_norm
    return "original" if options.host in SEVERAL else "adapted"  # Forge alone of kohya's programs reads any
