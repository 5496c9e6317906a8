"""Putting an exported file into the base networks, with the arithmetic of the program it was made for."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from modules import quant
from modules.adapters.layers import KINDS
from modules.export import hosts, verify


def apply_file(model: Any, path: Path, host: str, strength: float = 1.0) -> list[str]:
    """Merge `path`, written for `host` (a value of export.host), into `model.networks` in place.

    Returns the full names of the changed layers. Raises ValueError for keys that belong to no layer, and for quantised
    layers, which cannot take a merged weight.
    """
    bases = {
        f"{prefix}.{name}": module
        for prefix, network in model.networks.items()
        for name, module in network.named_modules()
        if isinstance(module, tuple(KINDS))
    }
    with safe_open(path, "pt") as file:
        norm = (file.metadata() or {}).get("gimbal.comfyui_norm", "original")
    program = hosts.load(host)
    found = verify.read(path, _spelling(model, list(bases), host), program.NAMES)
    how = hosts.How(norm, any(program.NAMES.magnitude in tensors for tensors in found.values()))
    packed = [name for name in found if quant.is_rounded(bases[name])]
    if packed:
        raise ValueError(f"{packed[0]} is quantised and cannot take a merged weight; load the base with "
                         "base.quantization none")
    with torch.no_grad():
        for name, tensors in found.items():
            weight: Any = bases[name].weight
            weight.copy_(program.effect(weight.float(), tensors, strength, how))
    return list(found)


def _spelling(model: Any, layers: Sequence[str], host: str) -> dict[str, str]:
    """The host's names of those layers that have one there."""
    found = {}
    for layer in layers:
        with suppress(ValueError):
            found[layer] = model.export_key(layer, host)
    return found
