"""How a run resumes: from which of its states, whether its files have changed, and what another length changes."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from modules.adapters.base import check_adapter_state, load_adapter_state
from modules.preset.schema import Preset
from modules.printable import LONGEST, short
from modules.training import (
    ema,
    ended,
    fingerprints,
    freezing,
    gradient_start,
    input_start,
    run,
    schedules,
    setup,
    state,
)
from modules.training.events import Events
from modules.training.fingerprints import Changes, Made
from modules.training.session import Pictures, Session
from modules.training.state import State

FACTS = ("started", "baseline", "average", "processes")
"""Facts that a state needs for a run to resume from it."""


def warn(events: Events, message: str) -> None:
    """Warn on the screen and in the events: the run resumes, but differs from one without interruption."""
    events.write("warning", {"message": message, "detail": ""})
    if events.main:
        tqdm.write(f"warning: {short(message, LONGEST)}", file=sys.stderr)


def resume(session: Session) -> None:
    """Resume from the last usable state, if the run has any. Raises ValueError where none of them is usable, and where
    the model has changed."""
    saved, reasons = usable(session)
    found = set(gather_object([saved.folder.name if saved else "no state"]))
    if len(found) > 1:
        raise ValueError(f"saving.folder: processes see different states ({', '.join(sorted(found))}); on several "
                         "machines, give a folder that all of them share")
    if saved is None:
        if reasons:
            raise ValueError(state.none_left(session.run.folder, reasons))
        return
    ended.check_steps(session.preset.training, session.steps, saved.step, saved.folder)
    notes = unchanged(session, saved)
    state.restore_optimizer(session.optimizer, saved)
    load_adapter_state(session.adapted, saved.adapter)
    if session.ema is not None:
        session.ema.restore(saved.ema)
    session.step, session.started = saved.step, saved.facts["started"]
    session.baseline, session.average = saved.facts["baseline"], saved.facts["average"]
    session.reference = saved.facts.get("reference")  # states of earlier versions have none
    session.clock.trained = saved.facts.get("trained", 0.0)  # likewise
    if session.run.is_ours:
        notes += put_aside(session.run.folder, saved.step)
        prune(session, saved.folder)  # a run that was killed between saving and pruning has left a state too many
    back = f"resuming from {saved.folder}, the state before"
    for message in [*(f"{reason}; {back}" for reason in reasons), *notes, *moved(session, saved)]:
        warn(session.events, message)
    detail = f"resuming from step {session.step} ({saved.folder})"
    session.events.write("stage", {"name": "resume", "detail": detail})


def prune(session: Session, newest: Path) -> None:
    """Delete the states that saving.keep_states does not keep."""
    try:
        state.prune_states(session.run.folder, session.preset.saving.keep_states, newest)
    except OSError as error:
        warn(session.events, f"saving.keep_states: an older training state cannot be deleted ({error})")


def put_aside(folder: Path, step: int) -> list[str]:
    """Rename the states after `step`, which are unusable. Sentences about what cannot be renamed."""
    try:
        state.put_aside([path for path in state.states(folder) if state.steps_of(path) > step])
    except OSError as error:
        return [f"an unusable training state cannot be renamed ({error})"]
    return []


def usable(session: Session) -> tuple[State | None, list[str]]:
    """The state with the most steps that is intact and fits this training; and why each with more steps is not."""
    reasons = []
    for folder in reversed(state.states(session.run.folder)):
        try:
            saved = state.load_state(folder)
            check_fits(session, saved)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return saved, reasons
    return None, reasons


def check_fits(session: Session, saved: State) -> None:
    """Raise ValueError if an intact state is of another training."""
    try:
        check_adapter_state(session.adapted, saved.adapter)
        state.check_optimizer(session.optimizer, saved)
        ema.check(session.preset.training, setup.trained(session.adapted), saved.ema, saved.step)
        lacking = [name for name in FACTS if name not in saved.facts]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        stored, reason = ended.stored_preset(saved.folder / "preset.json")
        changed = run.changes(stored, session.preset) if stored is not None else []
        if reason or changed:
            raise ValueError(reason or f"it has another preset ({', '.join(name for name, _, _ in changed)})")
    except state.DAMAGE as error:
        raise ValueError(f"the training state {saved.folder} does not fit this run: {error}") from error


# -- whether its files have changed -----------------------------------------------------------------------------------


def refuse_changed(opened: run.Run, preset: Preset, pictures: Pictures) -> None:
    """Raise ValueError if the model has changed; before anything is loaded, as far as that is known then."""
    if opened.newest is None or preset.saving.resume_changed:
        return
    before = fingerprints.of_text(state.read_texts(opened.newest)[1])
    if before is None:
        return
    make = partial(fingerprints.make, preset, pictures.training, pictures.validation, opened.folder)
    try:
        now = make()
        if before["base"].keys() - now["base"].keys() and not fingerprints.is_here(preset.base):
            return  # still to come from the hub
        changes, _ = compared(before, now, preset, make)
    except OSError as error:
        raise ValueError(f"base.path {preset.base.path}: {error}") from error
    if changes.decisive:
        raise ValueError(refusal(changes, opened.newest.name))


def compared(before: Made, now: Made, preset: Preset, make: Callable[..., Made]) -> tuple[Changes, Made]:
    """What has changed, and the fingerprints now. A changed model is verified by its contents, not by the record's
    hashes. Raises OSError."""
    changes = fingerprints.compare(before, now, preset)
    if changes.decisive:
        now = make(anew=True)
        changes = fingerprints.compare(before, now, preset)
    return changes, now


def unchanged(session: Session, saved: State) -> list[str]:
    """What has changed since the state was written, in sentences. Raises ValueError, in all processes, where the model
    has changed."""
    refused, notes, preset = [""], [], session.preset
    if session.run.is_ours:
        try:
            notes, decisive = _changes(session, saved)
            if decisive.decisive and preset.saving.resume_changed:
                notes += [f"{change}; resuming anyway (saving.resume_changed)" for change in decisive.decisive]
            elif decisive.decisive:
                refused[0] = refusal(decisive, saved.folder.name)
        except OSError as error:
            refused[0] = f"base.path {preset.base.path}: {error}"
    broadcast_object_list(refused)
    if refused[0]:
        raise ValueError(refused[0])
    return notes


def _changes(session: Session, saved: State) -> tuple[list[str], Changes]:
    before = fingerprints.of_text(saved.texts)
    assert session.made is not None
    if before is None:
        return [f"{saved.folder} has no fingerprints, so changed files are not detected"], Changes([], [])
    make = partial(fingerprints.make, session.preset, session.index, session.validation, session.run.folder)
    changes, now = compared(before, session.made.result(), session.preset, make)
    session.made = fingerprints.is_made(now)
    return list(changes.others), changes


def refusal(changes: Changes, name: str) -> str:
    """The message where the model has changed."""
    return (
        f"{'; '.join(changes.decisive)}. The steps until {name} were trained with other files. Restore those, train "
        "under another name (--name), or resume anyway with --saving.resume_changed"
    )


# -- what another length, or another number of processes, changes -----------------------------------------------------


def moved(session: Session, saved: State) -> list[str]:
    """What would have been different until now, had the run been started as it resumes; in sentences."""
    before, now = saved.facts["processes"], session.accelerator.num_processes
    notes = []
    if before != now:
        notes = [f"this run had {before} processes and resumes with {now}: from here on its steps use other pictures"]
    before, now = saved.facts.get("steps", session.steps), session.steps
    if before == now:
        return notes
    adapters = [layer.adapter for layer in session.adapted.values()]
    found = [
        schedules.replanned(session.preset.training, saved.step, before, now),
        type(adapters[0]).replanned(adapters, saved.step, before, now),
        gradient_start.replanned(session, before, now, bool(input_start.asking(session.adapted))),
        freezing.replanned(freezing.shares(session.model, session.preset.targets, session.adapted).values(), saved.step,
                           before, now),
    ]
    return notes + [f"planned for {before} steps, continues to {now}: {note}" for note in found if note]
