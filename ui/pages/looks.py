"""How the state of a run looks wherever it is shown, an icon, a colour, a word; and a label that gives way."""

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPaintEvent
from PySide6.QtWidgets import QLabel

from ui import icons, theme
from ui.runs.states import State

ICONS = {
    State.WAITING: "clock",
    State.STARTING: "refresh",
    State.RUNNING: "play",
    State.STOPPING: "stop",
    State.FINISHED: "ok",
    State.STOPPED: "stop",
    State.FAILED: "error",
    State.REFUSED: "error",
    State.VANISHED: "warning",
    State.ELSEWHERE: "open",
}
ROLES = {
    State.FAILED: "problem",
    State.REFUSED: "problem",
    State.VANISHED: "note",
    State.STOPPING: "note",
    State.FINISHED: "good",
}
"""Text roles of states that should be noticed; the others are plain."""


def state_color(state: State) -> QColor:
    """Colour of a state's icon and word."""
    colors = theme.colors()
    if state in (State.STARTING, State.RUNNING):
        return colors.accent
    return {"problem": colors.bad, "note": colors.warning, "good": colors.good}.get(ROLES.get(state, ""), colors.muted)


def state_icon(state: State) -> QIcon:
    """A state's icon in its colour."""
    return icons.icon(ICONS[state], state_color(state))


def state_role(state: State) -> str:
    """The text role of a sentence about a state."""
    return ROLES.get(state, "")


class Elided(QLabel):
    """One line of text that ends in dots where there is no room for all of it."""

    def setText(self, text: str) -> None:
        """The whole text is the tooltip, too."""
        super().setText(text)
        self.setToolTip(text)

    def minimumSizeHint(self) -> QSize:
        """A few letters."""
        return QSize(self.fontMetrics().averageCharWidth() * 8, super().minimumSizeHint().height())

    def paintEvent(self, event: QPaintEvent) -> None:
        """As much as fits."""
        painter = QPainter(self)
        shown = self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideMiddle, self.width())
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, shown)
