"""Merges an exported file into the base networks in memory, with the arithmetic of the program it is for."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from modules import families, hosts, quant
from modules.adapters.layers import KINDS
from modules.export import fuse, read_back
from modules.families.parts.names import is_unused
from modules.tensorfile import read_header


def apply_file(model: Any, path: Path, host: str, strength: float = 1.0) -> list[str]:
    """Merge `path`, written for `host` (a value of export.host), into `model.networks` in place, in the dtype that it
    is written for.

    Returns the full names of the layers in the file, with all those that are fused. Raises ValueError for keys of no
    layer, and for quantized layers, which cannot be merged into.
    """
    told = read_header(path).metadata
    norm, fitted = told.get("gimbal.comfyui_norm", "original"), json.loads(told.get("gimbal.fitted", "{}"))
    program, groups = hosts.load(host), {group.name: group for group in _groups(model, host)}
    found = read_back.read(path, {name: group.key for name, group in groups.items()}, program.NAMES)
    how = hosts.How(norm, any(program.NAMES.magnitude in tensors for tensors in found.values()),
                    family=families.name_of(model))
    layers = {name: fuse.layer_of(model, groups[name], {}) for name in found}
    single = {name: layer.layers if isinstance(layer, fuse.Fused) else [layer] for name, layer in layers.items()}
    packed = [layer.name for each in single.values() for layer in each if quant.is_rounded(layer.base)]
    if packed:
        raise ValueError(f"{packed[0]} is quantized, so nothing can be merged into it; load the base with "
                         "base.quantization none")
    with torch.no_grad():
        for name, tensors in found.items():
            layer = layers[name]
            there = program.WAYS[fitted[name]].of(how) if name in fitted else how
            result = program.effect(layer.native(layer.dense()).float(), tensors, strength, there)
            parts = layer.split(result) if isinstance(layer, fuse.Fused) else [result]
            for one, part in zip(single[name], parts, strict=True):
                weight: Any = one.base.weight
                weight.copy_(part)
    return [layer.name for each in single.values() for layer in each]


def _groups(model: Any, host: str) -> list[fuse.Group]:
    """The names of layers in the host's files, for those that have one."""
    found = []
    for prefix, network in model.networks.items():
        for path, module in network.named_modules():
            if isinstance(module, tuple(KINDS)) and not is_unused(f"{prefix}.{path}"):
                with suppress(ValueError):
                    model.export_key(f"{prefix}.{path}", host)
                    found.append(f"{prefix}.{path}")
    return fuse.groups(model, found, host)
