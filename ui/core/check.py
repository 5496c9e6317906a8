"""What the trainer says about a preset before it trains: `train.py --check --json`, in the background."""

import json
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTemporaryDir, QTimer, Signal

from ui.core import places, reading
from ui.core.program import Program

DELAY = 1200
"""Milliseconds of quiet before a changed preset is looked at."""

OPTION = re.compile(r"(?:--)?([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)\b")


@dataclass(frozen=True)
class Findings:
    """What a check has found."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failed: str = ""
    """Why there is no answer at all."""
    layers: tuple[Mapping[str, Any], ...] = ()
    """name, kind, out_features, channels, kernel, parameters of each matched layer."""
    layer_sets: tuple[str, ...] = ()
    """What targets.layers may say for this family."""
    trainable_layers: int = 0
    """How many layers could be matched."""
    parameters: int = 0
    pictures: int = 0
    steps: int = 0
    file_bytes: int = 0
    forms: Mapping[str, int] = field(default_factory=dict)
    """How many layers take which form in the exported file."""

    def by_path(self, paths: Collection[str]) -> dict[str, list[str]]:
        """The problems by the option that their sentence begins with; the others under ""."""
        result: dict[str, list[str]] = {}
        for problem in self.problems:
            named = OPTION.match(problem)
            path = named.group(1) if named and named.group(1) in paths else ""
            sentence = numbered(problem[named.end() :].lstrip(": ")) if path and named else problem
            result.setdefault(path, []).append(sentence)
        return result


class Check(QObject):
    """Looks at the newest preset it was given, after a moment of quiet; an older look is given up."""

    started = Signal()
    finished = Signal(Findings)

    def __init__(self, folder: Path, parent: QObject | None = None):
        """`folder`: where the preset that is looked at is written to, in a folder of this check's own."""
        super().__init__(parent)
        self.findings: Findings | None = None
        """The newest answer; None while there is none, or it is out of date."""
        self._folder = QTemporaryDir(str(folder / "check-XXXXXX"))  # another window looks at another preset
        self._file = Path(self._folder.path()) / "checked.json"
        self._values: Mapping[str, Any] = {}
        self._program: Program | None = None
        self._last = b""
        self._timer = QTimer(self, singleShot=True, interval=DELAY)
        self._timer.timeout.connect(self.on_quiet)

    @property
    def running(self) -> bool:
        """Whether an answer is to come."""
        return self._program is not None or self._timer.isActive()

    def look_at(self, values: Mapping[str, Any], at_once: bool = False) -> None:
        """Look at these values of a preset, soon."""
        self._values, self.findings = values, None
        self._give_up()
        self._timer.start(0 if at_once else DELAY)
        self.started.emit()

    def close(self) -> None:
        """End what is under way."""
        self._timer.stop()
        self._give_up()
        self._folder.remove()

    def on_quiet(self) -> None:
        """Start the trainer's check."""
        try:
            self._file.write_text(json.dumps(self._values), encoding="utf-8")
        except OSError as error:
            self._answer(Findings(failed=f"{self._file} cannot be written: {error.strerror}"))
            return
        words = [sys.executable, str(places.TRAIN), "--preset", str(self._file), "--check", "--json"]
        self._program, self._last = Program(words, self), b""
        self._program.said.connect(self.on_said)
        self._program.ended.connect(self.on_ended)
        self._program.start()

    def on_said(self, line: bytes) -> None:
        """The last line is the answer."""
        self._last = line

    def on_ended(self, reason: str) -> None:
        """Read the answer."""
        self._give_up()
        self._answer(understood(self._last, reason))

    def _answer(self, findings: Findings) -> None:
        self.findings = findings
        self.finished.emit(findings)

    def _give_up(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            program.close()


def understood(answer: bytes, reason: str) -> Findings:
    """The findings in what `--check --json` printed last; `reason`: why it ended."""
    try:
        given = dict(reading.parse(answer))
    except (ValueError, TypeError):
        return Findings(failed=f"the check stopped without a result ({reason})")
    known = {one.name for one in fields(Findings)}
    taken: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if name in known
    }
    return Findings(**taken)


def numbered(text: str) -> str:
    """The trainer's sentence about an entry of a list: `[0].rank: ...` as `number 1, rank: ...`."""
    found = re.match(r"\[(\d+)\](?:\.(\w+))?:? ", text)
    if not found:
        return text
    inner = f", {found[2]}" if found[2] else ""
    return f"number {int(found[1]) + 1}{inner}: {text[found.end() :]}"
