"""What a program computes from a file, layer by layer, compared with the file's exact meaning or with its run."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modules import hosts
from modules.documents import parse_json
from modules.files import forms, keys, kinds
from modules.files.distance import TOLERANCE, LayerError, compare
from modules.files.reading import Placed, Reading
from modules.hosts.parts import effect_of_file, installed_comfyui

Meanings = Mapping[str, Callable[[], Tensor]]
"""Adapted weights in the layers' own shapes, by full name, if a run has the trained weights."""


@dataclass(frozen=True)
class Row:
    """One name of the file."""

    name: str
    layers: tuple[str, ...]
    kind: str
    exact: effect_of_file.Verdict
    """In the base's dtype (float32)."""
    half: effect_of_file.Verdict
    """In the program's 16-bit path."""
    approximate: bool
    """Whether the file says that this layer is an approximation."""

    @property
    def worst(self) -> float:
        """For sorting: layers that are not read come first."""
        return float("inf") if self.exact.error is None else self.exact.error.weight

    def misses(self, tolerance: float) -> bool:
        """Whether an exact layer is wrong."""
        return not self.approximate and not self.worst <= tolerance


@dataclass(frozen=True)
class Block:
    """Some rows of a layer, or all."""

    parts: dict[str, Tensor]
    """The file's tensors for these rows."""
    given: dict[str, Tensor]
    """The same by suffix."""
    W: Tensor
    """In the shape that programs see."""
    meant: Tensor


Blocks = Callable[[bool], Iterator[Block]]
"""All of a layer, in blocks of rows if possible; in one if the argument is true."""

Judge = Callable[[Placed, Blocks], tuple[effect_of_file.Verdict, effect_of_file.Verdict]]
"""The verdicts of a name of the file in float32 and in 16 bits."""


def check(reading: Reading, judge: Judge, strength: float = 1.0, meanings: Meanings | None = None) -> list[Row]:
    """All names of the file, worst first. The reference at another strength than 1 is the linear interpolation `W +
    strength (W' - W)`."""
    approximate, rows = _approximate(reading), []
    with torch.no_grad():
        for placed in reading.placed:
            exact, half = judge(placed, functools.partial(_blocks, placed, meanings, strength))
            layers = tuple(layer.name for layer, _ in placed.members)
            is_approximate = any(layer in approximate for layer in layers)
            rows.append(Row(placed.name, layers, kinds.words(placed.parts), exact, half, is_approximate))
    return sorted(rows, key=lambda row: -row.worst)


def by_arithmetic(
    reading: Reading, host: str, strength: float = 1.0, norm: str = "", half: torch.dtype = torch.float16
) -> Judge:
    """What `host` computes, by our copy of its arithmetic."""
    seen = effect_of_file.view(reading.file, host, norm)

    def judge(placed: Placed, blocks: Blocks) -> tuple[effect_of_file.Verdict, effect_of_file.Verdict]:
        found = ((block.parts, block.given, block.W, block.meant) for block in blocks(False))
        exact, rounded = effect_of_file.judge_blocks(seen, placed.name, found, strength, (None, half))
        return _with_bias(exact, placed, seen), rounded

    return judge


def by_comfyui(
    reading: Reading, folder: Path, python: Path | None, strength: float = 1.0, half: torch.dtype = torch.float16
) -> Judge:
    """What the ComfyUI in `folder` computes, with its code. Raises ValueError if it fails."""
    weights = {placed.name: placed.layer.native(placed.dense()) for placed in reading.placed}
    found = [installed_comfyui.effects(folder, reading.file.path, weights, strength, dtype, python)
             for dtype in (torch.float32, half)]

    def judge(placed: Placed, blocks: Blocks) -> tuple[effect_of_file.Verdict, effect_of_file.Verdict]:
        whole = next(blocks(True))
        W = whole.W
        exact, rounded = (
            effect_of_file.Verdict(compare(whole.meant, effects[placed.name].to(W), W)) if placed.name in effects
            else effect_of_file.Verdict(None, "ComfyUI did not change the weight")
            for effects in found
        )
        return exact, rounded

    return judge


def _blocks(placed: Placed, meanings: Meanings | None, strength: float, whole: bool) -> Iterator[Block]:
    """A name's weights, and the expected ones at a strength: a linear interpolation."""
    if whole or meanings is not None or not placed.is_pair:
        W, meant = _meant(placed, meanings)
        yield Block(placed.parts, placed.tensors, W, _blended(W, meant, strength))
        return
    terms, native = placed.terms(), placed.layer.native
    parts, given = ({name: keys.precise(tensor) if tensor.is_floating_point() else tensor
                     for name, tensor in found.items()} for found in (placed.parts, placed.tensors))
    for start, stop, W in placed.blocks():
        meant = forms.applied(forms.of_rows(terms, start, stop), placed.layer, W)
        own, same = (kinds.of_rows(found, start, stop) for found in (parts, given))
        yield Block(own, same, native(W), native(_blended(W, meant, strength)))


def _blended(W: Tensor, meant: Tensor, strength: float) -> Tensor:
    return meant if strength == 1 else W + strength * (meant - W)


def _meant(placed: Placed, meanings: Meanings | None) -> tuple[Tensor, Tensor]:
    """`W` and the expected weight, in the shape that programs see."""
    W = placed.dense()
    if meanings is None:
        meant = forms.applied(placed.terms(), placed.layer, W)
    else:
        meant = placed.stacked([_trained(meanings, layer.name, placed).flatten(1) for layer, _ in placed.members])
    return placed.layer.native(W), placed.layer.native(meant)


def _trained(meanings: Meanings, layer: str, placed: Placed) -> Tensor:
    """The layer's adapted weight. Raises ValueError if the run has none."""
    if layer not in meanings:
        raise ValueError(f"{placed.name} is the layer {layer}, which the run did not train; give the file's own run")
    return meanings[layer]()


def _with_bias(verdict: effect_of_file.Verdict, placed: Placed, seen: effect_of_file.View) -> effect_of_file.Verdict:
    """Unread where the program leaves out a bias."""
    if not kinds.may_change_bias(placed.parts) or placed.terms().bias is None:
        return verdict
    found = hosts.load(seen.host).bias_change(placed.tensors, 1.0)
    return verdict if found is not None else effect_of_file.Verdict(None, "the change of its bias is not read")


def _approximate(reading: Reading) -> set[str]:
    """Layers that the file's metadata calls approximated."""
    try:
        found = parse_json(reading.file.metadata.get("gimbal.approximations", "{}"), "")
    except ValueError:
        return set()
    return set(found) if isinstance(found, dict) else set()


def text(rows: list[Row], host: str, half: torch.dtype, judged: bool, tolerance: float, advice: str = "") -> str:
    """The table, and its summary; `advice`: what to do about a wrong file."""
    words = str(half).removeprefix("torch.")
    lines = [f"layer\tform\terror of the weight\tof the change\tin {words}: of the weight\tof the change\tnote"]
    for row in rows:
        notes = [row.exact.reason or (row.half.reason and f"in {words}: {row.half.reason}")]
        notes.append("approximate on purpose" if row.approximate else "")
        cells = [row.name, row.kind, *_cells(row.exact.error), *_cells(row.half.error)]
        lines.append("\t".join([*cells, "; ".join(note for note in notes if note)]))
    missing = [row for row in rows if row.misses(tolerance)]
    lines += _rounded(rows, host, words)
    unread = [row for row in missing if row.exact.error is None]
    if not judged:
        lines.append("at a strength other than 1 the programs scale differently; nothing is checked")
    elif missing:
        of_them = f" ({len(unread)} not read at all)" if unread else ""
        lines.append(f"WRONG: {host} does not compute what the file means: {len(missing)} of "
                     f"{effect_of_file.counted(len(rows))} differ by more than {tolerance:g} of their largest "
                     f"weight{of_them}; the worst is {missing[0].name}{advice}")
    else:
        apart = ", approximations apart" if any(row.approximate for row in rows) else ""
        lines.append(f"RIGHT: {host} computes what the file means: all of {effect_of_file.counted(len(rows))} within "
                     f"{tolerance:g} of their largest weight{apart}")
    return "\n".join(lines)


def _rounded(rows: list[Row], host: str, words: str) -> list[str]:
    """The effect of computing in 16 bits, as sentences."""
    found = []
    skipped = [row for row in rows if row.half.error is None and row.exact.error is not None]
    if skipped:
        found.append(f"where {host} computes in {words}, {effect_of_file.counted(len(skipped))} are not read; a file "
                     "with export.form svd is read there too, but approximates")
    errors = {row.name: row.half.error.change for row in rows
              if row.half.error is not None and row.exact.error is not None and row.half.error != row.exact.error}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        found.append(f"where {host} computes in {words}, rounding adds errors of up to {errors[worst]:.2%} of a "
                     f"layer's change ({worst})")
    return found


def tolerance(reading: Reading, trained: bool) -> float:
    """The largest error of an exact layer: float32's for the file's own meaning, that of the file's dtype for a run."""
    stored = {tensor.dtype for tensor in reading.file.tensors.values() if tensor.dim() > 1}
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        if trained and dtype in stored:
            return TOLERANCE[name]
    return TOLERANCE["float32"]


def _cells(error: LayerError | None) -> list[str]:
    return ["not read", ""] if error is None else [f"{error.weight:.1e}", f"{error.change:.2%}"]
