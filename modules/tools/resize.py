"""Low-rank pairs at a smaller rank: truncated SVD of `up down` through QR of the factors, without a dense matrix."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modules.adapters.linalg import product_svd
from modules.files import kinds, writer
from modules.files.kinds import low_rank, magnitude
from modules.files.opening import AdapterFile
from modules.tensorfile import is_finite

Pair = tuple[Tensor, Tensor]
"""`up` and `down` as files have them."""

Choose = Callable[[Tensor], int]
"""From singular values, descending, to how many are kept."""


OUTDATED = ("gimbal.errors", "gimbal.form", "gimbal.approximations")
"""Metadata of our files about pairs that are outdated."""


@dataclass(frozen=True)
class Row:
    """One pair before and after."""

    name: str
    before: int
    after: int
    error: float
    """||D - D_written|| / ||D||, Frobenius, with D the pair's product and D_written that of the stored values; 0 for a
    pair without effect."""
    axis: str
    """Of the magnitude with the pair; empty without one."""


@dataclass
class Resized:
    """A file's new content."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    """The number of unchanged layers of other kinds, by kind."""


def to_rank(rank: int) -> Choose:
    """Keep `rank` values."""
    return lambda values: min(rank, len(values))


def to_error(error: float) -> Choose:
    """Keep as few values as possible with a relative error of at most `error`."""
    def choose(values: Tensor) -> int:
        square = values.double().square()
        lost = square.flip(0).cumsum(0).flip(0)  # the norm that is dropped when cut before each value
        return max(1, int((lost > error**2 * square.sum()).sum().item()))

    return choose


def to_energy(energy: float) -> Choose:
    """Keep as few values as possible with the fraction `energy` of the squared norm."""
    return to_error(math.sqrt(max(0.0, 1 - energy)))


def resized(file: AdapterFile, choose: Choose) -> Resized:
    """Every low-rank pair of the file at the rank that `choose` returns; keys, dtypes and all other tensors are kept. A
    pair that keeps its rank is unchanged. New factors of a file in eight bits are float16: rounded to eight bits again
    they would be off by several percent.

    The file's alphas stay as they are and the factors take what changes in alpha / rank, so that a file with one alpha
    for all keeps it with mixed ranks. Raises ValueError if there is no pair in the file, or one that is damaged.
    """
    writer.refuse_own(file.path, file.metadata)
    layers, _ = kinds.grouped(file.tensors)
    about = writer.About(writer.writer(file.tensors, file.metadata, file.config), "", file.metadata, file.config)
    found = Resized(dict(file.tensors), dict(file.metadata))
    for name, keys in layers.items():
        parts = {part: file.tensors[key] for part, key in keys.items()}
        if kinds.kind_of(parts) is not low_rank or "mid" in parts:
            what = "Tucker convolution" if "mid" in parts else kinds.words(parts)
            found.kept[what] = found.kept.get(what, 0) + 1
            continue
        try:
            kinds.shape(parts)
        except ValueError as error:
            raise ValueError(f"{file.path}: {name}: {error}") from error
        try:
            up, down, row = _pair(name, parts, about.of(name), choose)
        except ValueError as error:
            raise ValueError(f"{file.path}: {name}: {error}") from error
        found.tensors[keys["up"]], found.tensors[keys["down"]] = up, down
        if "up_bias" in parts:  # it has the pair's scale, which has changed
            ratio = low_rank.scale(parts, about.of(name)) / low_rank.scale(parts | {"down": down}, writer.About())
            found.tensors[keys["up_bias"]] = parts["up_bias"] * ratio
        found.rows.append(row)
    if not found.rows:
        kept = ", ".join(f"{count} {what}" for what, count in found.kept.items())
        raise ValueError(f"{file.path} has no low-rank layers to resize ({kept or 'nothing known'}); "
                         "scripts/convert.py with --form svd converts any file to a LoRA, given its base")
    _tell(found)
    return found


def _pair(name: str, parts: dict[str, Tensor], about: writer.About, choose: Choose) -> tuple[Tensor, Tensor, Row]:
    """The new factors in the old shapes and dtypes. Raises ValueError if values are out of range."""
    up, down = parts["up"], parts["down"]
    axis = magnitude.axis(parts)
    U, values, V = product_svd(up.flatten(1), down.flatten(1))
    scale = low_rank.scale(parts, about)
    count = max(1, choose(values))
    after = parts["alpha"].item() / count if "alpha" in parts and parts["alpha"].numel() else 1.0
    if count == len(down) and scale == after:
        return up, down, Row(name, count, count, 0.0, axis)
    root = (values[:count] * abs(scale / after)).sqrt() if after else values[:count].sqrt()
    sign = math.copysign(1.0, scale * after)
    up_dtype, down_dtype = (torch.float16 if old.dtype.itemsize == 1 else old.dtype for old in (up, down))
    new_up = (sign * U[:, :count] * root).reshape(len(up), count, *up.shape[2:]).to(up_dtype).contiguous()
    new_down = (root[:, None] * V[:count]).reshape(count, *down.shape[1:]).to(down_dtype).contiguous()
    if not (is_finite(new_up) and is_finite(new_down)):
        raise ValueError(f"its new factors are beyond the range of {str(up_dtype).removeprefix('torch.')}; save the "
                         "file in bf16 or fp32 first")
    error = _distance((up, down), scale, (new_up, new_down), after) if after else 0.0
    return new_up, new_down, Row(name, len(down), count, error, axis)


def _distance(old: Pair, scale: float, new: Pair, after: float) -> float:
    """||scale up down - after new_up new_down|| / ||scale up down||, in float64 from the factors: with Gram matrices
    alone, with an error of 1e-8 where the two are equal."""
    (up, down), (new_up, new_down) = ((u.flatten(1).double(), d.flatten(1).double()) for u, d in (old, new))
    left, right = torch.cat([scale * up, -after * new_up], 1), torch.cat([down, new_down])
    products, count = (left.mT @ left) * (right @ right.mT), len(down)
    apart, whole = (found.sum().clamp_min(0).sqrt().item() for found in (products, products[:count, :count]))
    return apart / whole if whole else 0.0


def _tell(found: Resized) -> None:
    """Update the metadata."""
    ranks = {row.after for row in found.rows}
    if "ss_network_dim" in found.metadata:
        found.metadata["ss_network_dim"] = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    # peft's options would scale the new factors; without them alpha is the rank, as the factors assume.
    found.metadata.pop(writer.PEFT_OPTIONS, None)
    for key in OUTDATED:
        found.metadata.pop(key, None)


def curve(values: Iterable[Tensor], ranks: Iterable[int]) -> dict[int, float]:
    """The error of all layers together at each rank, relative to their change, from each layer's singular values."""
    squares = [layer.double().square() for layer in values]
    whole = sum(square.sum().item() for square in squares)
    return {
        rank: math.sqrt(sum(square[rank:].sum().item() for square in squares) / whole) if whole else 0.0
        for rank in ranks
    }


def powers(largest: int) -> list[int]:
    """1, 2, 4 ... up to `largest`, which is the last."""
    return [2**n for n in range(max(0, largest - 1).bit_length())] + [largest]
