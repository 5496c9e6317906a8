"""Everything that can be said about a training before it starts, without touching anything."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modules import families
from modules.adapters.base import Adapted
from modules.data.batches import Batches
from modules.data.index import DataProblems, Index, build_index, listing, overlap
from modules.preset.schema import Preset
from modules.training import schedules, setup
from modules.training.session import Pictures, total_steps

GUESSED_STEP = 8
"""Bucket step for looking at pictures when there is no model to ask."""


@dataclass
class Findings:
    """All problems and notes at once, and what was found if there are none."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: Pictures | None = None
    adapted: dict[str, Adapted] = field(default_factory=dict)
    model: Any = None
    steps: int = 0
    file_bytes: int = 0
    """Expected size of the exported file's tensors."""
    forms: dict[str, int] = field(default_factory=dict)
    """How many layers take which form in it."""


def examine(preset: Preset, device_type: str, processes: int = 1) -> Findings:
    """Look at model files, layers, pictures and options. Loads no weights, writes nothing."""
    found = Findings()
    _examine_model(preset, found)
    _examine_export(preset, found)
    _examine_pictures(preset, found)
    _examine_training(preset, device_type, processes, found)
    _examine_folders(preset, found)
    return found


def _examine_folders(preset: Preset, found: Findings) -> None:
    """Whether what is written along the way has a place."""
    folders = {"saving.folder": preset.saving.folder}
    if preset.data.cache:
        folders["data.cache_folder"] = preset.data.cache_folder
    for option, folder in folders.items():
        exists = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
        if not exists.is_dir() or not os.access(exists, os.W_OK):
            what = "cannot be written" if exists.is_dir() else "is a file, not a folder"
            found.problems.append(f"{option} {folder}: {exists} {what}; give another folder with --{option}")


def _examine_training(preset: Preset, device_type: str, processes: int, found: Findings) -> None:
    training = preset.training
    scales = (1.0, preset.targets.text_encoder_lr_scale) if preset.targets.text_encoders else (1.0,)
    found.problems += preset.optimizer.problems(training.learning_rate, device_type, scales)
    found.problems += schedules.problems(training, preset.optimizer)
    if training.precision == "float16" and device_type == "cpu":
        found.problems.append(
            "training.precision is float16, which trains on a GPU only, but the device is cpu: use auto or float32"
        )
    if found.pictures is not None:
        found.steps = total_steps(training, _batches(preset, found.pictures.training, processes))
        found.notes += schedules.notes(training, found.steps)


def _examine_model(preset: Preset, found: Findings) -> None:
    family = families.load_class(preset.family)
    found.problems += family.problems(preset.base)
    if found.problems:
        return
    try:
        found.model = family.skeleton(preset.base)
    except (OSError, ValueError, KeyError) as error:
        found.problems.append(
            f"base.path: {preset.base.path}: its configuration cannot be read ({error}); give --base a complete copy"
        )
        return
    try:
        found.adapted = setup.attach_all(found.model, preset)
    except ValueError as error:
        found.problems += str(error).splitlines()


def _examine_export(preset: Preset, found: Findings) -> None:
    """Whether the program the file is for can hold these updates: better said now than after the training."""
    from modules.export.export import expected_size

    if not found.adapted:
        return
    try:
        found.file_bytes, found.forms = expected_size(found.adapted, preset.export)
    except ValueError as error:
        found.problems += str(error).splitlines()


def _examine_pictures(preset: Preset, found: Findings) -> None:
    step = found.model.bucket_step if found.model is not None else GUESSED_STEP
    folders = [preset.data.folder, *([preset.data.validation_folder] if preset.data.validation_folder else [])]
    indices: list[Index] = []
    for folder in folders:
        try:
            indices.append(build_index(preset.data, folder, step))
            found.notes += indices[-1].notes
        except DataProblems as error:
            found.problems += error.problems
            found.notes += error.notes
    if len(indices) != len(folders):
        return
    found.pictures = Pictures(indices[0], indices[1] if len(indices) > 1 else None)
    if found.pictures.validation is not None:
        shared = overlap(found.pictures.training, found.pictures.validation)
        if shared:
            found.notes.append(f"pictures for validation are trained on too: {listing(shared)}")
    if found.model is not None:
        captions = sorted({picture.caption for index in indices for picture in index.pictures})
        long = found.model.too_long(captions)
        if long:
            found.notes.append(f"{len(long)} captions are longer than the text encoder reads and are cut: {long[0]!r}")


def _batches(preset: Preset, index: Index, processes: int) -> Batches:
    training = preset.training
    return Batches(
        index, preset.data, training.batch_size, training.accumulation, processes, rank=0, seed=training.seed
    )


def report(preset: Preset, found: Findings, processes: int = 1) -> dict[str, Any]:
    """The findings as plain values: what `--check --json` prints."""
    facts: dict[str, Any] = {"name": preset.name, "problems": found.problems, "notes": found.notes}
    if found.problems or found.pictures is None:
        return facts
    batches = _batches(preset, found.pictures.training, processes)
    index, rows = found.pictures.training, setup.layer_rows(found.adapted)
    return {
        **facts,
        "layers": [asdict(row) for row in rows],
        "parameters": sum(row.parameters for row in rows),
        "pictures": len(index.pictures),
        "validation_pictures": len(found.pictures.validation.pictures) if found.pictures.validation else 0,
        "buckets": index.table(preset.training.batch_size * processes),
        "steps": found.steps,
        "steps_per_epoch": batches.steps_per_epoch,
        "file_bytes": found.file_bytes,
        "forms": found.forms,
    }


def text(facts: dict[str, Any]) -> str:
    """The report as a person reads it."""
    lines = [f"note: {note}" for note in facts["notes"]]
    if "layers" not in facts:
        return "\n".join(lines)
    shapes: dict[tuple, list[dict]] = {}
    for row in facts["layers"]:
        shapes.setdefault((row["kind"], row["out_features"], row["channels"], row["kernel"]), []).append(row)
    lines.append(f"{len(facts['layers'])} layers, {facts['parameters']:,} trainable parameters")
    for (kind, out, channels, kernel), rows in shapes.items():
        shape = f"{out} x {channels}" + (f" x {kernel}" if kernel > 1 else "")
        lines.append(f"  {len(rows):4} {kind} {shape}: {rows[0]['parameters']:,} each, e.g. {rows[0]['name']}")
    lines += [f"{facts['pictures']} pictures, {facts['validation_pictures']} for validation", facts["buckets"]]
    lines.append(f"{facts['steps']} steps, {facts['steps_per_epoch']} per epoch")
    forms = ", ".join(f"{count} {form}" for form, count in facts["forms"].items())
    lines.append(f"exported file: about {facts['file_bytes'] / 2**20:.1f} MiB ({forms})")
    return "\n".join(lines)
