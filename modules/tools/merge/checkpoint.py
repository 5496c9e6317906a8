"""A base on disk: which file has which layer's weight, without reading the weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families.parts.names import DENOISER, PREFIXES, Place, stored_names
from modules.families.parts.original import PACKED
from modules.tensorfile import Header, read_header

Target = tuple[str, str]
"""Full name of a layer, and "weight" or "bias"."""

STEMS = ("diffusion_pytorch_model", "model")
"""Prefixes of the names of files with the weights that diffusers and transformers load; others are variants."""


class Checkpoint:
    """A folder in diffusers layout or a single file, with the networks of `model`, a skeleton of it."""

    def __init__(self, model: Any, path: Path):
        """Raises ValueError, naming the file, for damaged files, quantized weights, and networks without weights."""
        self.model, self.path = model, path
        self.is_folder = path.is_dir()
        self.headers = {header.path: header for header in _headers(model, path)}
        self._files = {
            (file.parent.name if self.is_folder else "", name): file
            for file, header in self.headers.items() for name in header.tensors
        }

    def find(self, target: Target) -> tuple[Path, Place] | None:
        """The file and place of a target; None if absent."""
        for part, place in self._candidates(target):
            if (part, place.name) in self._files:
                return self._files[part, place.name], place
        return None

    def tensor(self, target: Target) -> Tensor:
        """Read a target, in the layer's own shape, float32 (float64 if it is). Raises ValueError if it is absent."""
        found = self.find(target)
        if found is None:
            raise ValueError(f"{self.path} has no {target[1]} of {target[0]}")
        file, place = found
        stored = place.get(self.headers[file].tensor(place.name))
        return stored if stored.dtype == torch.float64 else stored.float()

    def _candidates(self, target: Target) -> list[tuple[str, Place]]:
        """Where a target may be: part of the folder (or "" in a single file) and place."""
        layer, kind = target
        if self.is_folder:
            part, _, path = layer.partition(".")
            return [(part, Place(name)) for name in stored_names(f"{path}.{kind}")]
        place = self.model.checkpoint_place(layer, kind)
        where = (place.row, place.rows, place.exchanged, place.transposed)
        network, _, path = layer.partition(".")
        if not place.name.startswith(DENOISER):
            return [("", place)]
        found = [("", Place(prefix + place.name.removeprefix(DENOISER), *where)) for prefix in PREFIXES]
        others = ("", f"{network}.", DENOISER) if network == self.model.DENOISER else ()
        return found + [("", Place(f"{prefix}{path}.{kind}")) for prefix in others]


def _headers(model: Any, path: Path) -> list[Header]:
    if path.is_file():
        return [_readable(read_header(path))]
    found = []
    for part in model.networks:
        files = [file for file in sorted((path / part).glob("*.safetensors")) if _is_loaded(file.name)]
        if not files:
            raise ValueError(f"{path / part} has no weights as .safetensors that diffusers loads by itself; load the "
                             "base in diffusers and save it with save_pretrained first")
        found += [_readable(read_header(file)) for file in files]
    return found


def _is_loaded(name: str) -> bool:
    """Whether this is a file of weights, or a shard of it, not a variant such as `model.fp16.safetensors`."""
    stem, _, rest = name.partition(".")
    return rest == "safetensors" and stem.partition("-")[0] in STEMS


def _readable(header: Header) -> Header:
    packed = [name for name in header.tensors if name.endswith(PACKED)]
    if packed:
        raise ValueError(f"{header.path} has quantized weights ({packed[0]}), into which an adapter cannot be merged; "
                         "give the base in bf16, fp16, fp32 or plain fp8")
    return header
