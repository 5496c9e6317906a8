"""Model families. A family is one file here with a class `Model`; this folder is the registry."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def names() -> list[str]:
    """All families: the modules of this folder except the protocol and shared parts. Imports none of them."""
    return [info.name for info in iter_modules(__path__) if info.name != "base" and not info.ispkg]


def load_class(name: str):
    """The `Model` class of family `name`."""
    return import_module(f"{__name__}.{name}").Model


def name_of(model: Any) -> str:
    """The family of a model."""
    return type(model).__module__.rpartition(".")[2]


def read(name: str, base: Any) -> tuple[Any, list[str]]:
    """The `Model.skeleton` of `base` (a preset's section), or None and sentences about why it cannot be read."""
    family = load_class(name)
    problems = family.problems(base)
    if problems:
        return None, problems
    try:
        return family.skeleton(base), []
    except (OSError, ValueError, KeyError) as error:
        what_to_do = "give a complete copy with --base"
        return None, [f"base.path: {base.path}: its configuration cannot be read ({error}); {what_to_do}"]
