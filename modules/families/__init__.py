"""Model families. A family is one file here with a class `Model`; this folder is the registry."""

from importlib import import_module
from pkgutil import iter_modules


def names() -> list[str]:
    """All families: the modules of this folder except the protocol. Imports none of them."""
    return [info.name for info in iter_modules(__path__) if info.name != "base"]


def load_class(name: str):
    """The `Model` class of family `name`."""
    return import_module(f"{__name__}.{name}").Model
