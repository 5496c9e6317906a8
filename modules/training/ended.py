"""Whether the run in a folder is finished and its files are intact; whether it may continue to another length."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.preset.files import resolve
from modules.preset.schema import Preset, Training
from modules.tensorfile import check_content
from modules.training import state
from modules.training.events import read_events

ADAPTER = "adapter.safetensors"
"""The run's own file: its adapters as they were at the end."""


@dataclass(frozen=True)
class Ended:
    """What a finished run has left; nothing for one that is not finished."""

    file: Path | None = None
    """The exported file, if it and the run's adapters are intact."""
    adapter: Path | None = None
    """The adapters to export again from, where there is no state of the last step."""
    notes: tuple[str, ...] = ()
    """What is damaged or missing, and what it is recreated from, in sentences."""


def look(place: Path, preset: Preset, newest: Path | None) -> Ended:
    """What a finished run has left in its folder. `newest`: its last intact state. Raises ValueError where the
    exported file is damaged and cannot be recreated."""
    end, file = _last_end(place), ended_with(place, preset)
    if file is None or end is None:
        return Ended()
    adapter = place / ADAPTER
    broken, worse = damage(file), damage(adapter) if adapter.exists() else ""
    said = "; ".join(reason for reason in (broken, worse) if reason)
    if not said:
        return Ended(file)
    if newest is not None and state.steps_of(newest) == end["step"]:
        return Ended(notes=(f"{said}; recreating it from {newest}",))
    if not broken:
        return Ended(file, notes=(f"{said} and cannot be recreated: there is no training state of step {end['step']}",))
    if adapter.exists() and not worse:
        return Ended(adapter=adapter, notes=(f"{said}; recreating it from {adapter}",))
    if newest is not None:
        return Ended(notes=(f"{said}; resuming from {newest}, the last intact training state",))
    if not worse:
        return Ended(notes=(f"{said}, and there are no adapters or training states: starting over",))
    raise ValueError(
        f"{said}; this run is finished, and there is no training state to recreate them from. Restore a copy, train "
        f"under another name (--name), or delete {place} to start over"
    )


def finished_file(place: Path, preset: Preset) -> Path | None:
    """The exported file of a finished run; None if it is not finished, if `preset` has another length, or if the file
    is missing or damaged."""
    file = ended_with(place, preset)
    return None if file is None or damage(file) else file


def ended_with(place: Path, preset: Preset) -> Path | None:
    """The path of the file that the run has exported at its end, even if it is missing; None if the run is not
    finished, or if `preset` has another length."""
    end = _last_end(place)
    if end is None or _length_differs(place, preset):
        return None
    newest = state.states(place)[-1:]
    if newest and state.steps_of(newest[0]) > end["step"]:
        return None  # it was lengthened since
    return place / end["path"]


def damage(file: Path) -> str:
    """Why a file that a run has written cannot be used, in a sentence; empty if it can."""
    if not file.exists():
        return f"{file} is missing"
    try:
        check_content(file)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _last_end(place: Path) -> dict[str, Any] | None:
    """The last event `finished`, if its outcome is `done` and it has a file and a step."""
    path = place / "events.jsonl"
    events = read_events(path) if path.is_file() else []
    end = next((event for event in reversed(events) if event.get("event") == "finished"), {})
    whole = end.get("outcome") == "done" and isinstance(end.get("path"), str) and isinstance(end.get("step"), int)
    return end if whole and end["path"] else None


def _length_differs(place: Path, preset: Preset) -> bool:
    """Whether the run in the folder, if its preset can be read, has another length than `preset`."""
    last = [folder / "preset.json" for folder in state.states(place)[-1:]]
    known = [found for path in (*last, place / "preset.json") if (found := stored_preset(path)[0]) is not None]
    return bool(known) and _length(known[0]) != _length(preset)


def _length(preset: Preset) -> str:
    training = preset.training
    return f"steps {training.steps}" if training.epochs is None else f"epochs {training.epochs}"


def stored_preset(path: Path) -> tuple[Preset | None, str]:
    """The preset in a file, or why it cannot be read. Neither where there is no file."""
    if not path.exists():
        return None, ""
    try:
        return resolve(str(path)).preset, ""
    except RecursionError:
        return None, "it is nested too deeply"
    except (ValueError, OSError) as error:
        return None, str(error)


def check_length(place: Path, preset: Preset, newest: Path | None, steps: int | None) -> None:
    """Raise ValueError if the run has done more steps than the `steps` of the whole training, or has no state to
    continue from."""
    training = preset.training
    steps = training.steps if steps is None and training.epochs is None else steps
    if newest is not None and steps is not None:
        check_steps(training, steps, state.steps_of(newest), newest)
    if newest is None and _last_end(place) is not None and _length_differs(place, preset):
        raise ValueError(
            f"training.{_length(preset)}: the run in {place} was finished with another length, and there is no "
            f"training state to continue from. Restore a copy of {place / state.FOLDER}, or train under another --name"
        )


def check_steps(training: Training, steps: int, done: int, newest: Path) -> None:
    """Raise ValueError if `done` steps are more than the whole training has."""
    if done <= steps:
        return
    given = f"training.steps: {steps}" if training.epochs is None else f"training.epochs: {training.epochs}"
    what = "" if training.epochs is None else f" ({steps} steps)"
    raise ValueError(
        f"{given}{what}, but this run has already done {done} steps ({newest}); give more, or train under another name "
        "(--name)"
    )


