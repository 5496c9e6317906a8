"""The adapters that a run, finished or not, has on disk: its adapter.safetensors, or one of its training states."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from modules.adapters.base import Adapted, load_adapter_state
from modules.disk import write_whole
from modules.export.export import export
from modules.files import run_file
from modules.files.facts import Facts
from modules.preset.files import resolve
from modules.preset.schema import Preset
from modules.tensorfile import check_content
from modules.training import flat, new_tokens, resuming, setup, state
from modules.training.ended import ADAPTER
from modules.training.events import Events
from modules.training.optimizers import averaged
from modules.training.run import Run
from modules.training.state import State


def source(folder: Path, step: int | None) -> tuple[Path | State, list[str]]:
    """What the last adapters of the run in `folder` are read from, or those of `step`; and about newer ones that cannot
    be read, in sentences. Raises ValueError where there is nothing."""
    if step is not None:
        return _of_step(folder, step), []
    file, (newest, reasons) = folder / ADAPTER, state.newest(folder)
    if file.is_file():
        try:
            check_content(file)
            done = facts_in(file).step
        except state.DAMAGE as error:
            reasons = [f"{file} cannot be used ({error})", *reasons]
        else:
            if newest is None or state.steps_of(newest) <= done:
                later = any(state.steps_of(path) > done for path in state.states(folder))
                return file, reasons if later else []
    if newest is None:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        then = "restore a copy, or train under another name" if reasons else "continue the training"
        raise ValueError(f"{folder}: the run has no readable {ADAPTER} and no readable training state; {then}{listed}")
    try:
        return state.load_state(newest), reasons
    except ValueError:
        if newest.exists():
            raise
        return source(folder, step)  # the run is training, and has deleted it for a newer one meanwhile


def export_again(run: Run, adapter: Path, preset: Preset, device: torch.device) -> Path:
    """Write the exported file of a finished run again, from its adapters. Events are written last: until then the run
    is unchanged. Raises ValueError, and OSError as `export`."""
    path = run.folder / f"{run.name}.safetensors"
    with loaded(adapter, preset, device) as (model, layers, facts):
        report = export(model, layers, preset, facts, path, new_tokens.vectors(model, preset.targets))
    write_whole(path.with_suffix(".errors.tsv"), report.table())
    with Events(run.folder) as events:
        for note in run.notes:
            resuming.warn(events, note)
        events.write("saved", {"what": "export", "path": path, "step": facts.step, "bytes": report.size})
        events.write("finished", {"outcome": "done", "exit_code": 0, "step": facts.step, "path": path})
    return path


def _of_step(folder: Path, step: int) -> State:
    found = {state.steps_of(path): path for path in state.states(folder)}
    if step not in found:
        there = ", ".join(map(str, found)) or "none"
        raise ValueError(f"--state {step}: {folder} has no training state of this step; available: {there}")
    return state.load_state(found[step])


def facts_in(file: Path) -> Facts:
    """The facts about its run in an adapter.safetensors."""
    with safe_open(file, "pt") as opened:
        written = (opened.metadata() or {}).get("facts")
    return Facts.from_json(written) if written else Facts()


def preset_of(folder: Path, found: Path | State, overrides: Sequence[tuple[str, str]] = ()) -> Preset:
    """The run's preset with `overrides`; a state has its own. Raises ValueError, also where the run's file has not the
    weights that they say: averaged, or as they were trained. States have both."""
    own = found.folder / "preset.json" if isinstance(found, State) else folder / "preset.json"
    place = str(own if own.exists() else folder / "preset.json")
    preset = resolve(place, overrides).preset
    if isinstance(found, Path) and preset.training.ema != "none":
        has = resolve(place).preset.export.ema
        if preset.export.ema != has:
            raise ValueError(f"export.ema: {found} has the {'averaged' if has else 'trained'} weights only; give a "
                             "training state with --state, which has both")
    return preset


@contextmanager
def loaded(
    found: Path | State, preset: Preset, device: torch.device
) -> Iterator[tuple[Any, dict[str, Adapted], Facts]]:
    """The model, with its new tokens, the adapters by full layer name, as the run itself would export them now, and the
    run's facts. Raises ValueError where they do not fit the preset."""
    model, layers = setup.load_and_attach(preset, device)
    learned = {**layers, **new_tokens.learned(model)}
    if isinstance(found, Path):
        yield model, layers, run_file.load(found, learned)
        return
    written = found.facts.get("training")
    facts = Facts.from_json(written) if written else Facts(step=found.step)
    if not preset.optimizer.averages:
        _load(learned, {**found.adapter, **(found.ema if preset.export.ema else {})}, found.folder)
        yield model, layers, facts
        return
    groups = setup.parameter_groups(layers, model, preset.targets)
    _, optimizer = flat.build(preset.optimizer, groups, preset.training.learning_rate)
    state.restore_optimizer(optimizer, found)
    _load(learned, found.adapter, found.folder)
    with averaged(optimizer):
        yield model, layers, facts


def _load(layers: dict[str, Adapted], tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        load_adapter_state(layers, tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
