"""The best adapter of a run by validation loss: its state in `best/state/`, apart from the others, and a file `-best`.

The state is the record: its facts say which loss it had, so a run that resumes compares with what is on disk. It is
written after the file, and the one before it is deleted only then: at any time the folder has a whole one.
"""

import math
import os
from functools import partial
from pathlib import Path

from modules.training import saving, state
from modules.training.beside import beside, told
from modules.training.events import of_kind
from modules.training.outputs import export_now
from modules.training.session import Session

LOSS = "validation"
"""The fact in a state: the validation loss of its adapter."""


def name(session: Session) -> str:
    """The exported file of the best adapter, without its ending."""
    return f"{session.run.name}-best"


def keep(session: Session) -> None:
    """Keep this step's adapter if its validation loss is the lowest so far. All processes have to call it, after the
    validation of a step. A failure is a warning, as with every by-product."""
    wanted = session.preset.saving.keep_best and session.validation is not None and session.step > 0
    if not wanted or not told(session, session.accelerator.is_main_process and _is_best(session)):
        return
    beside(session, "the export of the best adapter", lambda session: export_now(session, name(session)))
    beside(session, "the state of the best adapter", _save, together=False)


def _is_best(session: Session) -> bool:
    """Whether the validation loss of this step is below that of the best state on disk."""
    loss = _loss(session)
    if loss is None or not math.isfinite(loss):
        return False
    kept = [_kept(folder) for folder in state.states(session.run.folder / state.BEST)]
    return all(other is None or loss < other for other in kept)


def _loss(session: Session) -> float | None:
    """The validation loss of this step: just measured, or by an earlier process, which was killed then."""
    if session.measured is not None and session.measured[0] == session.step:
        return session.measured[1]
    measured = of_kind(session.run.folder / "events.jsonl", "validation")
    return next((event["loss"] for event in reversed(measured) if event["step"] == session.step), None)


def _kept(folder: Path) -> float | None:
    """The loss of an intact state; None for a damaged one."""
    try:
        state.read_contents(folder)
        return float(state.read_texts(folder)[0][LOSS])
    except (ValueError, TypeError, KeyError):
        return None


def _save(session: Session) -> None:
    tensors = session.check_finite()
    if not session.accelerator.is_main_process:
        return
    loss, place = _loss(session), session.run.folder / state.BEST
    place.mkdir(exist_ok=True)
    path = saving.write(session, place, tensors, {LOSS: loss})
    for other in state.states(place):
        if other != path:
            beside(session, "deleting the state of the best adapter before", partial(_delete, other), together=False)
    facts = {"what": "best", "path": os.fspath(path), "step": session.step, "bytes": saving.size(path)}
    session.events.write("saved", facts)


def _delete(path: Path, session: Session) -> None:
    state.delete(path)
