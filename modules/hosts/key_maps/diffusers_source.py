"""diffusers' functions that convert a file's names to its own, run from its source files alone.

    lora_pipeline().FluxLoraLoaderMixin.lora_state_dict(tensors), state_dicts().convert_state_dict_to_peft(tensors)

Importing the package for them takes several seconds, most of it for models and for torch's compiler. Only three of its
files are needed. They are run here as modules of a package of another name, so that diffusers can be imported beside
it; imports from the rest of diffusers, unused here, raise if they are used.
"""

import logging
import sys
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "gimbal_diffusers_source"
"""Of the package."""


class Absent:
    """Stands in for a class or function of diffusers that is not run here."""

    def __init__(self, *given: Any, **named: Any):
        raise NotImplementedError(f"{type(self).__name__}: of diffusers only what converts names is run here")


class Around(ModuleType):
    """A module without its code. Any name can be imported from it; names that were not set are `Absent`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Absent,), {})


@cache
def lora_pipeline() -> Any:
    """diffusers.loaders.lora_pipeline, for the mixins' `lora_state_dict` of tensors by key."""
    _around("utils", logging=_around("utils.logging", get_logger=_silent), is_peft_available=bool,
            require_peft_backend=_unchanged, state_dict_all_zero=state_dicts().state_dict_all_zero)
    _around("utils.torch_utils")
    _around("loaders")
    _around("loaders.lora_base", LoraBaseMixin=type("LoraBaseMixin", (), {}), _fetch_state_dict=_given)
    _run("loaders.lora_conversion_utils")
    return _run("loaders.lora_pipeline")


@cache
def state_dicts() -> Any:
    """diffusers.utils.state_dict_utils."""
    _around("")
    _around("utils")
    _around("utils.logging", get_logger=_silent)
    _around("utils.import_utils", is_torch_available=lambda: True)
    return _run("utils.state_dict_utils")


def _around(name: str, **content: Any) -> Around:
    """The module of this name without its code, but with this content."""
    found = Around(f"{NAME}.{name}".rstrip("."))
    found.__path__ = []  # a package: it has submodules
    vars(found).update(content)
    sys.modules[found.__name__] = found
    return found


def _run(name: str) -> ModuleType:
    """One of diffusers' files, run under our package's name."""
    package = find_spec("diffusers")
    assert package and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]).joinpath(*name.split(".")).with_suffix(".py")
    spec = spec_from_file_location(f"{NAME}.{name}", path)
    assert spec and spec.loader
    found = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def _silent(name: str) -> logging.Logger:
    """A silent logger: warnings would be about the stand-ins for a file's tensors."""
    found = logging.getLogger(name)
    found.disabled = True
    return found


def _unchanged(function: Any) -> Any:
    return function


def _given(**given: Any) -> tuple[dict, None]:
    """`_fetch_state_dict` without fetching: the tensors, and no metadata."""
    return given["pretrained_model_name_or_path_or_dict"], None
