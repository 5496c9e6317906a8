"""What programs compute from a file: their arithmetic on the tensors read back, and its distance from the training.

The emulators follow export.md section 2 (each was compared there with the program's own code). `W` is a weight in the
layer's own shape, float32; `tensors` are one layer's, by suffix; `strength` is the user's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from modules.export import keys

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 8e-3}
"""Largest allowed error of a weight, as a part of the layer's largest weight. In half precision about four roundings
(2^-11 each, bfloat16 2^-9): both factors, and room for a product that partly cancels or exceeds the base."""


@dataclass(frozen=True)
class Arithmetic:
    """How one program reads a file."""

    names: keys.Names
    effect: Callable[[Tensor, dict[str, Tensor], float], Tensor]


@dataclass(frozen=True)
class LayerError:
    """Distance of a file's effect from the trained weight."""

    weight: float
    """max |W_file - W_trained| / max |W_trained|"""
    change: float
    """||W_file - W_trained|| / ||W_trained - W||, Frobenius; 0 for an untrained layer"""


def read(path: Path, spelling: dict[str, str], names: keys.Names) -> dict[str, dict[str, Tensor]]:
    """Tensors of a file by layer and suffix; `spelling` maps full layer names to the file's names.

    Raises ValueError for keys that belong to no layer or are unknown to the format, for incomplete layers and for
    layers without any.
    """
    layers = {key: layer for layer, key in spelling.items()}
    if len(layers) != len(spelling):
        twice = [key for key in layers if list(spelling.values()).count(key) > 1]
        raise ValueError(f"{path.name}: several layers share one name in the file: {', '.join(twice[:3])}")
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            suffix = next((s for s in names.all() if key.endswith(s)), "")
            layer = layers.get(key.removesuffix(suffix)) if suffix else None
            if layer is None:
                unknown.append(key)
            else:
                found.setdefault(layer, {})[suffix] = file.get_tensor(key)
    if unknown:
        raise ValueError(f"{path.name}: keys that the program would not read: {', '.join(unknown[:5])} "
                         f"({len(unknown)} in all)")
    for layer, tensors in found.items():
        if names.difference not in tensors and not {names.up, names.down} <= tensors.keys():
            raise ValueError(f"{path.name}: {layer} is incomplete; it has only {', '.join(sorted(tensors))}")
    return found


def comfyui(norm: str) -> Arithmetic:
    """ComfyUI; `norm` is that of the "original" or of the "adapted" weight, for output magnitudes."""

    def effect(W: Tensor, tensors: dict[str, Tensor], strength: float) -> Tensor:
        if keys.KOHYA.difference in tensors:  # read last, so it wins
            return W + strength * tensors[keys.KOHYA.difference].to(W)
        change = _low_rank(W, tensors, keys.KOHYA)
        scale = tensors.get(keys.KOHYA.magnitude)
        if scale is None:
            return W + strength * change
        if scale.dim() == 1:
            raise ValueError("ComfyUI cannot apply a dora_scale with one dimension")
        V = W + change
        along_output = scale.shape[0] == W.shape[0]  # ComfyUI guesses the axis; [1, in] with one output is misread
        length = _row_norm(W if norm == "original" else V) if along_output else _column_norm(V)
        adapted = V * (scale.to(W) / (length + torch.finfo(W.dtype).eps))
        return W + strength * (adapted - W)

    return Arithmetic(keys.KOHYA, effect)


def kohya() -> Arithmetic:
    """The program that reads a kohya file exactly: A1111 for input magnitudes, LyCORIS for output magnitudes.

    Their strengths differ from 1 in different ways; A1111's linear one is used.
    """

    def effect(W: Tensor, tensors: dict[str, Tensor], strength: float) -> Tensor:
        if keys.KOHYA.difference in tensors:
            return W + strength * tensors[keys.KOHYA.difference].to(W)
        V = W + _low_rank(W, tensors, keys.KOHYA)
        scale = tensors.get(keys.KOHYA.magnitude)
        if scale is None:
            return W + strength * (V - W)
        if scale.shape[0] == W.shape[0]:
            adapted = V * (scale.to(W) / (_row_norm(V) + torch.finfo(W.dtype).eps))
        else:
            adapted = V * (scale.to(W) / _column_norm(V))
        return W + strength * (adapted - W)

    return Arithmetic(keys.KOHYA, effect)


def diffusers(magnitudes: bool) -> Arithmetic:
    """peft; with `magnitudes` every layer of the file has one, by default the norm of the base weight."""

    def effect(W: Tensor, tensors: dict[str, Tensor], strength: float) -> Tensor:
        V = W + strength * _low_rank(W, tensors, keys.PEFT)
        if not magnitudes:
            return V
        given = tensors.get(keys.PEFT.magnitude)
        rows = [-1, *[1] * (W.dim() - 1)]
        length = _row_norm(W) if given is None else given.to(W).view(rows)
        return V * (length / _row_norm(V))

    return Arithmetic(keys.PEFT, effect)


def arithmetic(host: str, norm: str, magnitudes: bool) -> Arithmetic:
    """How `host` (a value of export.host) reads a file."""
    if host == "comfyui":
        return comfyui(norm)
    return kohya() if host == "kohya" else diffusers(magnitudes)


def compare(trained: Tensor, filed: Tensor, base: Tensor) -> LayerError:
    """Distance of `filed` from `trained`, all three in the layer's shape."""
    error, change = (filed - trained).double(), (trained - base).double()
    largest, moved = trained.abs().max().item(), change.norm().item()
    return LayerError(
        weight=error.abs().max().item() / largest if largest else error.abs().max().item(),
        change=error.norm().item() / moved if moved else 0.0,
    )


def is_too_large(error: LayerError, dtype: str) -> bool:
    """Whether an exact form misses `TOLERANCE`; a value that is not a number does."""
    return not math.isfinite(error.weight) or error.weight > TOLERANCE[dtype]


def _low_rank(W: Tensor, tensors: dict[str, Tensor], names: keys.Names) -> Tensor:
    up, down = tensors[names.up].to(W), tensors[names.down].to(W)
    scale = tensors[names.alpha].item() / down.shape[0] if names.alpha in tensors else 1.0
    return scale * (up.flatten(1) @ down.flatten(1)).reshape(W.shape)


def _row_norm(W: Tensor) -> Tensor:
    """`[out, 1(, 1, 1)]`"""
    return W.flatten(1).norm(dim=1).view(-1, *[1] * (W.dim() - 1))


def _column_norm(W: Tensor) -> Tensor:
    """`[1, in(, 1, 1)]`"""
    return W.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (W.dim() - 2))
