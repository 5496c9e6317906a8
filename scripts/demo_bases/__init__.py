"""Kinds of demo bases. A kind is one file with the default `OPTIONS` of make_demo_base.py, and `train`."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def kinds() -> dict[str, ModuleType]:
    """All kinds by name."""
    return {info.name: import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)}
