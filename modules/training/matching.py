"""Which layers a pattern of a preset means: `fnmatch` over full layer names."""

import difflib
import fnmatch
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence

START, END = re.compile(r"[^*?\[]*"), re.compile(r"[^*?\]]*\Z")
"""What a pattern has before its first wildcard, and behind the last one."""

NONE = "none"
"""As targets.layers: no layers but those of targets.include."""

COMMA = re.compile(r",(?![^\[]*\])")
"""A comma that separates patterns: not one between brackets."""

LAST = "\U0010ffff"
"""Sorts behind every name that begins alike."""

HINTS = 8
"""Patterns without a match that get a hint, at most. Each compares every name, and a preset may have a pattern for each
layer of another family."""


class Names:
    """Full names of layers, in the given order.

    A pattern is only tried on names that begin, or end, as it does: a preset may have a pattern for every layer, and
    trying each on every name would take quadratic time.
    """

    def __init__(self, names: Iterable[str]):
        self._places = {name: place for place, name in enumerate(names)}
        self._forwards = sorted(self._places)
        self._backwards = sorted(name[::-1] for name in self._places)

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """The names that match any of the patterns, in their order."""
        found = {name for pattern in patterns for name in self._meant(pattern)}
        return sorted(found, key=self._places.__getitem__)

    def _meant(self, pattern: str) -> list[str]:
        start, end = START.match(pattern), END.search(pattern)
        assert start and end
        if start[0] == pattern:
            return [pattern] if pattern in self._places else []
        fits = re.compile(fnmatch.translate(pattern)).match
        first, last = _beginning(self._forwards, start[0])
        first_back, last_back = _beginning(self._backwards, end[0][::-1])
        if last_back - first_back < last - first:
            return [name[::-1] for name in self._backwards[first_back:last_back] if fits(name[::-1])]
        return [name for name in self._forwards[first:last] if fits(name)]


def parts_of(layers: str) -> list[str]:
    """The layer sets and patterns that targets.layers names: several are separated by commas, `none` has none."""
    return [] if layers.strip() == NONE else [part.strip() for part in COMMA.split(layers)]


def is_pattern(part: str) -> bool:
    """Whether a part of targets.layers that is no layer set is meant as a pattern, or as a layer's full name."""
    return any(character in part for character in "*?[.")


def _beginning(ordered: Sequence[str], start: str) -> tuple[int, int]:
    """The range of the texts that begin with `start`."""
    first = bisect_left(ordered, start)
    return first, bisect_left(ordered, start + LAST, first)


def hint_for(pattern: str, names: Sequence[str], before: int) -> str:
    """A hint at the layer with the most similar name, to be added to a sentence; empty where `before` patterns have
    got `HINTS` hints already."""
    if before >= HINTS:
        return ""
    near = difflib.get_close_matches(pattern.strip("*"), names, 1, cutoff=0.3)
    return f"; layer names look like {near[0] if near else names[0]}"
