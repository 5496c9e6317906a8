"""How far one weight is from another: what a program computes from a file, and what was meant."""

import math
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 8e-3}
"""Largest allowed error of a weight, as a part of the layer's largest weight. In half precision about four roundings
(2^-11 each, bfloat16 2^-9): both factors, and room for a product that partly cancels or exceeds the base."""


@dataclass(frozen=True)
class LayerError:
    """Distance of a file's effect from the trained weight."""

    weight: float
    """max |W_file - W_trained| / max |W_trained|"""
    change: float
    """||W_file - W_trained|| / ||W_trained - W||, Frobenius; 0 for an untrained layer"""


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
