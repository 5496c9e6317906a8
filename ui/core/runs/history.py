"""What a run has told so far, made of the events in `events.jsonl` (docs/events.md)."""

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from ui.core.runs.events import Event, is_sound

STEP_CURVES = ("loss", "loss_average", "learning_rate", "grad_norm", "seconds_per_step", "memory_mb")
"""Fields of a `step` event that become curves of the same name."""


@dataclass
class Curve:
    """Values over steps, in ascending steps; NaN where the run had no finite number."""

    steps: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))

    def add(self, step: float, value: float | None) -> None:
        """Append a value; what the curve had from this step on is replaced."""
        if self.steps and step <= self.steps[-1]:
            self.cut(step)
        self.values.append(math.nan if value is None else value)
        self.steps.append(step)

    def cut(self, step: float) -> None:
        """Take back everything from this step on."""
        place = bisect_left(self.steps, step)
        del self.steps[place:], self.values[place:]


@dataclass(frozen=True)
class Sample:
    """A sample picture; `path` is relative to the run folder (join with `folder / path`), `index` counts per step."""

    step: int
    path: str
    prompt: str
    index: int


@dataclass(frozen=True)
class Saved:
    """A file that was written; `what` is "state", "export", "adapter" or "best"."""

    what: str
    path: str
    step: int
    bytes: int
    time: str


@dataclass(frozen=True)
class Message:
    """A warning or an error; `kind` says which."""

    kind: str
    message: str
    detail: str
    time: str


@dataclass(frozen=True)
class Finished:
    """How the last process ended: `outcome` is "done", "stopped" or "failed"."""

    outcome: str
    exit_code: int
    step: int
    path: str | None


class History:
    """Everything that the events of a run say; a resumed run's repeated steps replace the earlier ones.

    Times are ISO texts, "" before the first event. `stage` is the last stage's name ("stopping" once a stop was seen).
    """

    def __init__(self) -> None:
        self.stage, self.step, self.steps = "", 0, 0
        self.latest: Event | None = None
        """The last `step` event."""
        self.curves: dict[str, Curve] = {}
        """`STEP_CURVES`, "validation" and "adapter/<name>", as soon as they have values."""
        self.baseline: float | None = None
        """Validation loss before training."""
        self.samples: list[Sample] = []
        self.saved: list[Saved] = []
        self.messages: list[Message] = []
        self.finished: Finished | None = None
        self.last_time = ""
        self.unknown: Counter[str] = Counter()
        """Kinds of events that this version does not know, and how many."""
        self.broken_lines = 0
        """Lines that are no event, or lack something."""
        self._step_curves: list[tuple[str, Callable[[float], None], Callable[[float], None]]] = []

    def apply(self, events: Iterable[Event]) -> None:
        """Take in more events, in the file's order."""
        for event in events:
            if not is_sound(event):
                self.broken_lines += 1
                continue
            self.finished, self.last_time = None, event["time"]
            match event["event"]:
                case "step":
                    self._step(event)
                case "stage":
                    self.stage = event["name"]
                case "sample":
                    self._sample(event)
                case "saved":
                    saved = Saved(event["what"], event["path"], event["step"], event["bytes"], event["time"])
                    self.saved = [*(one for one in self.saved if one.path != saved.path), saved]
                case "validation":
                    self._at(event["step"])
                    self.curves.setdefault("validation", Curve()).add(event["step"], event["loss"])
                    self.baseline = event["baseline"]
                case "warning" | "error" as kind:
                    self.messages.append(Message(kind, event["message"], event["detail"], event["time"]))
                case "finished":
                    self.finished = Finished(event["outcome"], event["exit_code"], event["step"], event["path"])
                case "judged" | "spectrum" | "due":
                    pass  # TensorBoard draws two of them; what follows from the third has its own event
                case kind:
                    self.unknown[kind[:80]] += 1

    @property
    def exported(self) -> str | None:
        """Path of the last exported file, as the events have it; None if there is none."""
        if self.finished is not None and self.finished.path:
            return self.finished.path
        return next((saved.path for saved in reversed(self.saved) if saved.what == "export"), None)

    def _step(self, event: Event) -> None:
        step = event["step"]
        if step <= self.step:
            self._turn_back(step)
        if not self._step_curves:
            for name in STEP_CURVES:
                curve = self.curves.setdefault(name, Curve())
                self._step_curves.append((name, curve.values.append, curve.steps.append))
        for name, add_value, add_step in self._step_curves:  # spelled out: this runs a million times for a long run
            value = event[name]
            add_value(math.nan if value is None else value)
            add_step(step)
        for name, value in event["adapter"].items():
            self.curves.setdefault(f"adapter/{name}", Curve()).add(step, value)
        self.step, self.steps, self.latest = step, event["steps"], event

    def _sample(self, event: Event) -> None:
        step, path = event["step"], event["path"]
        self._at(step)
        drawn = list(takewhile(lambda one: one.step == step, reversed(self.samples)))
        place = next((place for place, one in enumerate(drawn) if one.path == path), None)
        if place is None:
            self.samples.append(Sample(step, path, event["prompt"], len(drawn)))
        else:
            self.samples[-1 - place] = Sample(step, path, event["prompt"], drawn[place].index)

    def _at(self, step: int) -> None:
        """Something happened after this step: if later steps are known, the run was resumed from before them."""
        if step < self.step:
            self._turn_back(step + 1)
            self.step = step

    def _turn_back(self, step: int) -> None:
        """Forget what was measured from this step on."""
        for curve in self.curves.values():
            curve.cut(step)
        self.samples = [sample for sample in self.samples if sample.step < step]
        if self.latest is not None and self.latest["step"] >= step:
            self.latest = None
