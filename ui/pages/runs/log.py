"""The log of a run: its last part, then what is written to it."""

from pathlib import Path

from PySide6.QtCore import Qt, QTimer, QUrl
from PySide6.QtGui import QDesktopServices, QHideEvent, QKeySequence, QShortcut, QShowEvent, QTextCursor, QTextDocument
from PySide6.QtWidgets import QCheckBox, QLabel, QLineEdit, QPlainTextEdit, QPushButton, QScrollBar, QWidget

from ui.core import words, workers
from ui.core.runs.tail import LogTail
from ui.widgets.making import across, down, dressed, say, with_icon

KEPT_LINES = 20_000
INTERVAL = 500
"""Milliseconds between looks at the file, while it is shown."""


class Log(QWidget):
    """Text of a file that grows, with a switch to follow it and a search."""

    def __init__(self) -> None:
        super().__init__()
        self.tail: LogTail | None = None
        self.reading: workers.Task | None = None
        self.missed = ""
        """What was sought in vain: a sentence."""
        self.text = dressed(QPlainTextEdit(readOnly=True, maximumBlockCount=KEPT_LINES), "mono", "Log")
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.follow = dressed(QCheckBox("Follow"), tip="Scroll to new lines", checked=True)
        self.search = dressed(QLineEdit(clearButtonEnabled=True), name="Search the log")
        self.search.setPlaceholderText("Search the log (Ctrl+F)")
        self.back, self.on = (
            with_icon(dressed(QPushButton(), "flat", name, tip=name), icon)
            for name, icon in (("Previous match (Shift+F3)", "up"), ("Next match (F3)", "down"))
        )
        self.open = QPushButton("Open file")
        self.note = dressed(QLabel(wordWrap=True), "muted")
        self.timer = QTimer(self, interval=INTERVAL)
        self._lay_out()
        self._connect()

    def show_file(self, path: Path | None) -> None:
        """Show another file; `None` shows nothing."""
        if path == (self.tail.path if self.tail else None):
            return
        if self.reading:
            self.reading.cancel()
            self.reading = None
        self.tail = LogTail(path) if path else None
        self.text.clear()
        self.follow.setChecked(True)
        self.missed = ""
        say(self.note, "" if path else "No log yet")
        self.open.setEnabled(path is not None)
        self.on_timer()

    def on_timer(self) -> None:
        """Look for new text."""
        if self.tail and not self.reading and self.isVisible():
            tail = self.tail
            self.reading = workers.run(tail.read, done=self.on_read, failed=self.on_failed)

    def on_read(self, text: str) -> None:
        """Put new text at the end."""
        self.reading = None
        assert self.tail
        if self.tail.restarted:
            self.text.clear()
        if text:
            bar = self.text.verticalScrollBar()
            place = bar.value()
            cursor = QTextCursor(self.text.document())
            cursor.movePosition(QTextCursor.MoveOperation.End)
            cursor.insertText(text)
            bar.setValue(bar.maximum() if self.follow.isChecked() else place)
        self._show_state()

    def on_failed(self, sentence: str) -> None:
        """Say why there is no text."""
        self.reading = None
        missing = self.tail and not self.tail.path.exists()
        say(self.note, "No log yet" if missing else f"The log cannot be read: {sentence}")

    def on_scrolled(self) -> None:
        """Who scrolls up wants to read, who scrolls to the end wants to follow."""
        bar = self.text.verticalScrollBar()
        self.follow.setChecked(bar.value() == bar.maximum())

    def on_follow_clicked(self, follow: bool) -> None:
        """Go to the end when the switch is turned on."""
        if follow:
            self.text.verticalScrollBar().triggerAction(QScrollBar.SliderAction.SliderToMaximum)

    def find_next(self, backwards: bool = False) -> None:
        """The next match, beginning anew at the other end."""
        wanted = self.search.text()
        here = not wanted or self._find(wanted, backwards)
        self.missed = "" if here else f"“{wanted}” not found in the part that is shown"
        self._show_state()

    def on_search_edited(self) -> None:
        """Look from the beginning of the present match, so that typing on does not jump ahead."""
        cursor = self.text.textCursor()
        cursor.setPosition(cursor.selectionStart())
        self.text.setTextCursor(cursor)
        self.find_next()

    def on_open_clicked(self) -> None:
        """Open the whole file in the system's editor."""
        if self.tail:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.tail.path)))

    def showEvent(self, event: QShowEvent) -> None:
        """Read while it can be seen."""
        super().showEvent(event)
        self.timer.start()
        self.on_timer()

    def hideEvent(self, event: QHideEvent) -> None:
        """Rest while it cannot."""
        self.timer.stop()
        super().hideEvent(event)

    def _find(self, wanted: str, backwards: bool) -> bool:
        flags = QTextDocument.FindFlag.FindBackward if backwards else QTextDocument.FindFlag(0)
        self.follow.setChecked(False)
        if self.text.find(wanted, flags):
            return True
        before = self.text.textCursor()
        self.text.moveCursor(QTextCursor.MoveOperation.End if backwards else QTextCursor.MoveOperation.Start)
        if self.text.find(wanted, flags):
            return True
        self.text.setTextCursor(before)
        return False

    def _show_state(self) -> None:
        """What was not found, or how much of the file is shown."""
        skipped = self.tail.skipped if self.tail else 0
        part = f"Last part only; the first {words.size(skipped)} are in the file." if skipped else ""
        empty = "The log is empty" if self.tail and self.text.document().isEmpty() else ""
        say(self.note, self.missed or part or empty)

    def _lay_out(self) -> None:
        bar = across((self.search, 1), self.back, self.on, self.follow, self.open)
        down(bar, self.note, (self.text, 1), of=self, margins=(0, 8, 0, 0))

    def _connect(self) -> None:
        self.timer.timeout.connect(self.on_timer)
        self.text.verticalScrollBar().actionTriggered.connect(lambda _: QTimer.singleShot(0, self.on_scrolled))
        self.follow.clicked.connect(self.on_follow_clicked)
        self.search.textEdited.connect(self.on_search_edited)
        self.search.returnPressed.connect(self.find_next)
        self.back.clicked.connect(lambda: self.find_next(backwards=True))
        self.on.clicked.connect(lambda: self.find_next())
        self.open.clicked.connect(self.on_open_clicked)
        within = Qt.ShortcutContext.WidgetWithChildrenShortcut
        for keys, slot in (
            (QKeySequence.StandardKey.Find, self.search.setFocus),
            (QKeySequence.StandardKey.FindNext, self.find_next),
            (QKeySequence.StandardKey.FindPrevious, lambda: self.find_next(backwards=True)),
        ):
            QShortcut(QKeySequence(keys), self, slot, context=within)
