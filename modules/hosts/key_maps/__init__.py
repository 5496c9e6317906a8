"""Which keys of a file each program reads, and whether it takes the file at all: one program, one file, and this folder
is the registry. Each file has a TITLE and a function `loading`; tests/hosts/test_inspect.py holds them against the
programs' own loaders.

    comfyui_keys comfyui_node_keys forge_keys a1111_keys sd_scripts_keys diffusers_keys lycoris_keys
    one_trainer_keys a1111_before_1_9_keys     of which nothing is said, and why
    diffusers_source   diffusers' own code for names, without the rest of it
    loading            no program: the outcome, and what programs of ComfyUI's kind do alike

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
    """For people."""

    def loading(self, tensors: Mapping[str, Tensor], family: str) -> Loading:
        """What the program reads of a file with these tensors in a model of the family."""
        ...


def names() -> list[str]:
    """All programs."""
    return [info.name.removesuffix(END) for info in iter_modules(__path__) if info.name.endswith(END)]


def load(name: str) -> Program:
    """The program of this name."""
    return cast(Program, import_module(f"{__name__}.{name}{END}"))
