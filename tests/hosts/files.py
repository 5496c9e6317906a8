"""The files that programs are given: every method with random parameters on a base, written with default options."""

import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules import adapters
from modules.adapters.base import adapted_layers, attach, detach
from modules.export.export import export
from modules.export.metadata import Facts
from tests.export import every
from tests.export.setup import preset, randomise
from tests.hosts import bases

SCALE = 0.05
"""Of the random parameters: changes of a few per cent of a weight, as trainings make them."""
FOLDER = tempfile.TemporaryDirectory(prefix="gimbal_files_")


@dataclass(frozen=True)
class Written:
    """A file, or why there is none."""

    path: Path | None = None
    refusal: str = ""
    """The exporter's reason and advice."""
    forms: dict[str, str] = field(default_factory=dict)
    """By layer: how it is stored, in words."""


def methods() -> list[str]:
    """All methods and those of their options that decide what a file holds, as docs/exports.md lists them."""
    return list(every.VARIANTS)


@cache
def meant(family: str, label: str) -> dict[str, Tensor]:
    """The trained weights by layer, and `base` for those that the method does not take; float64."""
    found = bases.base(family)
    layers = _trained(found, label)
    try:
        with torch.no_grad():
            return {name: adapted.adapted_weight().double() for name, adapted in layers.items()}
    finally:
        _bare(found)


@cache
def written(family: str, label: str, host: str, dtype: str) -> Written:
    """The file of a method for a value of export.host, with factors in `dtype`."""
    found = bases.base(family)
    layers = _trained(found, label)
    name = f"{family}_{list(every.VARIANTS).index(label)}_{host}_{dtype}.safetensors"
    try:
        report = export(found.model, layers, preset(*every.VARIANTS[label], host=host, dtype=dtype), Facts(),
                        Path(FOLDER.name) / name)
    except ValueError as refusal:
        return Written(refusal=str(refusal))
    finally:
        _bare(found)
    return Written(report.path, "", dict(report.forms))


def _trained(found: bases.Base, label: str) -> dict[str, Any]:
    """Adapters on the base's layers, moved from where training starts."""
    method, options = every.VARIANTS[label]
    config = adapters.methods()[method].Config(method=method, **options)
    network = nn.ModuleDict(found.model.networks)
    for number, name in enumerate(found.layers):
        try:
            randomise(attach(network, name, config, 0), number, SCALE)
        except ValueError as refusal:
            assert "exclude it" in str(refusal), refusal
    return dict(adapted_layers(network))


def _bare(found: bases.Base) -> None:
    """Take the adapters off again."""
    for network in found.model.networks.values():
        detach(network)
