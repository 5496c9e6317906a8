"""The entries of data.folders: a path, or an object with a path and settings of its own."""

from collections.abc import Iterable
from typing import Any

from ui.core import words as said

ROLES = {"training": ("train", "regularisation"), "validation": ("validation",)}
"""The roles of the folders of each set of pictures."""

SPOKEN = {"train": "training", "regularisation": "regularisation", "validation": "validation"}
"""The roles as the window calls them."""


def path(entry: Any) -> str:
    """The folder; empty for what is no entry."""
    found = entry.get("path") if isinstance(entry, dict) else entry
    return found if isinstance(found, str) else ""


def role(entry: Any) -> str:
    """What its pictures are for."""
    return entry.get("role", "train") if isinstance(entry, dict) else "train"


def words(entry: Any, text: str = "path") -> str:
    """The folder with its settings, in a line; or another entry, of which `text` is what it is without any."""
    if not isinstance(entry, dict):
        return f"{entry}"
    own = {name: value for name, value in entry.items() if name != text}
    return f"{entry.get(text, '')} ({said.value(own)})" if own else f"{entry.get(text, '')}"


def details(entry: Any) -> list[str]:
    """Its role, and what else it has of its own, each in words."""
    own = entry if isinstance(entry, dict) else {}
    others = [name for name, value in own.items() if name not in ("path", "role") and value is not None]
    found = [SPOKEN.get(f"{role(entry)}", "unknown role")]
    return found + [f"{name.replace('_', ' ')} {said.value(own[name])}" for name in others]


def of_set(entries: Iterable[Any], which: str) -> list[Any]:
    """The entries of a set, "training" or "validation"."""
    return [one for one in entries if role(one) in ROLES[which]]
