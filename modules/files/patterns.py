"""peft's exceptions for some layers (`rank_pattern`, `alpha_pattern`): values by patterns of layers' names."""

import re
from collections.abc import Mapping
from typing import Any

PLAIN = re.compile(r"[\w.-]*")
"""A pattern in which only dots are wildcards."""


class Exceptions:
    """The first pattern counts that matches a layer's name, or its part after one of its dots.

    peft itself writes one pattern for every layer of another rank, so plain ones are looked up: trying each pattern on
    every name would be quadratic.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = list(values.values())
        self._plain: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        """Numbers of the plain patterns, by length, places of their dots, and pattern."""
        self._others: list[tuple[int, re.Pattern[str]]] = []
        for number, pattern in enumerate(values):
            if PLAIN.fullmatch(pattern):
                self._plain.setdefault(len(pattern), {}).setdefault(dots(pattern), {})[pattern] = number
            else:
                self._others.append((number, re.compile(rf"(.*\.)?({pattern})")))

    def of(self, name: str, default: Any) -> Any:
        """The value for a layer."""
        found = next(([number] for number, pattern in self._others if pattern.fullmatch(name)), [])
        for start in (0, *(place + 1 for place in dots(name))):
            found += self._numbers(name[start:])
        return self._values[min(found)] if found else default

    def _numbers(self, end: str) -> list[int]:
        """Those of the plain patterns that match the whole of `end`."""
        found = []
        for places, numbers in self._plain.get(len(end), {}).items():
            signs = list(end)
            for place in places:
                signs[place] = "."
            found += [numbers[text] for text in ["".join(signs)] if text in numbers]
        return found


def dots(text: str) -> tuple[int, ...]:
    """Their places."""
    return tuple(place for place, sign in enumerate(text) if sign == ".")
