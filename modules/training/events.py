"""What happens in a run, as one JSON object per line in `events.jsonl`. The format is described in docs/events.md.

They also go to `log.txt`, with libraries' log records and warnings, and their numbers to TensorBoard. A failed write
does not stop a training: events that a full disk rejects are written later, and TensorBoard's curves end.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modules.documents import check_file
from modules.reasons import sentence as reason_of
from modules.screen import plain
from modules.training.lines import Lines

KINDS: dict[str, tuple[str, ...]] = {
    "stage": ("name", "detail"),
    "step": (
        "step",
        "steps",
        "epoch",
        "loss",
        "loss_average",
        "learning_rate",
        "grad_norm",
        "seconds",
        "seconds_per_step",
        "seconds_left",
        "memory_mb",
        "adapter",
    ),
    "sample": ("step", "path", "prompt", "base"),
    "judged": ("step", "subject", "style", "unnamed"),
    "spectrum": ("step", "spectral_norm", "stable_rank", "effective_rank"),
    "saved": ("what", "path", "step", "bytes"),
    "validation": ("step", "loss", "baseline"),
    "due": ("what", "step", "minute"),
    "warning": ("message", "detail"),
    "error": ("message", "detail"),
    "finished": ("outcome", "exit_code", "step", "path"),
}
"""Every kind of event and its fields, all of them always present."""

CURVES = ("loss", "loss_average", "learning_rate", "grad_norm", "seconds_per_step", "memory_mb")
"""Fields of a step that TensorBoard draws."""

DRAWN = {"judged": "samples", "spectrum": "adapter"}
"""Kinds of which TensorBoard draws all fields but the step, and the group of their curves."""

TEXTS = ("name", "detail", "prompt", "base", "what", "message", "outcome")
"""Fields that are texts in every kind. `path` is a text or null, `adapter` an object, and all others are numbers."""

LATER = ("base",)
"""Fields that events of earlier versions do not have."""

COUNTS = ("step", "steps", "bytes", "exit_code")
"""Fields that are never null."""

LEVELS = {"warning": logging.WARNING, "error": logging.ERROR}

LARGEST, LONGEST = 2**31, 2**22
"""Bytes of an event file and of a line in it, at most. A step's line has a few hundred."""

KEEP_TO_THEMSELVES = ("diffusers", "huggingface_hub", "transformers")
"""Libraries whose loggers do not propagate records, so that log.txt needs a handler on each."""

ESCAPED = "backslashreplace"
"""How characters that UTF-8 cannot encode are written."""

log = logging.getLogger(__name__)


class Events:
    """The open event file of a run folder, with the log and the curves beside it. Only the main process writes."""

    def __init__(self, folder: Path, main: bool = True):
        self.folder, self.main = folder, main
        self._curves: Any = None
        self._draws = True
        self._handlers: list[logging.Handler] = []
        self._warned: set[str] = set()
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = Lines(folder / "events.jsonl")
        self._listen()

    def write(self, kind: str, facts: dict[str, Any]) -> None:
        """Append one event with all fields of its kind (`KINDS`).

        Non-finite numbers become null. A path inside the run folder is written relative to it.
        """
        assert kind in KINDS, f"no such kind of event: {kind}"
        assert set(facts) == set(KINDS[kind]), f"{kind}: {set(facts) ^ set(KINDS[kind])}"
        if not self.main:
            return
        facts = {name: self._place(value) if name == "path" else value for name, value in facts.items()}
        self._line(kind, facts)
        log.log(LEVELS.get(kind, logging.INFO), "%s", sentence(kind, facts))
        self._draw(kind, facts)

    def warn_once(self, about: str, message: str, detail: str = "") -> None:
        """A `warning` event, also on the screen; only the first for each subject `about`."""
        if not self.main or about in self._warned:
            return
        self._warned.add(about)
        self.write("warning", {"message": message, "detail": detail})
        tqdm.write(f"warning: {message}", file=sys.stderr)

    def close(self) -> None:
        """Close the files and remove the log handlers. Nothing is written afterwards."""
        if not self.main:
            return
        self.main = False
        self._close_curves()
        self._lines.close()
        logging.captureWarnings(False)
        for name in ("", *KEEP_TO_THEMSELVES):
            for handler in self._handlers:
                logging.getLogger(name).removeHandler(handler)
        for handler in self._handlers:
            handler.close()
        logging.getLogger().setLevel(self._level_before)

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _line(self, kind: str, facts: dict[str, Any]) -> None:
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps(legal({"time": time, "event": kind, **facts}), ensure_ascii=False, allow_nan=False)
        lost = self._lines.write(line)
        if lost:
            self._line("warning", {"message": f"{lost} events could not be written: the disk was full", "detail": ""})

    def _place(self, path: str | os.PathLike | None) -> str | None:
        if path is None:
            return None
        full, folder = Path(path).resolve(), self.folder.resolve()
        return (full.relative_to(folder) if full.is_relative_to(folder) else full).as_posix()

    def _listen(self) -> None:
        """Log every record and Python warning to log.txt; our own modules' warnings become events, too."""
        text = LogFile(self.folder / "log.txt", encoding="utf-8", errors="backslashreplace", delay=True)
        text.setFormatter(PlainLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._handlers = [text, WarningEvents(self)]
        root = logging.getLogger()
        self._level_before = root.level
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        for handler in self._handlers:
            root.addHandler(handler)
        for name in KEEP_TO_THEMSELVES:
            logging.getLogger(name).addHandler(text)

    def _draw(self, kind: str, facts: dict[str, Any]) -> None:
        """Add the numbers of a step, a validation or judged samples to TensorBoard."""
        if kind == "step":
            values = {name: facts[name] for name in CURVES}
            values |= {f"adapter/{name}": value for name, value in facts["adapter"].items()}
        elif kind == "validation":
            values = {"validation_loss": facts["loss"]}
        elif kind in DRAWN:
            values = {f"{DRAWN[kind]}/{name}": facts[name] for name in KINDS[kind][1:]}
        else:
            return
        if not self._draws:
            return
        try:
            self._draw_values(values, facts["step"])
        except Exception as error:  # noqa: BLE001  curves are a by-product, written by another library
            self._draws = False
            message = f"TensorBoard curves end at step {facts['step']}: {reason_of(error, self.folder)}"
            self.warn_once("tensorboard", message)

    def _draw_values(self, values: dict[str, float | None], step: int) -> None:
        if self._curves is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            # A run that resumes repeats the steps after its last state: values from this step on are purged.
            self._curves = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step, flush_secs=10)
        for name, value in values.items():
            if value is not None:
                self._curves.add_scalar(name, value, step)

    def _close_curves(self) -> None:
        try:
            if self._curves is not None:
                self._curves.close()
        except Exception as error:  # noqa: BLE001  as in `_draw`; only the log is left
            log.info("TensorBoard curves are incomplete: %s", reason_of(error, self.folder))


class LogFile(logging.FileHandler):
    """log.txt. A line that cannot be written is left out: logging itself would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if the file can be opened: a folder may have its name, or the disk may be full."""
        with suppress(OSError):
            super().emit(record)

    def close(self) -> None:
        """Close the file; what could not be written until now is lost."""
        with suppress(OSError):
            super().close()


class PlainLines(logging.Formatter):
    """Lines without control characters: a log is read in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or several."""
        return plain(super().format(record))


class WarningEvents(logging.Handler):
    """Turns warnings that our own modules log into events."""

    def __init__(self, events: Events):
        super().__init__(logging.WARNING)
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless an event was its source."""
        if record.name.startswith("modules.") and record.name != log.name:
            self.events._line("warning", {"message": record.getMessage(), "detail": record.name})


def sentence(kind: str, facts: dict[str, Any]) -> str:
    """An event as a line of log.txt."""
    if kind == "step":
        own = "".join(f", {name} {value:.6g}" for name, value in facts["adapter"].items())
        average = "unknown" if facts["loss_average"] is None else f"{facts['loss_average']:.6g}"
        return (
            f"step {facts['step']} of {facts['steps']}: loss {facts['loss']:.6g}, average {average}, "
            f"learning rate {facts['learning_rate']:.3g}, gradient norm {facts['grad_norm']:.4g}, "
            f"{facts['seconds_per_step']:.3g} s per step{own}"
        )
    if kind in ("stage", "warning", "error"):
        return ": ".join(str(value) for value in facts.values() if value)
    return f"{kind}: " + ", ".join(f"{name} {value}" for name, value in facts.items())


def legal(value: Any) -> Any:
    """`value` with null for non-finite numbers, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: legal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [legal(item) for item in value]
    return value


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a file. A last line without its end is still being written and is left out.

    Other invalid lines (after a power cut, or written by something else) are skipped, and the log says how many. Raises
    ValueError for what is not a regular file or too large, OSError where it cannot be read.
    """
    found = list(each_event(path))
    events = [event for event in found if event is not None]
    if len(events) < len(found):
        log.warning("%s", skipped(path, len(found) - len(events)))
    return events


def each_event(path: Path) -> Iterator[dict[str, Any] | None]:
    """The events of a file one after the other; None for a line that is not one. Raises as `read_events` does."""
    if check_file(path) > LARGEST:
        raise ValueError(f"{path}: larger than {LARGEST >> 30} GiB, so no run has written it; move it away")
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            if line.endswith(b"\n"):
                yield event_of(line)
            elif len(line) == LONGEST:
                yield None


def of_kind(path: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind; none of a file that cannot be read, which `beside.made` reports."""
    try:
        return [event for event in each_event(path) if event is not None and event["event"] == kind]
    except (OSError, ValueError):
        return []


def skipped(path: Path, damaged: int) -> str:
    """The warning about lines that were left out."""
    return f"{path}: {damaged} damaged {'line is' if damaged == 1 else 'lines are'} skipped"


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None if the line is no event, or not one as docs/events.md has it."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("time"), str):
        return None
    kind = event.get("event")
    if not isinstance(kind, str):
        return None
    wanted = (name for name in KINDS.get(kind, ()) if name in event or name not in LATER)
    return event if all(name in event and fits(name, event[name]) for name in wanted) else None


def fits(name: str, value: Any) -> bool:
    """Whether the field `name` of an event may have this value."""
    if name in TEXTS:
        return isinstance(value, str)
    if name == "path":
        return value is None or isinstance(value, str)
    if name == "adapter":
        return isinstance(value, dict)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number if name in COUNTS else is_number or value is None
