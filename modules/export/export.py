"""Writing a trained adapter for another program: forms, file, check of what was written, metadata."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modules import quant
from modules.adapters.base import Adapted, Terms
from modules.adapters.layers import Layer
from modules.export import comfyui, forms, keys, metadata, verify
from modules.export.metadata import Facts
from modules.export.verify import LayerError
from modules.preset.schema import Export, Preset

SHOWN = 8
"""This many approximated layers are named in a report's text."""


@dataclass
class Report:
    """What was written, and how exact it is."""

    path: Path
    size: int = 0
    """Of the file, in bytes."""
    forms: dict[str, str] = field(default_factory=dict)
    """Form of each layer, in words."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each layer's tensors."""
    errors: dict[str, LayerError] = field(default_factory=dict)
    """Distance of each layer's effect in the host from the trained weight."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, as sentences."""

    @property
    def approximate(self) -> dict[str, LayerError]:
        """Errors of the layers that are approximated on purpose."""
        return {name: error for name, error in self.errors.items() if "approximate" in self.forms[name]}

    @property
    def exact(self) -> dict[str, LayerError]:
        """Errors of all other layers."""
        return {name: error for name, error in self.errors.items() if name not in self.approximate}

    def text(self) -> str:
        """The report in printable lines."""
        lines = [f"{self.path}: {_megabytes(self.size)}, {len(self.forms)} layers"]
        for form, count in Counter(self.forms.values()).most_common():
            size = sum(self.sizes[name] for name, found in self.forms.items() if found == form)
            lines.append(f"  {form}: {count} layers, {_megabytes(size)}")
        if self.exact:
            worst = max(self.exact, key=lambda name: self.exact[name].weight)
            lines.append(f"  largest error of an exact layer: {self.exact[worst].weight:.1e} of its largest weight "
                         f"({worst})")
        if self.approximate:
            found = sorted(self.approximate.items(), key=lambda item: -item[1].change)
            middle = found[len(found) // 2][1].change
            lines.append(f"  {len(found)} approximated layers; error as a part of the trained change: median "
                         f"{middle:.1%}, and the largest (in brackets: as a part of the largest weight)")
            lines += [f"    {name}: {e.change:.1%} ({e.weight:.1e})" for name, e in found[:SHOWN]]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def table(self) -> str:
        """One line per layer: name, form, bytes, error of the weight, error of the change; tab-separated."""
        rows = ["layer\tform\tbytes\tlargest error of the weight\terror of the change"]
        rows += [f"{name}\t{form}\t{self.sizes[name]}\t{self.errors[name].weight:.2e}\t{self.errors[name].change:.2e}"
                 for name, form in self.forms.items()]
        return "\n".join(rows) + "\n"


def export(model: Any, layers: dict[str, Adapted], preset: Preset, facts: Facts, path: Path) -> Report:
    """Write the adapters of `layers` (by full name) to `path` as `preset.export` says, and check the file.

    The file appears under its name only when it is complete and right. Raises ValueError if the host cannot hold the
    updates, if values leave the file's range, or if the file's effect is not the trained one; in the last case the
    file is kept as `<name>.rejected.safetensors`.
    """
    options = preset.export
    host = import_module(f"modules.export.{options.host}")
    spelling = {name: model.export_key(name, options.host) for name in layers}
    report = Report(path)
    partial = path.with_name(f"{path.stem}.partial.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)

    with torch.no_grad(), _exact_products():
        tensors = _tensors(layers, spelling, host, options, report)
        report.notes += _notes(layers, host, options, report)
        about = metadata.training(preset, facts, _form(report, tensors, host.NAMES))
        save_file(tensors, partial, model.metadata() | about)
        try:
            _check(layers, spelling, host, options, partial, report)
        except ValueError as error:
            rejected = partial.replace(path.with_name(f"{path.stem}.rejected.safetensors"))
            raise ValueError(f"{error}. The file is kept as {rejected}") from error

    content = metadata.tensors_hash(partial)
    about |= metadata.file_hashes(partial) | metadata.described(preset, facts)
    about |= metadata.own(preset, facts, model.base_hash()) | _outcome(report)
    save_file(tensors, partial, model.metadata() | about)
    if metadata.tensors_hash(partial) != content:
        raise OSError(f"{partial}: the disk returned other bytes than were written; the file is not to be trusted")
    partial.replace(path)
    report.size = path.stat().st_size
    return report


def expected_size(layers: dict[str, Adapted], options: Export) -> tuple[int, dict[str, int]]:
    """Bytes of the tensors that `export` will write, and how many layers take which form; from shapes alone, so the
    networks may be on the meta device. Raises ValueError like `export` for updates that the host cannot hold."""
    host = import_module(f"modules.export.{options.host}")
    with torch.no_grad():
        terms = {name: adapted.adapter.export_terms(adapted.layer.dense()) for name, adapted in layers.items()}
    _refuse(terms, layers, host, options)
    number = 4 if options.dtype == "float32" else 2
    size, counts = 0, Counter()
    for name, found in terms.items():
        form = forms.choose(found, layers[name].layer, host.HOST, options.rank)
        out, fan_in = forms.stored_shape(layers[name].layer)
        counts[form.words] += 1
        size += number * (form.rank * (out + fan_in) or out * fan_in)
        size += 4 if host.NAMES.alpha and form.rank else 0
        size += 4 * len(found.magnitude) if found.magnitude is not None and form.axis else 0
    return size, dict(counts)


def _tensors(
    layers: dict[str, Adapted], spelling: dict[str, str], host: ModuleType, options: Export, report: Report
) -> dict[str, Tensor]:
    """All tensors of the file; fills in the report's forms and sizes."""
    terms = {name: adapted.adapter.export_terms(adapted.layer.dense()) for name, adapted in layers.items()}
    _refuse(terms, layers, host, options)
    magnitudes = any(found.magnitude is not None for found in terms.values())
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[options.dtype]
    tensors = {}
    for name, adapted in layers.items():
        layer, W = adapted.layer, adapted.layer.dense()
        update = forms.reduce(terms.pop(name), layer, W, host.HOST, options.rank)
        found = host.tensors(update, layer, _oriented(layer, W), options, magnitudes)
        found = keys.stored(found, host.NAMES, dtype, name)
        report.forms[name] = update.form.words
        report.sizes[name] = sum(tensor.nbytes for tensor in found.values())
        tensors |= {spelling[name] + suffix: tensor for suffix, tensor in found.items()}
    return tensors


def _refuse(terms: dict[str, Terms], layers: dict[str, Adapted], host: ModuleType, options: Export) -> None:
    """ValueError with one line per reason why the host cannot hold these updates, naming layers."""
    refused: dict[str, list[str]] = {}
    for name, found in terms.items():
        reason = forms.refusal(found, layers[name].layer, host.HOST, options.rank)
        if reason:
            refused.setdefault(reason, []).append(name)
    if refused:
        raise ValueError("\n".join(
            f"export.host {options.host}: {reason}. Layers: {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for reason, names in refused.items()
        ))


def _check(
    layers: dict[str, Adapted], spelling: dict[str, str], host: ModuleType, options: Export, partial: Path,
    report: Report,
) -> None:
    """Read the file back and compare what the host computes from it with the trained weights."""
    found = verify.read(partial, spelling, host.NAMES)
    magnitudes = any(host.NAMES.magnitude in tensors for tensors in found.values())
    arithmetic = verify.arithmetic(options.host, options.comfyui_norm, magnitudes)
    for name, adapted in layers.items():
        W = adapted.layer.native(adapted.layer.dense()).float()
        report.errors[name] = verify.compare(adapted.adapted_weight(), arithmetic.effect(W, found[name], 1.0), W)
    report.notes += _norm_notes(layers, found, options, magnitudes, report)
    wrong = {n: e.weight for n, e in report.exact.items() if verify.is_too_large(e, options.dtype)}
    if not wrong:
        return
    worst = sorted(wrong, key=lambda name: -wrong[name])[:3]
    raise ValueError(
        f"the exported file would not do what was trained: {len(wrong)} of {len(layers)} layers are off by more than "
        f"{verify.TOLERANCE[options.dtype]:g} of their largest weight ("
        + ", ".join(f"{name}: {wrong[name]:.1e}" for name in worst)
        + "); try export.dtype float32"
    )


def _norm_notes(
    layers: dict[str, Adapted], found: dict[str, dict[str, Tensor]], options: Export, magnitudes: bool, report: Report
) -> list[str]:
    """What ComfyUI makes of output magnitudes where it computes with another norm than the file was written for."""
    names = [name for name, form in report.forms.items() if "output magnitude" in form]
    if not names or options.host != "comfyui":
        return []
    notes = []
    for norm, which in comfyui.other_norms(options).items():
        arithmetic, errors = verify.arithmetic(options.host, norm, magnitudes), []
        for name in names:
            W = layers[name].layer.native(layers[name].layer.dense()).float()
            effect = arithmetic.effect(W, found[name], 1.0)
            errors.append(verify.compare(layers[name].adapted_weight(), effect, W))
        if any(verify.is_too_large(error, options.dtype) for error in errors):
            change = max(error.change for error in errors)
            notes.append(f"this file is for ComfyUI with export.comfyui_norm {options.comfyui_norm}; in ComfyUI "
                         f"{which} up to {change:.1%} of a layer's change would be wrong")
        else:
            notes.append(f"the output magnitudes are exact in ComfyUI {which} too")
    return notes


def _notes(layers: dict[str, Adapted], host: ModuleType, options: Export, report: Report) -> list[str]:
    found = list(host.HOST.notes(set(report.forms.values())))
    full = [name for name, form in report.forms.items() if form == "full difference"]
    if full:
        size = sum(report.sizes[name] for name in full)
        found.append(f"{len(full)} layers have no compact exact form and are stored as full differences, "
                     f"{_megabytes(size)} in all; export.rank N writes an approximation instead")
    if options.rank is not None and not any("approximate" in form for form in report.forms.values()):
        found.append("export.rank changed nothing: every layer has an exact form for this host")
    if any(quant.is_rounded(adapted.base) for adapted in layers.values()):
        found.append("the base was quantised: the file was checked against the rounded weights it was trained on, and "
                     "on the full weights it does what it does there up to that rounding")
    return found


def _form(report: Report, tensors: dict[str, Tensor], names: keys.Names) -> metadata.Form:
    axes = Counter(form.split()[2] for form in report.forms.values() if "magnitude" in form)
    return metadata.Form(
        ranks=frozenset(tensor.shape[0] for key, tensor in tensors.items() if key.endswith(names.down)),
        alpha=keys.ALPHA if names.alpha else None,
        axis=max(axes, key=lambda axis: axes[axis], default=""),
        differences="full difference" in report.forms.values(),
    )


def _outcome(report: Report) -> dict[str, str]:
    """Forms and errors, for the file's metadata."""
    return {
        "gimbal.form": json.dumps(report.forms),
        "gimbal.errors": json.dumps({name: float(f"{e.weight:.2e}") for name, e in report.errors.items()}),
        "gimbal.approximations": json.dumps({n: float(f"{e.change:.3e}") for n, e in report.approximate.items()}),
    }


def _oriented(layer: Layer, W: Tensor) -> Tensor:
    """`W` as the host sees it: an embedding's table is not turned."""
    return W.mT if layer.kind == "embedding" else W


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def _exact_products() -> Iterator[None]:
    """Full float32 matrix products: TensorFloat-32 alone would miss the tolerance."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
