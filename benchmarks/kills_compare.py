"""What a run has left, and how it differs from what the uninterrupted run of the same preset has left.

Every file of the run folder is looked at but those that tell of the process: log.txt, lock, requests, TensorBoard's
curves and environment.json. Tensors, pictures and tables have to be the same bytes. Metadata and JSON have to be the
same but for times and what is computed from them (`TIMES`). Of the events the last one for a step, a picture or a file
has to be the same. That a state was saved may be told by the event of the resume that read it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from benchmarks.kills_runs import NAME, STEPS, Combination, options

OF_THE_PROCESS = ("log.txt", "lock", "environment.json", "events.jsonl", "requests", "tensorboard")

TIMES = (
    "started",
    "finished",
    "time",
    "trained",
    "seconds",
    "ss_training_started_at",
    "ss_training_finished_at",
    "modelspec.date",
    "sha256",
    "bytes",
)
"""Names of values that may differ, in metadata and JSON of any depth: times, and sums and sizes of files with times."""

STEP = ("loss", "loss_average", "learning_rate", "grad_norm", "epoch", "adapter")
LOST, DIFFERENT, MISSING, LEFT_OVER = "lost", "different", "missing", "left over"
KINDS = (LOST, DIFFERENT, MISSING, LEFT_OVER)


@dataclass(frozen=True)
class Finding:
    """Something wrong with a run."""

    kind: str
    text: str


def run_folder(case: Path) -> Path:
    """Where the run of a case is."""
    return case / "work" / "runs" / NAME


def contents(case: Path) -> dict[str, Any]:
    """Every file of the run folder that has to be the same, by relative path, as something that can be compared."""
    folder = run_folder(case)
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[0] not in OF_THE_PROCESS:
            found[name] = content(path)
    return found


def content(path: Path) -> Any:
    """A file without its times."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                tensors = {key: digest(file.get_tensor(key).tobytes()) for key in sorted(file.keys())}
                return tensors, timeless(file.metadata() or {})
        if path.suffix == ".json":
            return timeless(json.loads(path.read_text(encoding="utf-8")))
    except (SafetensorError, ValueError, TypeError) as error:
        return f"unreadable: {error}"
    return digest(path.read_bytes())


def timeless(value: Any) -> Any:
    """Without `TIMES`, also in JSON within texts and in lists of pairs."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        kept = [item for item in value if not (isinstance(item, list) and len(item) == 2 and item[0] in TIMES)]
        return [timeless(item) for item in kept]
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            return timeless(json.loads(value))
        except ValueError:
            return value
    return value


def digest(content: bytes) -> str:
    """A short sum."""
    return hashlib.sha256(content).hexdigest()[:16]


def read_lines(text: bytes) -> list[dict[str, Any]]:
    """The events that can be read; of a torn file those that are whole."""
    found = []
    for line in text.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found


def events_of(case: Path) -> list[dict[str, Any]]:
    """All events of a case's run."""
    path = run_folder(case) / "events.jsonl"
    return read_lines(path.read_bytes()) if path.exists() else []


def last_events(events: list[dict[str, Any]]) -> dict[tuple, Any]:
    """What the last event for each thing says."""
    found: dict[tuple, Any] = {}
    for event in events:
        kind = event.get("event")
        if kind == "step":
            found[kind, event["step"]] = {name: event[name] for name in STEP}
        elif kind == "sample":
            found[kind, event["step"], event["path"]] = event["prompt"]
        elif kind == "validation":
            found[kind, event["step"]] = event["loss"], event["baseline"]
        elif kind == "saved":
            found[kind, event["what"], event["step"]] = event["path"]
        elif kind == "stage" and event["name"] == "resume":
            for state in re.findall(r"step-\d{6}", event["detail"]):
                found.setdefault(("saved", "state", int(state[5:])), f"state/{state}")
        elif kind == "finished" and event["outcome"] == "done":
            found[(kind,)] = event["step"], event["path"]
    return found


def announced(events: list[dict[str, Any]]) -> int:
    """Steps of the newest state of which an event says that it is saved; 0 without one."""
    return max((e["step"] for e in events if e["event"] == "saved" and e["what"] == "state"), default=0)


def due_files(combination: Combination, stage: Path) -> set[str]:
    """The files that a finished run has to have, from its preset alone."""
    preset = options(combination, stage)
    saving, samples = preset["saving"], preset["samples"]
    found = {"adapter.safetensors", f"{NAME}.safetensors", f"{NAME}.errors.tsv", "pictures.tsv", "layers.tsv"}
    found |= {"preset.json", "samples/grid.png", f"state/step-{STEPS:06d}/state.json"}
    for step in range(saving["export_every"] or STEPS, STEPS, saving["export_every"] or STEPS):
        found |= {f"{NAME}-step-{step:06d}.safetensors", f"{NAME}-step-{step:06d}.errors.tsv"}
    for step in {0, STEPS, *range(samples["every"] or STEPS, STEPS, samples["every"] or STEPS)}:
        found |= {f"samples/step-{step:06d}_{number:02d}.png" for number in range(len(samples["prompts"]))}
    return found


@dataclass
class Outcome:
    """What a run has left."""

    files: dict[str, Any]
    events: dict[tuple, Any]
    cache: set[str]

    @classmethod
    def of(cls, case: Path) -> "Outcome":
        """Of the run of a case."""
        cache = case / "work" / "cache"
        names = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
        return cls(contents(case), last_events(events_of(case)), names)


def findings(found: Outcome, expected: Outcome, events_may_be_lost: bool = False) -> list[Finding]:
    """What is wrong with `found`."""
    wrong = [Finding(MISSING, name) for name in sorted(expected.files.keys() - found.files.keys())]
    wrong += [Finding(LEFT_OVER, name) for name in sorted(found.files.keys() - expected.files.keys())]
    wrong += [Finding(LEFT_OVER, f"cache/{name}") for name in sorted(found.cache - expected.cache)]
    both = sorted(expected.files.keys() & found.files.keys())
    wrong += [Finding(DIFFERENT, name) for name in both if found.files[name] != expected.files[name]]
    for key, value in expected.events.items():
        name = "event " + " ".join(str(part) for part in key)
        if key not in found.events:
            wrong += [] if events_may_be_lost else [Finding(MISSING, name)]
        elif found.events[key] != value:
            wrong.append(Finding(DIFFERENT, name))
    return wrong


def restart(before: int, events: list[dict[str, Any]]) -> list[Finding]:
    """Whether a process with these events went on from the newest state that had been announced, of `before` steps."""
    first = next((event["step"] for event in events if event["event"] == "step"), None)
    if first is None or first > before:
        return []
    return [Finding(LOST, f"began at step {first} although the state of step {before} had been announced")]
