"""TensorBoard beside the window: started once for a folder of runs, shown in the browser."""

import re
import sys
from pathlib import Path

from PySide6.QtCore import QCoreApplication, QObject, QProcess, QUrl, Signal
from PySide6.QtGui import QDesktopServices

ADDRESS = re.compile(r"http://\S+")


class TensorBoard(QObject):
    """One process for each folder, until the window closes."""

    said = Signal(str)
    """A sentence: what it is doing, or why it does not work."""

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self.process: QProcess | None = None
        self.folder: Path | None = None
        self.address = ""
        self.output = ""
        application = QCoreApplication.instance()
        assert application
        application.aboutToQuit.connect(self.stop)

    def show(self, folder: Path) -> None:
        """Open the browser on the runs in a folder, as soon as TensorBoard answers."""
        if self.process and self.folder == folder:
            if self.address:
                self.open()
            return
        self.stop()
        self.folder, self.address, self.output = folder, "", ""
        self.process = process = QProcess(self)
        process.setProcessChannelMode(QProcess.ProcessChannelMode.MergedChannels)
        process.readyRead.connect(self.on_ready_read)
        process.finished.connect(self.on_finished)
        process.errorOccurred.connect(self.on_error_occurred)
        self.said.emit("Starting TensorBoard…")
        process.start(sys.executable, ["-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"])

    def open(self) -> None:
        """Show it in the browser."""
        opened = QDesktopServices.openUrl(QUrl(self.address))
        self.said.emit(f"TensorBoard runs at {self.address}{'' if opened else '; no browser could be opened.'}")

    def stop(self) -> None:
        """End it."""
        if self.process:
            process, self.process = self.process, None
            process.blockSignals(True)
            process.kill()
            process.waitForFinished(500)

    def on_ready_read(self) -> None:
        """Wait for the address in what it prints."""
        assert self.process
        self.output += bytes(self.process.readAll().data()).decode("utf-8", "replace")
        found = ADDRESS.search(self.output)
        if found and not self.address:
            self.address = found[0]
            self.open()

    def on_finished(self, code: int) -> None:
        """It ended by itself: say why."""
        self.process = None
        lines = [line for line in self.output.splitlines() if line.strip()]
        if "No module named" in self.output:
            self.said.emit(
                f"TensorBoard is not installed for {sys.executable}: run “{sys.executable} -m pip install tensorboard”."
            )
        else:
            self.said.emit(f"TensorBoard ended (exit code {code}): {lines[-1] if lines else 'no output'}")

    def on_error_occurred(self, error: QProcess.ProcessError) -> None:
        """The process itself could not be started; other errors end it."""
        if error == QProcess.ProcessError.FailedToStart and self.process:
            self.said.emit(f"TensorBoard could not be started: {self.process.errorString()}")
            self.process = None
