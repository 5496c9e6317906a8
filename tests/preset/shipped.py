"""The shipped presets, each resolved once for all tests."""

from functools import cache

from modules.preset import files
from modules.preset.files import Resolved

NAMES = sorted(one.name for one in files.every())
FEW = tuple(name for name in NAMES if name.startswith(("lora_", "wora_")))
"""Of two methods, for all families and purposes."""


@cache
def resolved(name: str) -> Resolved:
    """The preset of this name, as the trainer gets it."""
    return files.resolve(name)
