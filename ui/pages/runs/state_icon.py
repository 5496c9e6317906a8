"""How the state of a run looks wherever it is shown: an icon, a colour, a word."""

from PySide6.QtGui import QColor, QIcon

from ui.core.runs.states import State
from ui.widgets import icons, theme

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
