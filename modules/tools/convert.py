"""Converts a foreign file for another program: its metadata, and the error of each rank."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from modules import hosts
from modules.adapters import linalg
from modules.adapters.base import Terms
from modules.export import metadata, rounding
from modules.export.export import Written, write
from modules.files import forms, keys, opening, reading, writer
from modules.files.change import Change
from modules.files.opening import AdapterFile
from modules.preset.export_options import Export
from modules.preset.problems import sentences
from modules.tools import base_of_file, resize

"""Short names for the dtypes of `export.dtype`."""


@dataclass(frozen=True)
class Source:
    """A file to convert, and its base."""

    path: Path
    base: str
    """The model it was trained on."""
    config: str = ""
    family: str = ""
    """Only if the file's names are ambiguous."""
    device: str = "cpu"
    skip_unknown: bool = False
    """Ignore what cannot be read."""
    early_scaling: bool = False
    """The file has OneTrainer's first scaled rotations."""


def convert(source: Source, options: Export, out: Path | None = None) -> str:
    """Write the file for another program, to `out` or next to it; returns the report's text.

    Raises ValueError with sentences where the file cannot be read on the base, or the program does not support it.
    """
    file = opening.read(source.path)
    if source.early_scaling:
        file.metadata[writer.EARLY] = "elements"
    out = out or out_path(file.path, options.host)
    if out.exists() and out.samefile(file.path):
        raise ValueError(f"--out {out} is the input file; give another name")
    model = base_of_file.load(file, source.base, source.config, source.family, source.device)
    options = rounding.resolved(options, model.computed_in)
    changes = reading.changes(file, model, source.skip_unknown, kept=False)
    found = reading.place(file, model)
    left_out = found.left_out()
    if source.skip_unknown and keys.NORM not in hosts.load(options.host).NAMES.all():
        left_out += [f"{reading.listed(found.norms)}: {options.host} does not read norm layers"] if found.norms else []
        changes = {name: change for name, change in changes.items() if change.layer.kind != "norm"}
    report = write(out, model, changes, options, lambda written: about(file, found.writer, options, written, model))
    lines = [report.table() + report.text()]
    if source.skip_unknown:
        lines += [f"  left out: {sentence}" for sentence in left_out]
    if options.form == "svd":
        lines.append(curve_text(curve(changes)))
    return "\n".join(lines)


def options_of(given: dict[str, Any]) -> Export:
    """The options of the section `export` that are given, None for those that are not. Raises ValueError with
    sentences."""
    values = {name: value for name, value in given.items() if value is not None}
    try:
        return Export.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(sentences(error, Export, values))) from None


def about(file: AdapterFile, program: str, options: Export, written: Written, model: Any) -> dict[str, str]:
    """The new file's metadata: what the old one has about its training, and its origin. Its entries about the model are
    replaced by ours, which programs read."""
    own = model.metadata()
    kept = {key: value for key, value in file.metadata.items()
            if key not in own and not key.startswith(writer.ABOUT_TENSORS)}
    form = written.form
    found = {
        "ss_network_module": writer.network(form.is_extended),
        "ss_network_dim": form.dim,
        "ss_network_alpha": form.dim if form.alpha is None else form.alpha,
        "ss_network_args": form.arguments,
        "gimbal.host": options.host,
        "gimbal.comfyui_norm": options.comfyui_norm,
        "gimbal.magnitude_norm": hosts.magnitude_norm(options),
        "gimbal.base_hash": model.base_hash(),
        "gimbal.converted": json.dumps({"from": file.path.name, "writer": program or "unknown"}),
    }
    return kept | {key: metadata.text(value) for key, value in found.items()}


def out_path(path: Path, host: str) -> Path:
    """The default path of the file for `host`."""
    return path.with_name(f"{path.stem}_{host}.safetensors")


def curve(changes: dict[str, Change]) -> dict[int, float]:
    """The error of all layers' changes together, relative to them, for LoRAs of the ranks 1, 2, 4, ..."""
    values = []
    with torch.no_grad():
        for change in changes.values():
            values.append(singular_values(change.terms, change))
    largest = max(int((found > found.max() * 1e-6).sum()) if len(found) else 0 for found in values)
    return resize.curve(values, resize.powers(max(1, largest)))


def singular_values(terms: Terms, change: Change) -> Tensor:
    """Those of the change of the weight, descending, float64. From the factors alone for a plain pair."""
    terms = forms.expanded(terms)
    plain = terms.rotation is None and terms.difference is None and terms.magnitude is None
    if plain and terms.up is not None and terms.down is not None:
        return linalg.product_svd(terms.up, terms.down)[1]
    W = change.layer.dense()
    matrix = (change.layer.matrix(change.adapted()) - W).double()
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def curve_text(found: dict[int, float]) -> str:
    """The curve as printable lines."""
    lines = ["rank\ttotal error"]
    return "\n".join(lines + [f"{rank}\t{error:.2%}" for rank, error in found.items()])
