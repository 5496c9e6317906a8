"""How the state of a run looks wherever it is shown: an icon, a colour, a word."""

from PySide6.QtGui import QColor, QIcon

from ui.core.runs.states import State
from ui.widgets import icons, theme

LOOKS = {
    State.WAITING: ("clock", ""),
    State.STARTING: ("refresh", ""),
    State.RUNNING: ("play", ""),
    State.STOPPING: ("stop", "note"),
    State.FINISHED: ("ok", "good"),
    State.STOPPED: ("stop", ""),
    State.FAILED: ("error", "problem"),
    State.REFUSED: ("error", "problem"),
    State.VANISHED: ("warning", "note"),
    State.ELSEWHERE: ("open", ""),
}
"""Icon, and the text role of states that should be noticed; the others are plain."""


def state_color(state: State) -> QColor:
    """Colour of a state's icon and word."""
    colors = theme.colors()
    if state in (State.STARTING, State.RUNNING):
        return colors.accent
    return {"problem": colors.bad, "note": colors.warning, "good": colors.good}.get(state_role(state), colors.muted)


def state_icon(state: State) -> QIcon:
    """A state's icon in its colour."""
    return icons.icon(LOOKS[state][0], state_color(state))


def state_role(state: State) -> str:
    """The text role of a sentence about a state."""
    return LOOKS[state][1]
