"""Jobs of the queue: what they are, how they are run, where they run, and how they are kept in a file."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ui.core import places, reading
from ui.core.runs.launch import Process
from ui.core.runs.states import Glance, State, Status

ANY, ALL = "any", "all"
"""What a job may ask for, beside the id of a device."""

REFUSAL = "Cannot start:"
"""How the trainer begins to say no; the reasons follow, indented."""


KINDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    **dict.fromkeys(("id", "name", "device", "added"), (str, str)),
    **dict.fromkeys(("preset", "folder", "output", "cwd"), (str, Path)),
    **dict.fromkeys(("resume", "stop_asked"), (bool, bool)),
    "starts": (int, int),
    "places": (list, lambda ids: tuple(map(str, ids))),
}
"""What a job's values are in the file, and what they are made of it; process and end apart."""


@dataclass(frozen=True)
class Job:
    """A run to come or under way."""

    id: str
    name: str
    preset: Path
    """The frozen preset; of a resumed run, its folder."""
    folder: Path
    """The run folder."""
    output: Path
    """What the process prints."""
    device: str
    """"any", "all", or a device's id."""
    resume: bool
    added: str
    """ISO time."""
    cwd: Path
    """Where relative paths of the preset begin."""
    process: Process | None = None
    places: tuple[str, ...] = ()
    """Ids of the devices that it runs on."""
    starts: int = 0
    """How many starts its run folder had before: one more, and its own run has begun."""
    stop_asked: bool = False
    ended: Status | None = None
    """Why it ended before its run began; None for all others."""

    @property
    def waiting(self) -> bool:
        """Whether it is still to be started."""
        return self.process is None and self.ended is None

    @property
    def running(self) -> bool:
        """Whether it was started and has not been seen to end."""
        return self.process is not None and self.ended is None

    def begun(self, seen: Glance) -> bool:
        """Whether a look into the run folder shows this job's own run."""
        return self.process is not None and seen.starts > self.starts


def command(job: Job, devices: Sequence[str]) -> list[str]:
    """The command line that runs a job on these devices; several GPUs need accelerate's launcher."""
    trainer = [str(places.TRAIN), "--preset", str(job.preset)]
    if job.resume:
        trainer += ["--saving.folder", str(job.folder.parent), f"--name={job.name}"]
    if len(devices) < 2:
        return [sys.executable, *trainer]
    config = places.ROOT / "configs/several_gpus.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [sys.executable, *launcher, "--num_processes", str(len(devices)), *trainer]


def ready(jobs: Sequence[Job], devices: Sequence[str]) -> list[tuple[Job, tuple[str, ...]]]:
    """The waiting jobs that may start now, with their devices: at most one job a device, in the queue's order.

    A job that has to wait keeps its devices from the jobs behind it, so that one for all GPUs gets its turn.
    """
    taken = {place for job in jobs if job.running for place in job.places}
    starting = []
    for job in jobs:
        wanted = wants(job, devices, taken)
        if not job.waiting or not wanted:
            continue
        if not taken.intersection(wanted):
            starting.append((job, wanted))
        taken.update(wanted)
    return starting


def wants(job: Job, devices: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    """The devices that a job needs, of which some may be taken; none if the machine lacks what it asks for."""
    if job.device == ALL:
        return tuple(devices)
    if job.device != ANY:
        return (job.device,) if job.device in devices else ()
    free = [device for device in devices if device not in taken]
    return tuple(free or devices)[:1]


def verdict(job: Job, seen: Glance, code: int | None) -> Status | None:
    """Why a job's process ended before its run began; None if it did begin, or was ended by the user before that."""
    if job.begun(seen) or job.stop_asked:
        return None
    try:
        printed = job.output.read_text(encoding="utf-8", errors="replace")
    except OSError:
        printed = ""
    if reasons := refusal(printed):
        return Status(State.REFUSED, "\n".join(reasons))
    lines = [line.strip() for line in printed.splitlines() if line.strip() and not line.startswith("note: ")]
    last = f" Last output: {lines[-1]}" if lines else ""
    if code is None or code < 0:
        return Status(State.VANISHED, f"The trainer stopped unexpectedly before the run began.{last}")
    return Status(State.FAILED, f"The trainer ended with exit code {code} before the run began.{last}")


def refusal(printed: str) -> list[str]:
    """The trainer's reasons for refusing, in what it printed."""
    _, found, after = printed.partition(REFUSAL + "\n")
    reasons: list[str] = []
    for line in after.splitlines() if found else ():
        if line.startswith("  - "):
            reasons.append(line[4:])
        elif line.startswith("    ") and reasons:
            reasons[-1] += "\n" + line[4:]
        else:
            break
    return [reason for reason in reasons if not reason.startswith("note: ")]


def write(path: Path, jobs: Sequence[Job], paused: bool) -> None:
    """Keep the queue in a file that is always whole. Raises OSError."""
    content = {"paused": paused, "jobs": [to_json(job) for job in jobs]}
    reading.write_whole(path, json.dumps(content, indent=1, ensure_ascii=False))


def read(path: Path) -> tuple[list[Job], bool]:
    """The jobs in a queue's file, and whether the queue is paused. Raises OSError; ValueError if it is no such file."""
    try:
        content = reading.read_json(path)
        return [from_json(values) for values in content["jobs"]], bool(content["paused"])
    except FileNotFoundError:
        return [], False
    except (KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
        raise ValueError(f"something is missing or of the wrong kind: {error}") from error


def to_json(job: Job) -> dict[str, Any]:
    """A job as JSON has it."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(job).items()}
    return {**values, "ended": [job.ended.state.name, job.ended.sentence] if job.ended else None}


def from_json(values: dict[str, Any]) -> Job:
    """The job that `to_json` was given. Raises KeyError, TypeError, ValueError."""
    process, ended = values["process"], values["ended"]
    for name, (kind, _) in KINDS.items():
        if type(values[name]) is not kind:
            raise TypeError(f"{name} is {str(values[name])[:80]!r}")
    return Job(
        **{name: made(values[name]) for name, (_, made) in KINDS.items()},
        process=Process(int(process["pid"]), float(process["created"]), str(process["host"])) if process else None,
        ended=Status(State[ended[0]], str(ended[1])) if ended else None,
    )
