"""Which keys of a file each program reads, and whether it accepts the file at all: one program, one file, and this
folder is the registry. Each file has a TITLE and a function `loading`; tests/hosts/test_inspect.py compares them with
the programs' loaders.

    comfyui_keys comfyui_node_keys forge_keys a1111_keys sd_scripts_keys diffusers_keys lycoris_keys
    one_trainer_keys a1111_before_1_9_keys     not modelled, and why
    diffusers_source   diffusers' code for names, without the rest of it
    loading            not a program: the result, and what ComfyUI-like programs share

What a program computes from what it reads is in the file of its name in modules/hosts, where there is one.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from torch import Tensor

from modules.hosts.key_maps.loading import Loading

__all__ = ["Loading", "Program", "load", "names"]

END = "_keys"


class Program(Protocol):
    """What each file of this folder defines."""

    TITLE: str
    """For users."""

    def loading(self, tensors: Mapping[str, Tensor], family: str) -> Loading:
        """What the program reads of a file with these tensors in a model of the family."""
        ...


def names() -> list[str]:
    """All programs."""
    return [info.name.removesuffix(END) for info in iter_modules(__path__) if info.name.endswith(END)]


def load(name: str) -> Program:
    """The program of this name."""
    return cast(Program, import_module(f"{__name__}.{name}{END}"))
