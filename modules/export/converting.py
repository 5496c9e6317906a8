"""A foreign file for another program: its metadata, and how well a low-rank file can hold it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.adapters.base import Terms
from modules.export import metadata, resizing
from modules.export.export import Change, Written
from modules.export.files import AdapterFile
from modules.export.kinds import writer
from modules.preset.schema import Export


def about(file: AdapterFile, program: str, options: Export, written: Written, model: Any) -> dict[str, str]:
    """The new file's metadata: what the old one tells about its training, and where it comes from. What it says about
    the kind of model gives way to our words for it, which programs read."""
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
        "gimbal.base_hash": model.base_hash(),
        "gimbal.converted": json.dumps({"from": file.path.name, "writer": program or "unknown"}),
    }
    return kept | {key: metadata.text(value) for key, value in found.items()}


def out_path(path: Path, host: str) -> Path:
    """Where the file for `host` goes if nobody says."""
    return path.with_name(f"{path.stem}_{host}.safetensors")


def curve(changes: dict[str, Change]) -> dict[int, float]:
    """The error of all layers' changes together, as a part of them, in LoRAs of the ranks 1, 2, 4, ..."""
    values = []
    with torch.no_grad():
        for change in changes.values():
            values.append(singular_values(change.terms, change))
    largest = max(int((found > found.max() * 1e-6).sum()) if len(found) else 0 for found in values)
    return resizing.curve(values, resizing.powers(max(1, largest)))


def singular_values(terms: Terms, change: Change) -> Tensor:
    """Those of the change of the weight, descending, float64. From the factors alone for a plain pair."""
    plain = terms.rotation is None and terms.difference is None and terms.magnitude is None
    if plain and terms.up is not None and terms.down is not None:
        return resizing.decompose(terms.up, terms.down)[1]
    W = change.layer.dense()
    matrix = (change.layer.matrix(change.adapted()) - W).double()
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def curve_text(found: dict[int, float]) -> str:
    """The curve as printable lines."""
    lines = ["rank\terror of all changes together"]
    return "\n".join(lines + [f"{rank}\t{error:.2%}" for rank, error in found.items()])
