"""Questions about pictures and noise levels to the trainer: scripts/look.py, a process that speaks lines of JSON."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import QObject, Signal

from ui.core import places, reading
from ui.core.program import Program


class Look(QObject):
    """Asks scripts/look.py; the process is started with the first question and again after it died.

    Of each kind of question ("pictures", "sees", "noise") one is under way and at most one waits: a newer question
    takes the place of both, so that only the newest is ever answered.
    """

    answered = Signal(str, object)
    """Kind of the question and the answer, a dict."""

    progressed = Signal(str, int, int)
    """Kind, how many are done, how many there are."""

    refused = Signal(str, str)
    """Kind and a sentence: the question cannot be answered, or the process died over it."""

    def __init__(self, parent: QObject | None = None, command: Sequence[str] = ()):
        super().__init__(parent)
        self._command = list(command) or [sys.executable, str(places.LOOK)]
        self._program: Program | None = None
        self._asked: dict[int, str] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._number = 0

    def ask(self, kind: str, question: dict[str, Any]) -> None:
        """Ask `question` (without id); the answer comes by a signal."""
        if self.is_busy(kind):
            self._waiting[kind] = question
        else:
            self._send(kind, question)

    def is_busy(self, kind: str) -> bool:
        """Whether an answer of this kind is still to come."""
        return kind in self._asked.values()

    def close(self) -> None:
        """End the process."""
        self._asked.clear()
        self._waiting.clear()
        if self._program is not None:
            self._program.close()
            self._program = None

    def on_said(self, line: bytes) -> None:
        """One line of output: progress, or the end of a question."""
        try:
            answer = reading.parse(line)
            number = answer["id"]
        except (ValueError, TypeError, KeyError):  # a warning of some library
            return
        kind = self._asked.get(number)
        if kind is None:
            return
        if "progress" in answer:
            self.progressed.emit(kind, *answer["progress"])
            return
        del self._asked[number]
        if kind in self._waiting:
            self._send(kind, self._waiting.pop(kind))
        elif "error" in answer:
            self.refused.emit(kind, answer["error"])
        else:
            self.answered.emit(kind, answer)

    def on_ended(self, reason: str) -> None:
        """Every open question is refused; the next one starts a new process."""
        kinds = sorted(set(self._asked.values()))
        self.close()
        for kind in kinds:
            again = "The next change" if kind == "noise" else "Refresh"
            self.refused.emit(kind, f"scripts/look.py stopped ({reason}). {again} starts it again.")

    def _send(self, kind: str, question: dict[str, Any]) -> None:
        self._number += 1
        self._asked[self._number] = kind
        if self._program is None:
            self._program = Program(self._command, self)
            self._program.said.connect(self.on_said)
            self._program.ended.connect(self.on_ended)
            self._program.start()
        self._program.write(json.dumps({"id": self._number, "ask": kind, **question}).encode())
