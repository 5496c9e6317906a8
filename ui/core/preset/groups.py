"""How the list of presets is divided: families, in each the presets to begin with and one's own, then all others."""

from ui.core.preset.files import Entry

UNREADABLE, UNNAMED, OTHERS = "Cannot be read", "No family", "All other presets"
"""Titles. What is below `OTHERS` is one step away."""


def groups(entry: Entry) -> tuple[str, ...]:
    """The titles that a preset stands below, outermost first."""
    if entry.problem and not entry.family:
        return (UNREADABLE,)
    family = entry.family or UNNAMED
    return (family,) if entry.recommended or entry.kind == "own" else (family, OTHERS)


def order(entry: Entry) -> tuple[bool, str, bool, bool]:
    """What the list is sorted by; presets that are alike in it stay as they were."""
    above = groups(entry)
    return above == (UNREADABLE,), above[0], above[-1] == OTHERS, entry.kind == "own"
