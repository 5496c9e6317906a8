"""The time of a training, for what is due every N minutes; see `due`."""

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """The time of training, and what it has made due."""

    trained: float = 0.0
    """Time of training until the clock was last read, over all starts, s."""
    recorded: dict[int, set[str]] = field(default_factory=dict)
    """What the clock has made due, of `due.KINDS`, by step."""
    last: dict[str, float] = field(default_factory=dict)
    """The minute for which each of them was due last."""
    _read: float | None = None

    def move(self) -> None:
        """Add the time since the last call; the first one only begins."""
        now = time.monotonic()
        self.trained += 0.0 if self._read is None else now - self._read
        self._read = now
