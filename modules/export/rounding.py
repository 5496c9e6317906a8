"""Rounding errors of a file in the dtypes that a program computes in; and files fitted to them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules import hosts
from modules.export import encodings
from modules.export.report import Report, Rounded
from modules.files import distance, keys
from modules.files.change import Change, parts
from modules.files.distance import LayerError
from modules.hosts import How
from modules.preset.export_options import Export

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

GROWTH = 0.25
"""The fraction by which a file may grow for layers that are exact only as full differences."""

TENTH = 0.1
"""An error of a layer below this, relative to its change, is small."""


def resolved(options: Export, usual: str) -> Export:
    """The options with `computes_in` decided; `usual`: the dtype in which programs compute this model family."""
    if options.computes_in != "auto":
        return options
    return options.model_copy(update={"computes_in": "float32" if options.dtype == "float32" else usual})


@dataclass(frozen=True)
class Numbers:
    """The dtypes in which the host computes the layers of a file."""

    options: Export
    """Resolved."""
    denoiser: str
    """The first part of its layers' names."""

    def how(self, how: How, layer: str) -> How:
        """The conditions with the dtypes of a layer."""
        way = hosts.load(self.options.host).WAYS.get(self.options.computes_in)
        if way is None or self.options.computes_in == "float32" or not self.is_denoiser(layer):
            return how
        return way.of(how)

    def is_too_large(self, error: LayerError, how: How) -> bool:
        """Whether a layer, computed as `how` says, misses the tolerance of the file's dtype and that of the host's,
        which also rounds base, update, ratio and product."""
        host = {torch.float16: 4e-3, torch.bfloat16: 1.6e-2}.get(how.dtype or torch.float32, 0.0)
        return distance.is_too_large(error, self.options.dtype) and not error.weight <= host

    def is_denoiser(self, layer: str) -> bool:
        """Whether a layer, by full name, is in the denoiser."""
        return layer.partition(".")[0] == self.denoiser


@dataclass(frozen=True)
class Squares:
    """Of a layer: squared Frobenius norms."""

    error: float
    rounding: float
    change: float
    weight: float
    """Of the base."""

    @property
    def is_lost(self) -> bool:
        """Whether the layer has changed by less than its weight's rounding error, in the program's dtype or in float32:
        then its error relative to the change is meaningless."""
        return self.change <= max(self.rounding, torch.finfo(torch.float32).eps ** 2 * self.weight)

    @property
    def part(self) -> float:
        """The error relative to the change; infinite if it is NaN."""
        found = self.error / self.change if self.change else 0.0
        return math.sqrt(found) if math.isfinite(found) else math.inf

    @property
    def is_beyond(self) -> bool:
        """Whether it is more than a tenth of the change, and than twice the error of rounding."""
        return not self.part <= max(TENTH, 2 * math.sqrt(self.rounding / self.change) if self.change else 0.0)


def squares(change: Change, tensors: dict[str, Tensor], host: str, hows: Sequence[How]) -> list[Squares]:
    """Of one layer in the dtypes of each of `hows`."""
    sums = [[0.0] * 4 for _ in hows]
    for block, own in parts(change, tensors):
        W, wanted = block.W, block.adapted
        same = _square(wanted - W), _square(W)  # for every dtype
        for number, how in enumerate(hows):
            try:
                found = hosts.load(host).effect(W, own, 1.0, how)
            except hosts.Unread:
                found = W
            kept = how.model or how.dtype or W.dtype
            errors = _square(found - wanted), _square(wanted.to(kept).to(wanted) - wanted), *same
            sums[number] = [total + error for total, error in zip(sums[number], errors, strict=True)]
    return [Squares(*found) for found in sums]


def _square(tensor: Tensor) -> float:
    return tensor.double().square().sum().item()


def measured(
    changes: Mapping[str, Change], found: Mapping[str, dict[str, Tensor]], numbers: Numbers, how: How
) -> dict[str, Rounded]:
    """The errors of the denoiser's layers in each dtype that the host may compute in."""
    host = numbers.options.host
    ways = hosts.load(host).WAYS
    hows = [way.of(how) for way in ways.values()]
    layers = {name: squares(changes[name], tensors, host, hows)
              for name, tensors in found.items() if ways and numbers.is_denoiser(name)}
    return {words: together({name: errors[number] for name, errors in layers.items()})
            for number, words in enumerate(ways) if layers}


def in_full(
    changes: Mapping[str, Change], written: Mapping[str, dict[str, Tensor]], numbers: Numbers, how: How, size: int
) -> dict[str, dict[str, Tensor]]:
    """Full differences instead of the tensors, for layers with too large an error in the dtype that the file is for;
    the smallest first, as long as a file of `size` bytes grows by `GROWTH` at most."""
    host, left, chosen = numbers.options.host, GROWTH * size, {}
    for name in sorted(written, key=lambda name: changes[name].layer.out_features * changes[name].layer.fan_in):
        there = numbers.how(how, name)
        (now,) = squares(changes[name], written[name], host, [there])
        if not now.is_beyond:
            continue
        full = _difference(changes[name], numbers.options, name)
        grown = _bytes(full) - _bytes(written[name])
        if grown <= left and squares(changes[name], full, host, [there])[0].error < now.error:
            left, chosen[name] = left - grown, full
    return chosen


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _difference(change: Change, options: Export, name: str) -> dict[str, Tensor]:
    """The layer's tensors as a full difference."""
    names = hosts.load(options.host).NAMES
    found = encodings.encode(encodings.DIFFERENCE, change.seen(), names)
    return keys.stored(found or {}, names, DTYPES[options.dtype], name)


def together(layers: Mapping[str, Squares]) -> Rounded:
    """All layers of a file; the worst is one of those whose change is more than rounding."""
    error, rounding, change = (sum(vars(one)[key] for one in layers.values())
                               for key in ("error", "rounding", "change"))
    told = {name: one.part for name, one in layers.items() if not one.is_lost}
    worst = max(told, key=lambda name: told[name], default="")
    return Rounded(math.sqrt(error / change) if change else 0.0, math.sqrt(rounding / change) if change else 0.0,
                   told.get(worst, 0.0), worst, sum(one.is_beyond for one in layers.values()),
                   len(layers) - len(told))


def notes(report: Report, options: Export) -> list[str]:
    """The dtypes in which the file's error exceeds that of rounding, and what to do about it."""
    poor = {words: found for words, found in report.rounded.items() if not found.is_good}
    if not poor:
        return []
    listed = "; ".join(f"in {words} the error is {found.error:.1%} of the change (rounding alone: {found.rounding:.1%})"
                       for words, found in poor.items())
    return [f"the magnitudes of this file are optimized for ComfyUI computing in {options.computes_in} "
            f"(export.computes_in); in other precisions they are less exact: {listed}. A file for our node "
            "(export.host comfyui_node) is exact up to rounding in all of them"]
