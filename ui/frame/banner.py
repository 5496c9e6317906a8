"""Sentences above the page: what happened by itself and is worth knowing."""

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from ui.widgets import icons, theme

MOST = 3
"""Sentences that are shown at once; the oldest gives way."""


class Banners(QWidget):
    """Sentences one below another, each with a button that takes it away."""

    def __init__(self) -> None:
        super().__init__()
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(0)
        self.hide()

    def say(self, sentence: str) -> None:
        """Show a sentence, unless it is there already."""
        if not sentence or sentence in self.sentences():
            return
        while self.column.count() >= MOST:
            self._take(0)
        self.column.addWidget(self._made(sentence))
        self.show()

    def sentences(self) -> list[str]:
        """What is shown."""
        found = []
        for place in range(self.column.count()):
            label = self._at(place).findChild(QLabel)
            assert isinstance(label, QLabel)
            found.append(label.text())
        return found

    def dismiss(self, sentence: str) -> None:
        """Take a sentence away."""
        if sentence in self.sentences():
            self._take(self.sentences().index(sentence))
        self.setVisible(self.column.count() > 0)

    def _made(self, sentence: str) -> QFrame:
        frame = QFrame()
        frame.setProperty("role", "banner")
        label = QLabel(sentence)
        label.setTextFormat(Qt.TextFormat.PlainText)
        label.setWordWrap(True)
        label.setMinimumWidth(1)  # a word that is longer than the page must not widen the window
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        close = QPushButton(icons.icon("remove"), "")
        close.setAccessibleName("Dismiss this message")
        close.setToolTip("Dismiss")
        theme.set_role(close, "flat")
        close.clicked.connect(lambda: self.dismiss(sentence))
        row = QHBoxLayout(frame)
        row.setContentsMargins(14, 6, 8, 6)
        row.addWidget(label, 1)
        row.addWidget(close)
        return frame

    def _at(self, place: int) -> QWidget:
        item = self.column.itemAt(place)
        assert item is not None
        widget = item.widget()
        assert widget is not None
        return widget

    def _take(self, place: int) -> None:
        widget = self._at(place)
        self.column.removeWidget(widget)
        widget.hide()
        widget.deleteLater()
