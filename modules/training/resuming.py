"""How a run goes on: from which of its states, on what it was begun with, and with what follows from another length."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from modules.adapters.base import check_adapter_state, load_adapter_state
from modules.preset.schema import Preset
from modules.printable import LONGEST, short
from modules.training import ended, fingerprints, gradient_start, run, schedules, state
from modules.training.events import Events
from modules.training.fingerprints import Changes, Made
from modules.training.state import State

if TYPE_CHECKING:
    from modules.training.session import Pictures, Session

FACTS = ("started", "baseline", "average", "processes")
"""What a state has to know for a run to go on from it."""


def warn(events: Events, message: str) -> None:
    """Say something on the screen and in the events: the run goes on, but not quite as it would have."""
    events.write("warning", {"message": message, "detail": ""})
    if events.main:
        tqdm.write(f"warning: {short(message, LONGEST)}", file=sys.stderr)


def resume(session: "Session") -> None:
    """Go on from the last state that can be used, if the run has any. Raises ValueError where none of them can be, and
    where the run would go on with another model."""
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
    session.step, session.started = saved.step, saved.facts["started"]
    session.baseline, session.average = saved.facts["baseline"], saved.facts["average"]
    session.reference = saved.facts.get("reference")  # states of before it was measured have none
    if session.run.is_ours:
        notes += put_aside(session.run.folder, saved.step)
        prune(session, saved.folder)  # one that was killed between saving and this has left a state too many
    back = f"the run goes on from {saved.folder}, the one before"
    for message in [*(f"{reason}; {back}" for reason in reasons), *notes, *moved(session, saved)]:
        warn(session.events, message)
    detail = f"going on from step {session.step} ({saved.folder})"
    session.events.write("stage", {"name": "resume", "detail": detail})


def prune(session: "Session", newest: Path) -> None:
    """Delete the states that saving.keep_states does not keep."""
    try:
        state.prune_states(session.run.folder, session.preset.saving.keep_states, newest)
    except OSError as error:
        warn(session.events, f"saving.keep_states: an older training state cannot be deleted ({error})")


def put_aside(folder: Path, step: int) -> list[str]:
    """Rename the states after `step`, which cannot be used. Sentences about what cannot be renamed."""
    try:
        state.put_aside([path for path in state.states(folder) if state.steps_of(path) > step])
    except OSError as error:
        return [f"a training state that cannot be used cannot be renamed either ({error})"]
    return []


def usable(session: "Session") -> tuple[State | None, list[str]]:
    """The state with the most steps that is whole and fits this training; and why each with more steps is not."""
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


def check_fits(session: "Session", saved: State) -> None:
    """Raise ValueError if a state is of another training, although it is whole."""
    try:
        check_adapter_state(session.adapted, saved.adapter)
        state.check_optimizer(session.optimizer, saved)
        lacking = [name for name in FACTS if name not in saved.facts]
        if lacking:
            raise ValueError(f"it does not say {', '.join(lacking)}")
        stored, reason = ended.stored_preset(saved.folder / "preset.json")
        changed = run.changes(stored, session.preset) if stored is not None else []
        if reason or changed:
            raise ValueError(reason or f"it is of another preset ({', '.join(name for name, _, _ in changed)})")
    except state.DAMAGE as error:
        raise ValueError(f"the training state {saved.folder} does not fit this run: {error}") from error


# -- on what it was begun with ----------------------------------------------------------------------------------------


def refuse_changed(opened: run.Run, preset: Preset, pictures: "Pictures") -> None:
    """Raise ValueError if the run would go on with another model; before anything is loaded, as far as that is
    known then."""
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
    """What has changed, and the fingerprints now. That a model is another one is only believed of its contents, not of
    what was remembered of them. Raises OSError."""
    changes = fingerprints.compare(before, now, preset)
    if changes.decisive:
        now = make(anew=True)
        changes = fingerprints.compare(before, now, preset)
    return changes, now


def unchanged(session: "Session", saved: State) -> list[str]:
    """What is not as it was when the state was written, in sentences. Raises ValueError, in all processes, where the
    run would go on with another model."""
    refused, notes, preset = [""], [], session.preset
    if session.run.is_ours:
        try:
            notes, decisive = _changes(session, saved)
            if decisive.decisive and preset.saving.resume_changed:
                notes += [f"{change}; the run goes on, as saving.resume_changed says" for change in decisive.decisive]
            elif decisive.decisive:
                refused[0] = refusal(decisive, saved.folder.name)
        except OSError as error:
            refused[0] = f"base.path {preset.base.path}: {error}"
    broadcast_object_list(refused)
    if refused[0]:
        raise ValueError(refused[0])
    return notes


def _changes(session: "Session", saved: State) -> tuple[list[str], Changes]:
    before = fingerprints.of_text(saved.texts)
    assert session.made is not None
    if before is None:
        return [f"{saved.folder} does not say what it was trained on, so that is not compared"], Changes([], [])
    make = partial(fingerprints.make, session.preset, session.index, session.validation, session.run.folder)
    changes, now = compared(before, session.made.result(), session.preset, make)
    session.made = fingerprints.is_made(now)
    return list(changes.others), changes


def refusal(changes: Changes, name: str) -> str:
    """What to say of a run that would go on with another model."""
    return (
        f"{'; '.join(changes.decisive)}. The steps until {name} were trained with other files. Put those back, train "
        "under another name (--name), or go on knowingly with --saving.resume_changed"
    )


# -- with what follows from another length, or from other processes ---------------------------------------------------


def moved(session: "Session", saved: State) -> list[str]:
    """What the run would have done otherwise until now, had it been started as it goes on; in sentences."""
    before, now = saved.facts["processes"], session.accelerator.num_processes
    notes = []
    if before != now:
        notes = [f"this run had {before} processes and goes on with {now}: its steps see other pictures from here on"]
    before, now = saved.facts.get("steps", session.steps), session.steps
    if before == now:
        return notes
    adapters = [layer.adapter for layer in session.adapted.values()]
    found = [
        schedules.replanned(session.preset.training, saved.step, before, now),
        type(adapters[0]).replanned(adapters, saved.step, before, now),
        gradient_start.replanned(session, before, now),
    ]
    return notes + [f"planned for {before} steps, goes on to {now}: {note}" for note in found if note]
