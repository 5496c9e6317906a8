"""What is due at a step: validation, sample pictures, exported files and states, every N steps, epochs or minutes.

Steps and epochs follow from the step alone. Minutes are of training: the time in the loop over all starts of the run,
as far as it is in the state from which the run resumed. The clock is read once per step, by the main process, whose
answer goes to the others with the step's loss. What it makes due is an event `due` before anything else happens, and
from then on follows from the step as well: a run that repeats the step makes it there, and the clock not once more. So
the clock decides when something is written, and never what is learned.
"""

from collections.abc import Sequence

from modules.preset.schema import Preset
from modules.training.beside import told
from modules.training.events import of_kind
from modules.training.session import Session

BESIDE = ("validation", "sample", "export")
"""What is made beside the steps, in this order."""

KINDS = (*BESIDE, "state")

MINUTE = 60.0
"""s."""


def plans(preset: Preset) -> dict[str, tuple[int, str]]:
    """How often each of `KINDS` is due: a number, 0 for never, and its unit."""
    saving = preset.saving
    return {
        "validation": (preset.validation.every, preset.validation.every_unit),
        "sample": (preset.samples.every, preset.samples.every_unit),
        "export": (saving.export_every, saving.export_every_unit),
        "state": (saving.state_every, saving.state_every_unit),
    }


def begin(session: Session) -> None:
    """Start the clock. What it made due in earlier starts of the run is read from the events, if it is asked at all: a
    long run has a million of them."""
    clock = session.clock
    if any(number and unit == "minutes" for number, unit in plans(session.preset).values()):
        found = _recorded(session) if session.accelerator.is_main_process else ({}, {})
        clock.recorded, clock.last = told(session, found)
    clock.move()


def by_clock(session: Session) -> list[bool]:
    """Whether the clock makes each of `KINDS` due in the step that is being done; all False but in the main process."""
    clock, found = session.clock, []
    if not session.accelerator.is_main_process:
        return [False] * len(KINDS)
    clock.move()
    for kind in KINDS:
        number, unit = plans(session.preset)[kind]
        minute = clock.trained // (number * MINUTE) * number if number and unit == "minutes" else 0.0
        found.append(minute > clock.last.get(kind, 0.0))
        if found[-1]:
            clock.last[kind] = minute
    return found


def record(session: Session, kinds: Sequence[str]) -> None:
    """Write down what the clock has made due at this step; nothing at the last one, after which all is made anyway."""
    if session.step >= session.steps:
        return
    for kind in kinds:
        session.clock.recorded.setdefault(session.step, set()).add(kind)
        session.events.write("due", {"what": kind, "step": session.step, "minute": session.clock.last.get(kind, 0.0)})


def is_due(session: Session, kind: str) -> bool:
    """Whether it is due at this step; nothing is at the last one."""
    if session.step >= session.steps:
        return False
    number, unit = plans(session.preset)[kind]
    if kind in session.clock.recorded.get(session.step, ()):
        return True
    if unit == "epochs":
        epoch = session.batches.epoch
        return number > 0 and epoch(session.step) // number > epoch(session.step - 1) // number
    return unit == "steps" and number > 0 and session.step % number == 0


def due(session: Session) -> list[str]:
    """What is to be made beside this step, in order."""
    return [kind for kind in BESIDE if is_due(session, kind)]


def state_is_due(session: Session) -> bool:
    """Whether a state is due: before exported files too, which take long and may be interrupted."""
    return is_due(session, "state") or is_due(session, "export")


def times(plan: tuple[int, str], steps: int, per_epoch: int) -> int:
    """How often something is due in a training of `steps` steps; not at the last one. 0 for minutes: nobody knows."""
    number, unit = plan
    each = number * {"steps": 1, "epochs": per_epoch, "minutes": 0}[unit]
    return (steps - 1) // each if each else 0


def _recorded(session: Session) -> tuple[dict[int, set[str]], dict[str, float]]:
    """`Clock.recorded` and `Clock.last` as the run's events have them."""
    steps: dict[int, set[str]] = {}
    last: dict[str, float] = {}
    for event in of_kind(session.run.folder / "events.jsonl", "due"):
        steps.setdefault(event["step"], set()).add(event["what"])
        last[event["what"]] = max(last.get(event["what"], 0.0), event["minute"] or 0.0)
    return steps, last
