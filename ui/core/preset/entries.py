"""The entries of data.folders: a path, or an object with a path and settings of its own."""

from collections.abc import Iterable
from typing import Any

from ui.core import words as said

ROLES = {"training": ("train", "regularisation"), "validation": ("validation",)}
"""The roles of the folders of each set of pictures."""


def path(entry: Any) -> str:
    """The folder; empty for what is no entry."""
    found = entry.get("path") if isinstance(entry, dict) else entry
    return found if isinstance(found, str) else ""


def role(entry: Any) -> str:
    """What its pictures are for."""
    return entry.get("role", "train") if isinstance(entry, dict) else "train"


def words(entry: Any) -> str:
    """The folder with its settings, in a line."""
    if not isinstance(entry, dict):
        return path(entry)
    own = {name: value for name, value in entry.items() if name != "path"}
    return f"{path(entry)} ({said.value(own)})" if own else path(entry)


def of_set(entries: Iterable[Any], which: str) -> list[Any]:
    """The entries of a set, "training" or "validation"."""
    return [one for one in entries if role(one) in ROLES[which]]
