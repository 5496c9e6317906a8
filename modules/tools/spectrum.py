"""The spectra of a file's changes, layer by layer, and what a second file does when both are stacked."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modules.adapters.layers import as_layer
from modules.files import kinds, reading, singular_values, strangers, writer
from modules.files.change import Change
from modules.files.opening import AdapterFile
from modules.files.singular_values import Singular, Spectrum, Stacked

HEADS = ("layer", "spectral norm", "Frobenius norm", "stable rank", "effective rank", "rank")
STACKED = ("layer", "overlap of outputs", "of inputs", "spectral norms", "of the sum", "growth")


@dataclass
class Spectra:
    """The changes of one file."""

    path: str
    layers: dict[str, Spectrum] = field(default_factory=dict)
    """By name; by the file's own name where no base is given."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Layers that cannot be measured without a base, by kind, and norms, which have one direction."""

    @property
    def note(self) -> str:
        """A sentence where most changes are nearly of rank 1."""
        return singular_values.note([*self.layers.values()])

    def medians(self) -> tuple[float, float, float]:
        """Spectral norm, stable rank and effective rank, of the layers that are changed; zeros if none is."""
        changed = [one for one in self.layers.values() if one.spectral_norm] or [Spectrum(0, 0, 0, 0, 0)]
        values = [(one.spectral_norm, one.stable_rank, one.effective_rank) for one in changed]
        first, second, third = (statistics.median(column) for column in zip(*values, strict=True))
        return first, second, third

    def text(self) -> str:
        """A table, the largest spectral norm first, and a summary."""
        lines = ["\t".join(HEADS)]
        for name, one in sorted(self.layers.items(), key=lambda item: -item[1].spectral_norm):
            values = (one.spectral_norm, one.frobenius_norm, one.stable_rank, one.effective_rank)
            lines.append("\t".join([name, *(f"{value:.4g}" for value in values), str(one.rank)]))
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """Medians, what is left out, and the note."""
        norm, stable, effective = self.medians()
        lines = [f"{self.path}: {len(self.layers)} layers; medians: spectral norm {norm:.4g}, stable rank "
                 f"{stable:.3g}, effective rank {effective:.3g}"]
        lines += [f"note: not measured: {count} layers ({what})" for what, count in self.left_out.items()]
        return "\n".join([*lines, *([f"note: {self.note}"] if self.note else [])])


@dataclass
class Measured:
    """One file, or two."""

    spectra: list[Spectra]
    stacked: dict[str, Stacked] = field(default_factory=dict)
    """By the layers that both files change."""

    def values(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        files = [{"path": one.path, "layers": {name: asdict(layer) for name, layer in one.layers.items()},
                  "left_out": one.left_out, "note": one.note} for one in self.spectra]
        return {"files": files, "stacked": {name: asdict(one) for name, one in self.stacked.items()}}

    def text(self) -> str:
        """Tables."""
        lines = [self.spectra[0].text()]
        if len(self.spectra) > 1:
            lines += [self.spectra[1].summary(), "\t".join(STACKED), *self._rows()]
            norms = statistics.median(one.growth for one in self.stacked.values())
            lines.append(f"stacked: {len(self.stacked)} layers in common; the spectral norm of the sum is {norms:.2f} "
                         "times the larger one (median; 1: no common direction, 2: equal changes)")
        return "\n".join(lines)

    def _rows(self) -> Iterator[str]:
        first, second = self.spectra
        for name, one in sorted(self.stacked.items(), key=lambda item: -item[1].growth):
            norms = f"{first.layers[name].spectral_norm:.4g}, {second.layers[name].spectral_norm:.4g}"
            yield "\t".join([name, f"{one.outputs:.3f}", f"{one.inputs:.3f}", norms, f"{one.spectral_norm:.4g}",
                             f"{one.growth:.2f}"])


Layers = dict[str, Callable[[], Singular]]


@torch.no_grad()
def measure(files: list[AdapterFile], model: Any = None, skip: bool = False) -> Measured:
    """The spectra of one file or two. Without `model` only plain low-rank pairs are measured, under the file's names.

    Raises ValueError for files that cannot be read, or that have no layers in common.
    """
    found = Measured([Spectra(str(file.path)) for file in files])
    each = [_of_pairs(file, own) if model is None else _on_model(file, model, skip, own)
            for file, own in zip(files, found.spectra, strict=True)]
    for file, layers, own in zip(files, each, found.spectra, strict=True):
        if not layers:
            kinds_left = ", ".join(own.left_out) or "nothing known"
            raise ValueError(f"{file.path} has no plain low-rank pairs ({kinds_left}); give its base with --base")
    if len(files) > 1 and not each[0].keys() & each[1].keys():
        raise ValueError(f"{files[0].path} and {files[1].path} name no layer alike; give their base with --base")
    for name in dict.fromkeys(name for layers in each for name in layers):  # one layer at a time is in memory
        singular = [layers[name]() if name in layers else None for layers in each]
        for own, one in zip(found.spectra, singular, strict=True):
            if one is not None:
                own.layers[name] = singular_values.spectrum(one)
        both = [one for one in singular if one is not None]
        if len(both) > 1:
            found.stacked[name] = singular_values.stacked(*both)
    return found


def _of_pairs(file: AdapterFile, own: Spectra) -> Layers:
    """The low-rank pairs of a file by its own names."""
    writer.refuse_own(file.path, file.metadata)
    strangers.refuse(file.path, file.tensors)
    about = writer.About(writer.writer(file.tensors, file.metadata, file.config), "", file.metadata, file.config)
    layers, _ = kinds.grouped(file.tensors)
    found, left_out = {}, Counter()
    for name, keys in layers.items():
        parts = {part: file.tensors[key] for part, key in keys.items()}
        if kinds.is_pair(parts):
            found[name] = partial(_pair, f"{file.path}: {name}", parts, about.of(name))
        else:
            left_out[f"{kinds.words(parts)}; give the base with --base"] += 1
    own.left_out = dict(left_out)
    return found


def _pair(name: str, parts: dict[str, Tensor], about: writer.About) -> Singular:
    """A pair's. Raises ValueError, naming file and layer, if its tensors do not fit together."""
    try:
        out, fan_in = kinds.shape(parts)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    assert out and fan_in
    layer = as_layer(nn.Linear(fan_in, out, bias=False, device="meta"), name)
    W = torch.zeros((), dtype=torch.float64).expand(out, fan_in)  # a pair's terms only depend on its shape
    return singular_values.of_pair(kinds.terms(parts, layer, W, about))


def _on_model(file: AdapterFile, model: Any, skip: bool, own: Spectra) -> Layers:
    """All changes of a file, by the model's names."""
    changes = reading.changes(file, model, skip, kept=False)
    norms = [name for name, change in changes.items() if change.layer.kind == "norm"]
    own.left_out = {"norms": len(norms)} if norms else {}
    return {name: partial(_change, change) for name, change in changes.items() if name not in norms}


def _change(change: Change) -> Singular:
    return singular_values.singular(change.terms, change.layer, change.layer.dense)
