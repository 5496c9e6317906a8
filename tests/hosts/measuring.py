"""How far what programs make of our files is from what was trained."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tests.hosts import bases, files
from tests.hosts.programs import Effect, Program

DTYPES = ("float32", "float16", "bfloat16")
STRENGTHS = (1.0, 0.5, -0.7)
EXACT = 1e-5
"""Of the change, in float32: what counts as exact. The parameters' own rounding costs up to a tenth of it."""
NEARLY = 2e-3
"""How far the numbers of two fingerprints may be apart: they are kept with four digits."""


@dataclass(frozen=True)
class Cell:
    """One file in one program, in some numbers, at some strength."""

    family: str
    method: str
    dtype: str
    """In which the program has the base."""
    strength: float
    way: str = ""
    file: str = "float16"
    """The number format of the file's factors; float16 is the default."""

    @property
    def key(self) -> str:
        """What is special of it, in words: "bfloat16 x 0.5, loaded"."""
        words = [f"{self.dtype} x {self.strength:g}"]
        words += [self.way] if self.way else []
        return ", ".join([*words, "default file"] if self.dtype == "float32" and self.file == "float16" else words)


@dataclass(frozen=True)
class Figures:
    """Errors as parts of the trained change (Frobenius)."""

    error: float = 0.0
    """Of the whole file."""
    worst: float = 0.0
    """Of the worst layer."""
    layer: str = ""
    """Which one that is."""
    rounding: float = 0.0
    """What rounding the exact weight costs, of the whole file."""
    rounding_worst: float = 0.0
    """The same of the worst layer."""
    reason: str = ""
    """Why there are no figures."""
    unread: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()
    layers: dict[str, float] = field(default_factory=dict)
    """The error of each layer."""


def cells(program: Program, family: str, method: str, strengths: tuple[float, ...] = STRENGTHS,
          dtypes: tuple[str, ...] = DTYPES) -> Iterator[Cell]:
    """What is tried of one file: in float32 a file in float32, besides the default one; else the default one."""
    for dtype in dtypes:
        for strength in strengths:
            if dtype == "float32":
                yield Cell(family, method, dtype, strength, file="float32")
                continue
            for way in program.driver.ways:
                yield Cell(family, method, dtype, strength, way)
        if dtype == "float32" and 1.0 in strengths:
            yield Cell(family, method, dtype, 1.0)


def measure(program: Program, cell: Cell) -> Figures:
    """The figures, or the reason why there are none."""
    file = files.written(cell.family, cell.method, program.driver.file, cell.file)
    if file.path is None:
        return Figures(reason=f"refused: {file.refusal.splitlines()[0]}")
    effect = program.effect(file.path, cell.family, cell.dtype, cell.strength, cell.way)
    if effect.absent:
        return Figures(reason=f"cannot hold: {effect.absent}")
    if effect.failed:
        return Figures(reason=f"failed: {effect.failed}", unread=effect.unread, errors=effect.errors)
    return figures(effect, cell)


def figures(effect: Effect, cell: Cell) -> Figures:
    """The distance of a program's weights from the ideal ones at a strength."""
    base = bases.base(cell.family)
    errors, roundings, changes = {}, {}, {}
    for name, trained in files.meant(cell.family, cell.method).items():
        W = base.weights[f"{name}.weight"].double()
        ideal = W + cell.strength * (trained - W)
        rounded = ideal.to(getattr(torch, cell.dtype)).double()
        errors[name], roundings[name] = _squared(effect.weights[name].double() - ideal), _squared(rounded - ideal)
        changes[name] = _squared(ideal - W)
    layers = {name: math.sqrt(error / changes[name]) for name, error in errors.items() if changes[name]}
    layer = max(layers, key=lambda name: _order(layers[name]))
    whole = sum(changes.values())
    return Figures(
        math.sqrt(sum(errors.values()) / whole), layers[layer], layer, math.sqrt(sum(roundings.values()) / whole),
        max(math.sqrt(one / changes[name]) for name, one in roundings.items() if changes[name]), "",
        effect.unread, effect.errors, effect.stray, layers,
    )


def _squared(tensor: Tensor) -> float:
    """Of a layer that is not a number: infinity."""
    found = tensor.square().sum().item()
    return found if math.isfinite(found) else math.inf


def _order(error: float) -> float:
    return error if math.isfinite(error) else math.inf


def fingerprint(path: Path) -> str:
    """Of a file: a hash of what is the same on every processor, and two numbers that are nearly so.

    Hashed are the names, shapes and number formats of its tensors and the names of its metadata, whose values have
    times and versions in them. The numbers are sums over all tensors of their norms, and of sums along their longer
    side without signs: they see another scale, another order and another sign, but not the signs and the last digits
    that a decomposition or a large product has from the processor.
    """
    said, norms, sums = [], 0.0, 0.0
    with safe_open(str(path), "pt") as file:
        for number, name in enumerate(sorted(file.keys())):
            tensor = file.get_tensor(name)
            said.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}")
            weight = 1 + number % 7 / 7
            norms += weight * tensor.double().norm().item()
            sums += weight * _unsigned(tensor)
        said += sorted(file.metadata() or {})
    return f"{hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:16]} {norms:.4g} {sums:.4g}"


def _unsigned(tensor: Tensor) -> float:
    """Sums along the longer side: of a factor, those of each rank, whose sign a decomposition may choose."""
    flat = tensor.double().flatten(1) if tensor.dim() > 1 else tensor.double().reshape(1, -1)
    return flat.sum(1 if flat.shape[0] <= flat.shape[1] else 0).abs().sum().item()


def is_same(written: str, recorded: str) -> bool:
    """Whether two fingerprints are of the same file, but for rounding."""
    if "refused" in (written, recorded):
        return written == recorded
    (one, *ours), (other, *theirs) = written.split(), recorded.split()
    return one == other and all(math.isclose(float(a), float(b), rel_tol=NEARLY) for a, b in zip(ours, theirs,
                                                                                              strict=True))
