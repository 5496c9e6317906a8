"""Sentences above the page: what happened by itself and is worth knowing."""

from PySide6.QtWidgets import QFrame, QPushButton, QWidget

from ui.widgets.making import across, down, dressed, plain, with_icon

MOST = 3
"""Sentences that are shown at once; the oldest gives way."""


class Banners(QWidget):
    """Sentences one below another, each with a button that takes it away."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, QFrame] = {}
        self.column = down(of=self, margins=(0, 0, 0, 0))
        self.column.setSpacing(0)
        self.hide()

    def say(self, sentence: str) -> None:
        """Show a sentence, unless it is there already."""
        if not sentence or sentence in self.shown:
            return
        while len(self.shown) >= MOST:
            self.dismiss(self.sentences()[0])
        self.shown[sentence] = self._made(sentence)
        self.column.addWidget(self.shown[sentence])
        self.show()

    def sentences(self) -> list[str]:
        """What is shown."""
        return list(self.shown)

    def dismiss(self, sentence: str) -> None:
        """Take a sentence away."""
        if frame := self.shown.pop(sentence, None):
            self.column.removeWidget(frame)
            frame.hide()
            frame.deleteLater()
        self.setVisible(bool(self.shown))

    def _made(self, sentence: str) -> QFrame:
        frame = dressed(QFrame(), "banner")
        label = plain(sentence)
        label.setMinimumWidth(1)  # a word that is longer than the page must not widen the window
        close = with_icon(dressed(QPushButton(), "flat", "Dismiss this message", "Dismiss"), "remove")
        close.clicked.connect(lambda: self.dismiss(sentence))
        across((label, 1), close, of=frame, margins=(14, 6, 8, 6))
        return frame
