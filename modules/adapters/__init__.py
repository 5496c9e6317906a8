"""Adapter methods. A method is one file here with a `Config` and an `Adapter`; this folder is the registry."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


@cache
def methods() -> dict[str, ModuleType]:
    """All methods by name: the modules of this folder that define a `Config`."""
    found = {info.name: import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)}
    return {name: module for name, module in found.items() if "Config" in vars(module)}
