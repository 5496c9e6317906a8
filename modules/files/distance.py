"""The distance of two weights: what a program computes from a file, and the trained weight."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 8e-3}
"""Largest allowed error of a weight, relative to the layer's largest weight. In half precision about four roundings
(2^-11 each, bfloat16 2^-9): both factors, and room for a product that partly cancels or exceeds the base."""


@dataclass(frozen=True)
class LayerError:
    """Distance of a file's effect from the trained weight."""

    weight: float
    """max |W_file - W_trained| / max |W_trained|"""
    change: float
    """||W_file - W_trained|| / ||W_trained - W||, Frobenius; 0 for an untrained layer, whose change is zero or below
    float32's resolution of its largest weight (root mean square)."""


def compare(trained: Tensor, filed: Tensor, base: Tensor) -> LayerError:
    """Distance of `filed` from `trained`, all three in the layer's shape."""
    found = Comparison()
    found.add(trained, filed, base)
    return found.error()


class Comparison:
    """A comparison of a layer that comes in parts, such as blocks of rows. Without temporaries beyond two of a part's
    size; sums are float64."""

    def __init__(self) -> None:
        self.size = 0
        self.largest_error = self.largest = self.errors = self.moves = torch.zeros((), dtype=torch.float64)

    def add(self, trained: Tensor, filed: Tensor, base: Tensor) -> None:
        """One part of each of the three, of equal shapes."""
        self.size += trained.numel()
        self.largest = torch.maximum(self.largest, _largest(trained))
        difference = filed - trained
        self.largest_error = torch.maximum(self.largest_error, _largest(difference))
        self.errors = self.errors + _square(difference)
        self.moves = self.moves + _square(torch.sub(trained, base))

    def error(self) -> LayerError:
        """Of all parts together."""
        error, largest, moved = self.largest_error.item(), self.largest.item(), self.moves.sqrt().item()
        is_trained = not moved <= torch.finfo(torch.float32).eps / 2 * largest * self.size**0.5
        return LayerError(
            weight=error / largest if largest else error,
            change=self.errors.sqrt().item() / moved if is_trained else 0.0,
        )


def _largest(tensor: Tensor) -> Tensor:
    """The largest absolute value, NaN if there is one."""
    low, high = tensor.aminmax()
    return torch.maximum(-low, high).double().cpu()


def _square(tensor: Tensor) -> Tensor:
    """The sum of the squares: of each row in the tensor's dtype, ten times as fast, of all rows in float64."""
    rows = torch.linalg.vector_norm(tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(0), dim=1)
    found = rows.double().square().sum().cpu()
    if tensor.dtype != torch.float64 and not (found > 0 and found.isfinite()):  # perhaps over- or underflow
        return torch.linalg.vector_norm(tensor, dtype=torch.float64).square().cpu()
    return found


def is_too_large(error: LayerError, dtype: str) -> bool:
    """Whether an exact form misses `TOLERANCE`; a NaN does."""
    return not math.isfinite(error.weight) or error.weight > TOLERANCE[dtype]
