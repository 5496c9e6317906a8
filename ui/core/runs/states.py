"""The state of a run, told honestly, from a quick look into its folder."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from ui.core import reading, words
from ui.core.preset.schema import at
from ui.core.runs import launch
from ui.core.runs.events import Event, is_sound
from ui.core.runs.launch import Process
from ui.core.runs.tail import last_events

LOOKS = (64 * 1024, 1024 * 1024)
"""Bytes of the events' end that are read: first few, then more if they tell too little."""

QUIET = timedelta(hours=1)
"""A run of another machine that was silent for so long is taken for dead enough to be resumed."""

OUTPUT = "output.txt"
"""What the trainer's process printed; the queue leaves it in the run folder when the process has gone."""

USUAL = ("step/s]", "s/step]", "everything is kept in", "note: ", "Stopping after this step")
"""In the lines that the trainer prints anyway: its progress bar, its greeting."""


class State(Enum):
    """Where a run is. The value is the word for it."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    REFUSED = "cannot start"
    VANISHED = "crashed"
    ELSEWHERE = "elsewhere"

    @property
    def alive(self) -> bool:
        """Whether a process of this machine is at work."""
        return self in (State.STARTING, State.RUNNING, State.STOPPING)


@dataclass(frozen=True)
class Status:
    """A state, and a sentence about it for people (never empty)."""

    state: State
    sentence: str


@dataclass(frozen=True)
class Glance:
    """What a list of runs shows of one. Times are ISO texts, or ""."""

    folder: Path
    name: str
    status: Status
    family: str = ""
    method: str = ""
    description: str = ""
    step: int = 0
    steps: int = 0
    """0: not known yet."""
    seconds_left: float | None = None
    starts: int = 0
    """How many times it was started or resumed."""
    started: str = ""
    """The last start."""
    last_time: str = ""
    """The last event."""
    resumable: bool = False
    """Ended before it was done, and has a state to go on from."""
    exported: Path | None = None
    """The last exported file, if it is still there."""
    process: Process | None = None
    """Of the last start."""
    cwd: Path | None = None
    """Where the last start's relative paths begin."""
    job: str = ""
    """Id of the queue's job for this folder."""
    problem: str = ""
    """Files of the run that cannot be read: a sentence."""


def glance(folder: Path) -> Glance:
    """Look at a run folder; blocking, but quick. Never raises for what is in the folder."""
    problems: list[str] = []
    preset = _read(folder / "preset.json", {}, problems)
    starts = _read(folder / "environment.json", [], problems)
    events = _events(folder / "events.jsonl", problems)
    start: dict[str, Any] = starts[-1] if starts and isinstance(starts[-1], dict) else {}
    process = _process(start)
    last = next((event for event in reversed(events) if event.get("event") == "step"), {})
    seen = Glance(
        folder,
        folder.name,
        Status(State.VANISHED, "No information about this run."),
        family=str(preset.get("family", "")),
        method=str(at(preset, "adapter.method") or ""),
        description=str(preset.get("description", "")),
        step=last.get("step", 0),
        steps=last.get("steps", 0),
        seconds_left=last.get("seconds_left"),
        starts=len(starts),
        started=str(start.get("time", "")),
        last_time=events[-1]["time"] if events else "",
        exported=_exported(folder, events),
        process=process,
        cwd=_cwd(start),
        problem=" ".join(problems),
    )
    status = judge(seen, events)
    return replace(seen, status=status, resumable=_resumable(seen, status))


def judge(seen: Glance, events: list[Event]) -> Status:
    """The state of a run, from its last events and whether the process of its last start lives."""
    new = [event for event in events if event["time"] >= seen.started[:19]]  # both in UTC; a start has whole seconds
    final = events[-1] if events and events[-1].get("event") == "finished" else None
    if final is not None and (final in new or not seen.started):
        return _ended(seen, final, new or events)
    if seen.process is not None and seen.process.host != launch.HOST:
        return _elsewhere(seen)
    if seen.process is not None and launch.alive(seen.process):
        return _living(seen, new)
    if final is not None and final.get("outcome") == "done" and seen.exported is not None:
        return _ended(seen, final, events)  # started again, and there was nothing left to do
    where = f" at {_progress(seen)}" if seen.step else ""
    why = "killed, crashed, or the machine went down"
    return Status(State.VANISHED, f"Stopped unexpectedly{where}: {why}.{_last_words(seen)}")


def _living(seen: Glance, new: list[Event]) -> Status:
    if launch.requested(seen.folder, "stop") or any(event.get("name") == "stopping" for event in new):
        return Status(State.STOPPING, "Stopping after this step; then the state is saved.")
    if not new:
        return Status(State.STARTING, "Starting: no events from the trainer yet.")
    if new[-1].get("event") == "stage" and new[-1].get("name") != "resume":
        detail = str(new[-1].get("detail", "")).strip().split("\n")[0]
        return Status(State.RUNNING, f"Preparing: {detail or new[-1].get('name')}.")
    if not any(event.get("event") == "step" for event in new):
        drawn = sum(event.get("event") == "sample" for event in new)
        told = f"{words.plural(drawn, 'sample')} drawn before training" if drawn else "Preparing the first step"
        return Status(State.RUNNING, f"{told}.")
    return Status(State.RUNNING, f"At {_progress(seen)}.")


def _ended(seen: Glance, final: Event, events: list[Event]) -> Status:
    outcome, steps = final.get("outcome"), words.plural(final["step"], "step")
    if outcome == "done":
        file = f"the file is {seen.exported.name}" if seen.exported else "its file no longer exists"
        return Status(State.FINISHED, f"Finished after {steps}; {file}.")
    if outcome == "stopped":
        return Status(State.STOPPED, f"Stopped by the user at {_progress(seen)}.")
    errors = [str(event.get("message", "")) for event in events if event.get("event") == "error"]
    return Status(State.FAILED, errors[-1] if errors and errors[-1] else "Failed; see the log.")


def _elsewhere(seen: Glance) -> Status:
    assert seen.process is not None
    heard = f"last event {words.when(seen.last_time)}" if _moment(seen.last_time) else "no events yet"
    return Status(
        State.ELSEWHERE,
        f"Started on another machine, {seen.process.host}, and not finished; {heard}. "
        "Its process cannot be checked from here.",
    )


def _progress(seen: Glance) -> str:
    return f"step {words.count(seen.step)} of {words.count(seen.steps)}" if seen.step else "the start"


def _last_words(seen: Glance) -> str:
    """The end of what the last process printed, if anything was kept."""
    path = seen.folder / OUTPUT
    try:
        if not seen.started or path.stat().st_mtime < datetime.fromisoformat(seen.started).timestamp():
            return ""
        with reading.opened(path) as file:
            file.seek(max(0, path.stat().st_size - 4096))
            text = file.read().decode("utf-8", "replace")
    except (OSError, ValueError, OverflowError):
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    lines = [line for line in lines if not any(word in line for word in USUAL)]
    return f" Last output: {lines[-1]}" if lines else ""


def _resumable(seen: Glance, status: Status) -> bool:
    if status.state is State.ELSEWHERE:
        moment = _moment(seen.last_time or seen.started)
        if moment is None or datetime.now(timezone.utc) - moment < QUIET:
            return False
    elif status.state not in (State.STOPPED, State.FAILED, State.VANISHED):
        return False
    return any(place.name.removeprefix("step-").isdigit() for place in (seen.folder / "state").glob("step-*"))


def _moment(time: str) -> datetime | None:
    try:
        return datetime.fromisoformat(time).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def _exported(folder: Path, events: list[Event]) -> Path | None:
    """The last exported file that still exists."""
    for event in reversed(events):
        what = event.get("what") if event.get("event") == "saved" else "export"
        path = event.get("path") if event.get("event") in ("saved", "finished") else None
        if what == "export" and isinstance(path, str) and reading.is_there(folder / path):
            return folder / path
    return None


def _events(path: Path, problems: list[str]) -> list[Event]:
    """The last events: as many as it takes to see a step."""
    events: list[Event] = []
    try:
        for size in LOOKS:
            found, whole = last_events(path, size)
            events = [event for event in found if is_sound(event)]
            if whole or any(event.get("event") == "step" for event in events):
                break
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}).")
    return events


def _read(path: Path, empty: Any, problems: list[str]) -> Any:
    """A JSON file's content; `empty`, with a problem, if there is something else than should be."""
    try:
        content = reading.read_json(path)
        if isinstance(content, type(empty)):
            return content
        problems.append(f"{path} is damaged (it holds something else).")
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}).")
    except ValueError as error:
        problems.append(f"{path} is damaged ({error}).")
    return empty


def _process(start: dict[str, Any]) -> Process | None:
    """The process of a start; runs of old have none."""
    match start.get("process"):
        case {"pid": int(pid), "created": int() | float() as created, "host": str(host)} if (
            type(pid) is int and 0 < pid < 2**31 and 0 <= created < 2**53
        ):
            return Process(pid, created, host)
    return None


def _cwd(start: dict[str, Any]) -> Path | None:
    match start.get("process"):
        case {"folder": str(folder)}:
            return Path(folder)
    return None
