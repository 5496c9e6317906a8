"""One of the trainer's programs as a process beside the window: the lines that it prints, and why it ended."""

from collections.abc import Sequence

from PySide6.QtCore import QObject, QProcess, Signal

from ui.core import places

KEPT = 4000
"""Characters of what it wrote to stderr that are kept: its last line explains its end."""


class Program(QObject):
    """One process; after `close` it says nothing more."""

    said = Signal(bytes)
    """A line of its output."""
    ended = Signal(str)
    """It ended by itself, or could not be started: why."""

    def __init__(self, words: Sequence[str], parent: QObject):
        super().__init__(parent)
        self._words, self._output, self._errors = list(words), b"", ""
        self._process = process = QProcess(self)
        process.setWorkingDirectory(str(places.ROOT))
        process.readyReadStandardOutput.connect(self.on_output)
        process.readyReadStandardError.connect(self.on_errors)
        process.finished.connect(self.on_finished)
        process.errorOccurred.connect(self.on_error)

    def start(self) -> None:
        """Start it."""
        self._process.start(self._words[0], self._words[1:])

    def write(self, line: bytes) -> None:
        """Write a line to its input."""
        self._process.write(line + b"\n")

    def close(self) -> None:
        """End it; it only reads, so nothing is lost."""
        self.blockSignals(True)
        self._process.kill()
        self._process.waitForFinished(2000)
        self.deleteLater()

    def on_output(self) -> None:
        """It has written something."""
        self._output += bytes(self._process.readAllStandardOutput().data())
        *lines, self._output = self._output.split(b"\n")
        for line in filter(bytes.strip, lines):
            self.said.emit(line)

    def on_errors(self) -> None:
        """It has written to stderr."""
        text = bytes(self._process.readAllStandardError().data()).decode(errors="replace")
        self._errors = (self._errors + text)[-KEPT:]

    def on_finished(self) -> None:
        """It ended by itself."""
        self.on_output()
        lines = [line.strip() for line in self._errors.splitlines() if line.strip()]
        self.ended.emit(f"it ended with code {self._process.exitCode()}" + (f": {lines[-1]}" if lines else ""))

    def on_error(self, error: QProcess.ProcessError) -> None:
        """It could not be started; every other error ends in `on_finished`."""
        if error == QProcess.ProcessError.FailedToStart:
            self.ended.emit(f"{self._words[0]} cannot be started: {self._process.errorString()}")
