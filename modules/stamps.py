"""Whether a file may have changed since it was read, without reading it again."""

from pathlib import Path
from typing import Any

MARGIN = 5_000_000_000
"""ns by which a file has to be older than what was read of it for that to be trusted. FAT's clock has steps of 2 s, and
a network drive's may be off."""


def stamp_of(path: Path) -> list[int]:
    """What changes when a file changes: size, times in ns, inode. The ctime cannot be set back as the mtime can."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def is_older(stamp: list[int], began: Any) -> bool:
    """Whether a file is so much older than the start of its reading that a change since must show in its times."""
    return isinstance(began, int) and max(stamp[1:3]) + MARGIN < began
