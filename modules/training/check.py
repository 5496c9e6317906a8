"""Everything that can be said about a training before it starts, without touching anything."""

import importlib.util
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modules import adapters, families
from modules.adapters.base import Adapted
from modules.data import references
from modules.data.buckets import GUESSED_STEP
from modules.data.folders import entries, exact, line_about, values_of
from modules.data.index import DataProblems, Index, build_index, overlap
from modules.data.names import listing
from modules.families.base import Reading
from modules.judges import judges
from modules.preset import effects
from modules.preset.schema import Preset
from modules.printable import LONGEST, short
from modules.training import (
    caption_lengths,
    ema,
    first_values,
    folder_checks,
    freezing,
    graphics,
    input_start,
    known,
    layer_options,
    noise,
    pool,
    reference_checks,
    samples_base,
    schedules,
    setup,
    sharding,
    text_groups,
    training_adapter,
)
from modules.training.bars import progress_bar
from modules.training.folder_checks import planned
from modules.training.layer_options import own_settings
from modules.training.processes import is_main_process
from modules.training.session import Pictures, sample_prompts, total_steps, usual_captions

NEEDED_ON_GPUS = "the package triton, and on Linux a C compiler (gcc or clang) for it,"
"""By torch.compile."""


@dataclass
class Findings:
    """All problems and notes at once, and what was found in spite of them.

    A problem with an option begins with its name.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    training: Index | None = None
    validation: Index | None = None
    model: Any = None
    takes_references: bool = False
    """Whether there are reference pictures, and the model takes them."""
    layer_sets: list[str] = field(default_factory=list)
    """What targets.layers may be."""
    trainable_layers: int = 0
    """How many layers the model has that could be adapted."""
    adapted: dict[str, Adapted] = field(default_factory=dict)
    steps: int = 0
    file_bytes: int = 0
    """Expected size of the exported file's tensors."""
    forms: dict[str, int] = field(default_factory=dict)
    """How many layers take which form in it."""

    @property
    def pictures(self) -> Pictures | None:
        """The pictures that a training needs."""
        return None if self.training is None else Pictures(self.training, self.validation)


def examine(preset: Preset, device_type: str, processes: int = 1, given: Collection[str] = ()) -> Findings:
    """Look at model files, layers, pictures and options; `given`: see `Resolved`. Loads no weights, writes nothing."""
    found = Findings()
    _examine_model(preset, found)
    _examine_export(preset, found)
    _examine_pictures(preset, found)
    _examine_training(preset, device_type, processes, found)
    found.notes += [unused] if (unused := graphics.unused(device_type)) else []
    folder_checks.look(preset, found)
    _examine_samples(preset, found)
    facts = known.facts(preset, found.model, found.adapted, found.forms, found.pictures)
    found.notes += effects.notes(preset, facts, given)
    # Pictures for training and for validation share options, and so may problems.
    found.problems, found.notes = _said(found.problems), _said(found.notes)
    return found


def _examine_samples(preset: Preset, found: Findings) -> None:
    """Whether reference pictures can be read, and judges of the sample pictures, which have to know the prompts'
    subjects."""
    if found.takes_references:
        found.problems += reference_checks.of_samples(preset, found.model)
    if not preset.samples.judges or not preset.samples.enabled or found.training is None:
        return
    subjects = [judges.subject_of(prompt) for prompt in sample_prompts(preset, found.training)]
    try:
        judges.check_subjects(Path(preset.samples.judges), subjects)
    except (ValueError, OSError) as error:
        found.problems.append(f"samples.judges: {error}")


def _said(sentences: list[str]) -> list[str]:
    """Each sentence once, long ones shortened."""
    return [short(sentence, LONGEST) for sentence in dict.fromkeys(sentences)]


def _examine_training(preset: Preset, device_type: str, processes: int, found: Findings) -> None:
    training = preset.training
    found.problems += layer_options.rule_problems(preset) + setup.optimizer_problems(preset)
    rates = layer_options.possible_rates(preset.targets)
    if found.adapted:
        rates = layer_options.uneven_rates(own_settings(found.model, preset.targets, found.adapted).values())
    unpaired = "" if adapters.methods()[preset.adapter.method].Adapter.pairs else preset.adapter.method
    found.problems += preset.optimizer.problems(training.learning_rate, device_type, rates, unpaired)
    found.notes += preset.optimizer.notes(training.learning_rate, device_type)
    found.problems += schedules.problems(training, preset.optimizer)
    if training.precision == "float16" and device_type == "cpu":
        found.problems.append(
            "training.precision is float16, which works on a GPU only, but the device is cpu: use auto or float32"
        )
    if training.compile and not _can_compile(device_type):
        needed = "a C++ compiler (g++, clang++ or cl)," if device_type == "cpu" else NEEDED_ON_GPUS
        found.problems.append(f"training.compile: needs {needed} which is not installed; install it or turn this off")
    found.problems += sharding.problems(preset, processes)
    found.steps = 0 if training.epochs else training.steps
    if found.training is not None:
        found.steps = total_steps(training, planned(preset, found.training, processes))
        found.notes += schedules.notes(training, found.steps) + ema.notes(preset, found.steps)
        found.notes += freezing.notes(found.model, preset.targets, found.adapted, found.steps) if found.adapted else []
        found.notes += _notes_on_sharding(preset, found, processes) + input_start.notes(found.adapted)


def _notes_on_sharding(preset: Preset, found: Findings, processes: int) -> list[str]:
    """Whether text encoders have to be on the device beside the sharded denoiser."""
    if not sharding.is_wanted() or preset.targets.text_encoders or found.training is None:
        return []
    coming = planned(preset, found.training, processes).captions(min(found.steps, preset.data.encode_ahead))
    return [text_groups.TOGETHER] if text_groups.changes(coming, usual_captions(found.training)) else []


def _can_compile(device_type: str) -> bool:
    if device_type == "cpu":
        return any(shutil.which(compiler) for compiler in ("g++", "clang++", "cl"))
    has_compiler = os.name == "nt" or "CC" in os.environ or any(shutil.which(compiler) for compiler in ("gcc", "clang"))
    return importlib.util.find_spec("triton") is not None and has_compiler


def _examine_model(preset: Preset, found: Findings) -> None:
    found.model, problems = families.read(preset.family, preset.base)
    found.problems += problems
    if found.model is None:
        return
    found.problems += noise.problems(preset.objective, found.model.process)
    try:
        found.notes += found.model.use_reading(Reading.of(preset.base, preset.data))
    except ValueError as error:
        found.problems.append(str(error))
    found.takes_references, problems, notes = reference_checks.look(preset, found.model)
    found.problems, found.notes = found.problems + problems, found.notes + notes
    found.problems += setup.block_problems(found.model, preset.base)
    found.layer_sets = list(found.model.named_targets())
    found.trainable_layers = len(setup.layer_names(found.model))
    found.problems += training_adapter.look(preset, found.model)
    if found.model.distilled and not preset.base.training_adapter:
        found.notes.append(training_adapter.UNTRAINED)
    for look in (samples_base.look, pool.look):
        problems, notes = look(preset, found.model)
        found.problems, found.notes = found.problems + problems, found.notes + notes
    started, problems = first_values.look(preset, found.model)
    found.adapted, more = setup.attach_all(found.model, preset)
    found.problems += problems + more
    found.problems += layer_options.encoder_problems(found.model, preset.targets, found.adapted)
    if found.adapted and started is not None:
        found.problems += first_values.misfits(started, found.adapted)


def _examine_export(preset: Preset, found: Findings) -> None:
    """Whether the program that the file is for supports these updates."""
    from modules.export.export import expected_size

    if not found.adapted:
        return
    try:
        for name in found.adapted:
            found.model.export_key(name, preset.export.host)
        found.file_bytes, found.forms = expected_size(found.model, found.adapted, preset.export)
    except ValueError as error:
        found.problems += str(error).splitlines()


def _examine_pictures(preset: Preset, found: Findings) -> None:
    step = found.model.bucket_step if found.model is not None else GUESSED_STEP
    fitted = found.model.reference_size if found.model and found.takes_references else references.as_it_is
    indices: dict[str, Index] = {}
    for which in ("training", "validation") if entries(preset.data, "validation") else ("training",):
        try:
            with progress_bar(f"reading {which} pictures", is_main_process() and sys.stderr.isatty()) as move:
                indices[which] = build_index(preset.data, which, step, move, fitted)
            found.notes += indices[which].notes
        except DataProblems as error:
            found.problems += error.problems
            found.notes += error.notes
    found.training, found.validation = indices.get("training"), indices.get("validation")
    if len(indices) == 2 and (shared := overlap(indices["training"], indices["validation"])):
        found.notes.append(f"validation pictures are also training pictures ({listing(shared)})")
    if found.model is None and indices:
        found.notes.append(f"bucket sizes are estimated (multiples of {GUESSED_STEP} px): base model cannot be read")
    if found.model is not None:
        found.problems += _too_large(preset, indices.get("training"), found.model.longest_side)
        found.notes += caption_lengths.notes(preset, found.model, found.training, found.validation)


def _too_large(preset: Preset, index: Index | None, longest: int | None) -> list[str]:
    """Whether the model takes pictures of these sizes."""
    if longest is None:
        return []
    limit, problems = f"this model's position embeddings are limited to {longest} px", []
    sizes = {picture.bucket for picture in index.pictures} if index else set()
    if sizes and max(map(max, sizes)) > longest:
        width, height = max(sizes, key=max)
        resolution = max(picture.options.resolution for picture in index.pictures) if index else 0
        given = f"data.resolution: {resolution} gives a bucket of {width} x {height} px"
        problems.append(f"{given}, but {limit}; lower it, or lower data.max_aspect")
    samples = preset.samples
    for side, given in (("width", samples.width), ("height", samples.height)):
        if samples.enabled and (given or preset.data.largest) > longest:
            problems.append(f"samples.{side}: {given or preset.data.largest}, but {limit}; lower it")
    return problems


def report(preset: Preset, found: Findings, processes: int = 1) -> dict[str, Any]:
    """The findings as plain values, as `--check --json` prints them. Values that a problem hides are 0 or empty."""
    rows = setup.layer_rows(found.adapted, found.model, preset.targets) if found.model is not None else []
    index = found.training
    indices = [one for one in (found.training, found.validation) if one is not None]
    return {
        "name": preset.name,
        "problems": found.problems,
        "notes": found.notes,
        "layers": [asdict(row) for row in rows],
        "parameters": sum(row.parameters for row in rows),
        "layer_sets": found.layer_sets,
        "trainable_layers": found.trainable_layers,
        "pictures": files(index),
        "validation_pictures": files(found.validation),
        "captions": [line for one in indices for line in one.captions],
        "folders": folder_rows(preset, found),
        "skipped": [{"name": name, "reason": reason} for one in indices for name, reason in one.skipped],
        "alike": [list(names) for one in indices for names in one.alike],
        "buckets": index.table(preset.training.batch_size * processes) if index else "",
        "steps": found.steps,
        "steps_per_epoch": planned(preset, index, processes).steps_per_epoch if index else 0,
        "file_bytes": found.file_bytes,
        "forms": found.forms,
        "probe": None,
    }


def files(index: Index | None) -> int:
    """How many picture files there are; one may be in an index several times, as at several resolutions."""
    return len({picture.path for picture in index.pictures}) if index else 0


def folder_rows(preset: Preset, found: Findings) -> list[dict[str, Any]]:
    """Each entry of data.folders with the values that hold in it, how many pictures it has, and a line that says so."""
    rows, of_entry = [], defaultdict(list)
    for which, index in (("training", found.training), ("validation", found.validation)):
        for picture in index.pictures if index else ():
            of_entry[picture.entry].append(picture)
        for place, folder in entries(preset.data, which):
            own = of_entry[place]
            per_epoch = float(sum(exact(picture.repeats) for picture in own))
            rows.append({
                "entry": place,
                **values_of(preset.data, folder),
                "pictures": len({picture.path for picture in own}),
                "per_epoch": per_epoch,
                "line": line_about(preset.data, folder, own),
            })
    return sorted(rows, key=lambda row: row["entry"])


def text(facts: dict[str, Any]) -> str:
    """The report as a person reads it."""
    lines = [f"note: {note}" for note in facts["notes"]]
    alike: dict[tuple, list[dict]] = {}
    for row in facts["layers"]:
        alike.setdefault(tuple(value for key, value in row.items() if key != "name"), []).append(row)
    lines.append(f"{len(facts['layers'])} layers, {facts['parameters']:,} trainable parameters")
    mixed = len({row["rank"] for row in facts["layers"]}) > 1
    for first, *others in alike.values():
        shape = f"{first['out_features']} x {first['channels']}"
        shape += f" x {first['kernel']}" if first["kernel"] > 1 else ""
        own = f", rank {first['rank']}" if mixed else ""
        own += f", learning rate x {first['lr_scale']:g}" if first["lr_scale"] != 1 else ""
        lines.append(
            f"  {1 + len(others):4} {first['kind']} {shape}: {first['parameters']:,} each{own}, e.g. {first['name']}"
        )
    lines += [f"{facts['pictures']} pictures, {facts['validation_pictures']} for validation"]
    lines += [f"  {row['line']}" for row in facts["folders"]]
    lines += [*facts["captions"], facts["buckets"]]
    lines.append(f"{facts['steps']} steps, {facts['steps_per_epoch']} per epoch")
    forms = ", ".join(f"{count} {form}" for form, count in facts["forms"].items())
    lines += measured(facts["probe"]) if facts["probe"] else []
    lines.append(f"exported file: about {facts['file_bytes'] / 2**20:.1f} MiB ({forms})")
    return "\n".join(lines)


def measured(facts: dict[str, Any]) -> list[str]:
    """What a probe has found, as a person reads it."""
    width, height = facts["bucket"]
    hours, minutes = divmod(round(facts["seconds"] / 60), 60)
    sampling = facts["sampling_mb"]
    training, preparing, total = (facts[name] / 1024 for name in ("training_mb", "preparing_mb", "total_mb"))
    return [
        f"measured on {facts['device']} at {width} x {height}, the largest bucket:",
        f"  peak memory {training:.2f} GiB in training, {preparing:.2f} GiB while preparing, of {total:.1f} GiB",
        *([f"  peak memory {sampling / 1024:.2f} GiB while samples.base draws"] if sampling else []),
        f"  {facts['seconds_per_step']:.2f} s per step: {hours} h {minutes:02} min for all steps, without samples, "
        "validation and saving",
    ]
