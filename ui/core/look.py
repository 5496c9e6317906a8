"""Questions about pictures to the trainer's own eyes: scripts/look.py, a process that speaks lines of JSON."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import QObject, QProcess, Signal

from ui.core import places, reading


class Look(QObject):
    """Asks scripts/look.py; the process is started with the first question and again after it died.

    Of each kind of question ("pictures", "sees") one is under way and at most one waits: a newer question takes the
    place of both, so that only the newest is ever answered.
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
        self._process: QProcess | None = None
        self._asked: dict[int, str] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._number = 0
        self._output = b""
        self._errors = ""

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
        """End the process; it only reads, so nothing is lost."""
        self._asked.clear()
        self._waiting.clear()
        process, self._process = self._process, None
        if process is not None:
            process.blockSignals(True)
            process.kill()
            process.waitForFinished(2000)
            process.deleteLater()

    def on_output(self) -> None:
        """The process has written something."""
        if self._process is None:
            return
        self._output += bytes(self._process.readAllStandardOutput().data())
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            if line.strip():
                self._take(line)

    def on_errors(self) -> None:
        """The process has written to stderr; its last words explain its death."""
        if self._process is not None:
            text = bytes(self._process.readAllStandardError().data()).decode(errors="replace")
            self._errors = (self._errors + text)[-4000:]

    def on_finished(self) -> None:
        """The process ended by itself."""
        self.on_output()
        words = [line.strip() for line in self._errors.splitlines() if line.strip()]
        code = self._process.exitCode() if self._process is not None else 0
        self._died(f"it ended with code {code}" + (f": {words[-1]}" if words else ""))

    def on_error(self, error: QProcess.ProcessError) -> None:
        """The process could not be started; every other error ends in `on_finished`."""
        if error == QProcess.ProcessError.FailedToStart and self._process is not None:
            self._died(f"{self._command[0]} cannot be started: {self._process.errorString()}")

    def _send(self, kind: str, question: dict[str, Any]) -> None:
        self._number += 1
        self._asked[self._number] = kind
        process = self._started()
        process.write(json.dumps({"id": self._number, "ask": kind, **question}).encode() + b"\n")

    def _started(self) -> QProcess:
        if self._process is None:
            self._output, self._errors = b"", ""
            process = self._process = QProcess(self)
            process.setWorkingDirectory(str(places.ROOT))
            process.readyReadStandardOutput.connect(self.on_output)
            process.readyReadStandardError.connect(self.on_errors)
            process.finished.connect(self.on_finished)
            process.errorOccurred.connect(self.on_error)
            process.start(self._command[0], self._command[1:])
        return self._process

    def _take(self, line: bytes) -> None:
        """One line of output: progress, or the end of a question."""
        try:
            answer = reading.parse(line)
            number = answer["id"]
        except (ValueError, TypeError, KeyError):
            self._errors += f"not an answer: {line[:200].decode(errors='replace')}\n"
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

    def _died(self, reason: str) -> None:
        """Every open question is refused; the next one starts a new process."""
        process, self._process = self._process, None
        if process is not None:
            process.deleteLater()
        kinds = sorted(set(self._asked.values()))
        self._asked.clear()
        self._waiting.clear()
        for kind in kinds:
            self.refused.emit(
                kind, f"The program that looks at the pictures stopped ({reason}). Refresh starts it again."
            )
