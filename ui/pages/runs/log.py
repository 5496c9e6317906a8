"""The log of a run: its last part, then what is written to it."""

from pathlib import Path

from PySide6.QtCore import Qt, QTimer, QUrl
from PySide6.QtGui import QDesktopServices, QHideEvent, QKeySequence, QShortcut, QShowEvent, QTextCursor, QTextDocument
from PySide6.QtWidgets import (
    QCheckBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from ui.core import words, workers
from ui.core.runs.tail import LogTail
from ui.widgets import icons, theme

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
        self.text = QPlainTextEdit(readOnly=True)
        self.text.setMaximumBlockCount(KEPT_LINES)
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.text.setAccessibleName("Log")
        theme.set_role(self.text, "mono")
        self.follow = QCheckBox("Follow")
        self.follow.setToolTip("Keep the end of the log in view")
        self.follow.setChecked(True)
        self.search = QLineEdit(clearButtonEnabled=True)
        self.search.setPlaceholderText("Search the log (Ctrl+F)")
        self.search.setAccessibleName("Search the log")
        self.back, self.on = QPushButton(icons.icon("up"), ""), QPushButton(icons.icon("down"), "")
        for button, name in ((self.back, "Previous match (Shift+F3)"), (self.on, "Next match (F3)")):
            button.setAccessibleName(name)
            button.setToolTip(name)
            theme.set_role(button, "flat")
        self.open = QPushButton("Open file")
        self.note = QLabel()
        self.note.setWordWrap(True)
        theme.set_role(self.note, "muted")
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
        self._say("" if path else "There is no log yet.")
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
        self._say("There is no log yet." if missing else f"The log cannot be read: {sentence}")

    def on_scrolled(self) -> None:
        """Who scrolls up wants to read, who scrolls to the end wants to follow."""
        bar = self.text.verticalScrollBar()
        self.follow.setChecked(bar.value() == bar.maximum())

    def on_follow_clicked(self) -> None:
        """Go to the end when the switch is turned on."""
        if self.follow.isChecked():
            self.text.verticalScrollBar().setValue(self.text.verticalScrollBar().maximum())

    def find_next(self, backwards: bool = False) -> None:
        """The next match, beginning anew at the other end."""
        wanted = self.search.text()
        here = not wanted or self._find(wanted, backwards)
        self.missed = "" if here else f"“{wanted}” is not in the part of the log that is shown."
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

    def on_theme_changed(self) -> None:
        """Icons in the theme's colour."""
        self.back.setIcon(icons.icon("up"))
        self.on.setIcon(icons.icon("down"))

    def _find(self, wanted: str, backwards: bool) -> bool:
        flags = QTextDocument.FindFlag.FindBackward if backwards else QTextDocument.FindFlag(0)
        self.follow.setChecked(False)
        found = self.text.find(wanted, flags)
        if not found:
            end = QTextCursor.MoveOperation.End if backwards else QTextCursor.MoveOperation.Start
            before = self.text.textCursor()
            self.text.moveCursor(end)
            found = self.text.find(wanted, flags)
            if not found:
                self.text.setTextCursor(before)
        return found

    def _show_state(self) -> None:
        """What was not found, or how much of the file is shown."""
        skipped = self.tail.skipped if self.tail else 0
        part = f"The last part; {words.size(skipped)} before it are in the file." if skipped else ""
        empty = "The log is empty so far." if self.tail and self.text.document().isEmpty() else ""
        self._say(self.missed or part or empty)

    def _say(self, sentence: str) -> None:
        self.note.setText(sentence)
        self.note.setVisible(bool(sentence))

    def _lay_out(self) -> None:
        bar = QHBoxLayout()
        bar.addWidget(self.search, 1)
        for widget in (self.back, self.on, self.follow, self.open):
            bar.addWidget(widget)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.addLayout(bar)
        layout.addWidget(self.note)
        layout.addWidget(self.text, 1)

    def _connect(self) -> None:
        self.timer.timeout.connect(self.on_timer)
        self.text.verticalScrollBar().actionTriggered.connect(lambda _: QTimer.singleShot(0, self.on_scrolled))
        self.follow.clicked.connect(self.on_follow_clicked)
        self.search.textEdited.connect(self.on_search_edited)
        self.search.returnPressed.connect(self.find_next)
        self.back.clicked.connect(lambda: self.find_next(backwards=True))
        self.on.clicked.connect(lambda: self.find_next())
        self.open.clicked.connect(self.on_open_clicked)
        theme.notifier().changed.connect(self.on_theme_changed)
        within = Qt.ShortcutContext.WidgetWithChildrenShortcut
        for keys, slot in (
            (QKeySequence.StandardKey.Find, self.search.setFocus),
            (QKeySequence.StandardKey.FindNext, self.find_next),
            (QKeySequence.StandardKey.FindPrevious, lambda: self.find_next(backwards=True)),
        ):
            QShortcut(QKeySequence(keys), self, slot, context=within)
