"""What happens in a run, as one JSON object per line in `events.jsonl`. The format is described in docs/events.md.

The same goes to `log.txt` together with what libraries log and warn of, and numbers go to TensorBoard.
"""

import json
import logging
import math
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

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
    "sample": ("step", "path", "prompt"),
    "saved": ("what", "path", "step", "bytes"),
    "validation": ("step", "loss", "baseline"),
    "warning": ("message", "detail"),
    "error": ("message", "detail"),
    "finished": ("outcome", "exit_code", "step", "path"),
}
"""Every kind of event and its fields, all of them always present."""

CURVES = ("loss", "loss_average", "learning_rate", "grad_norm", "seconds_per_step", "memory_mb")
"""Fields of a step that TensorBoard draws."""

LEVELS = {"warning": logging.WARNING, "error": logging.ERROR}

KEEP_TO_THEMSELVES = ("diffusers", "huggingface_hub", "transformers")
"""Libraries whose loggers do not pass records on, so that log.txt has to listen to them directly."""

ESCAPED = "backslashreplace"
"""What is done with characters that UTF-8 does not have."""

log = logging.getLogger(__name__)


class Events:
    """The open event file of a run folder, with the log and the curves beside it. Only the main process writes."""

    def __init__(self, folder: Path, main: bool = True):
        self.folder, self.main = folder, main
        self._curves: Any = None
        self._handlers: list[logging.Handler] = []
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        drop_unfinished_line(folder / "events.jsonl")
        # Names of files may have bytes that are not UTF-8, as lone surrogates: these escapes are JSON's own.
        self._file: IO[str] = (folder / "events.jsonl").open("a", encoding="utf-8", errors=ESCAPED, newline="\n")
        self._listen()

    def write(self, kind: str, facts: dict[str, Any]) -> None:
        """Append one event with all fields of its kind (`KINDS`).

        Numbers that are not finite become null. A path inside the run folder is written relative to it.
        """
        assert kind in KINDS, f"no such kind of event: {kind}"
        assert set(facts) == set(KINDS[kind]), f"{kind}: {set(facts) ^ set(KINDS[kind])}"
        if not self.main:
            return
        facts = {name: self._place(value) if name == "path" else value for name, value in facts.items()}
        self._line(kind, facts)
        log.log(LEVELS.get(kind, logging.INFO), "%s", sentence(kind, facts))
        self._draw(kind, facts)

    def close(self) -> None:
        """Finish the files and stop listening. Nothing is written afterwards."""
        if not self.main:
            return
        self.main = False
        self._file.close()
        if self._curves is not None:
            self._curves.close()
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
        self._file.write(line + "\n")
        self._file.flush()

    def _place(self, path: str | os.PathLike | None) -> str | None:
        if path is None:
            return None
        full, folder = Path(path).resolve(), self.folder.resolve()
        return (full.relative_to(folder) if full.is_relative_to(folder) else full).as_posix()

    def _listen(self) -> None:
        """Let log.txt receive every record and Python warning; our own modules' warnings become events, too."""
        text = logging.FileHandler(self.folder / "log.txt", encoding="utf-8", errors=ESCAPED)
        text.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
        """Add the numbers of a step or a validation to TensorBoard."""
        if kind == "step":
            values = {name: facts[name] for name in CURVES}
            values |= {f"adapter/{name}": value for name, value in facts["adapter"].items()}
        elif kind == "validation":
            values = {"validation_loss": facts["loss"]}
        else:
            return
        if self._curves is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            # A run that resumes repeats the steps after its last state: what was drawn from here on is taken back.
            self._curves = SummaryWriter(str(self.folder / "tensorboard"), purge_step=facts["step"], flush_secs=10)
        for name, value in values.items():
            if value is not None:
                self._curves.add_scalar(name, value, facts["step"])


class WarningEvents(logging.Handler):
    """Makes events of what our own modules log as warnings."""

    def __init__(self, events: Events):
        super().__init__(logging.WARNING)
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless it comes from an event that is written already."""
        if record.name.startswith("modules.") and record.name != log.name:
            self.events._line("warning", {"message": record.getMessage(), "detail": record.name})


def sentence(kind: str, facts: dict[str, Any]) -> str:
    """An event as a line of log.txt."""
    if kind == "step":
        own = "".join(f", {name} {value:.6g}" for name, value in facts["adapter"].items())
        return (
            f"step {facts['step']} of {facts['steps']}: loss {facts['loss']:.6g}, average {facts['loss_average']:.6g}, "
            f"learning rate {facts['learning_rate']:.3g}, gradient norm {facts['grad_norm']:.4g}, "
            f"{facts['seconds_per_step']:.3g} s per step{own}"
        )
    if kind in ("stage", "warning", "error"):
        return ": ".join(str(value) for value in facts.values() if value)
    return f"{kind}: " + ", ".join(f"{name} {value}" for name, value in facts.items())


def legal(value: Any) -> Any:
    """`value` with null for numbers that JSON does not know (NaN and infinities)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: legal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [legal(item) for item in value]
    return value


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a file. A last line without its end is still being written and is left out.

    Raises ValueError for any other line that is no JSON.
    """
    *lines, _unfinished = path.read_bytes().split(b"\n")
    events = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no event ({error}): the file has been changed") from error
    return events


def drop_unfinished_line(path: Path) -> None:
    """Take back a line that a crash left half written, so that the next event begins a line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
