"""Alternatives in captions: `{red|{dark|light} blue}` stands for one of its parts, `{3::red|blue}` for red three times
as often. Doubled braces around a text, `{{text}}`, stay as single ones; so do braces without a partner."""

import re
from collections.abc import Callable, Sequence
from random import Random

WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?)::")

DEEPEST = 50
"""Pairs of braces within each other; those further inside are part of the text."""

Choose = Callable[[Sequence[float]], int]
"""The index of one of so many alternatives, by their weights."""


def expanded(text: str, draw: Random | None) -> str:
    """The text with one alternative for each pair of braces; without `draw`, the first that has a weight."""
    if "{" not in text and "}" not in text:
        return text

    def choose(weights: Sequence[float]) -> int:
        if not any(weights):
            weights = [1.0] * len(weights)
        if draw is None:
            return next(place for place, weight in enumerate(weights) if weight)
        return draw.choices(range(len(weights)), weights)[0]

    return _within(text, 0, len(text), _partners(text), choose)


def has_lone_brace(text: str) -> bool:
    """Whether a brace is without a partner, and not a doubled one, which is meant as a brace."""
    pairs = _partners(text)
    with_partner = {*pairs, *pairs.values()}
    lone = "".join(" " if place in with_partner else letter for place, letter in enumerate(text))
    return any(brace in lone.replace(2 * brace, "") for brace in "{}")


def _partners(text: str) -> dict[int, int]:
    """The closing brace of each opening one that has a partner."""
    partners: dict[int, int] = {}
    waiting: list[int] = []
    for place, letter in enumerate(text):
        if letter == "{":
            waiting.append(place)
        elif letter == "}" and waiting:
            opened = waiting.pop()
            if len(waiting) < DEEPEST:
                partners[opened] = place
    return partners


def _within(text: str, start: int, end: int, partners: dict[int, int], choose: Choose) -> str:
    """The part of the text from `start` to `end`, which cuts no pair of braces."""
    said, place = [], start
    while place < end:
        close = partners.get(place)
        if close is None:
            single = text[place : place + 2] in ("{{", "}}") and place + 1 not in partners and place + 1 < end
            said.append(text[place])
            place += 2 if single else 1
            continue
        if partners.get(place + 1) == close - 1:
            said.append("{" + _within(text, place + 2, close - 1, partners, choose) + "}")
        elif close == place + 1:
            said.append("{}")
        else:
            said.append(_one_of(text, place + 1, close, partners, choose))
        place = close + 1
    return "".join(said)


def _one_of(text: str, start: int, end: int, partners: dict[int, int], choose: Choose) -> str:
    """One of the alternatives between two braces."""
    parts, weights = [], []
    for first, last in _alternatives(text, start, end, partners):
        weight = WEIGHT.match(text, first, last)
        parts.append((weight.end() if weight else first, last))
        weights.append(float(weight[1]) if weight else 1.0)
    first, last = parts[choose(weights)]
    return _within(text, first, last, partners, choose)


def _alternatives(text: str, start: int, end: int, partners: dict[int, int]) -> list[tuple[int, int]]:
    """Where the alternatives between two braces begin and end; bars in inner braces are those of inner alternatives."""
    found, first, place = [], start, start
    while place < end:
        if place in partners:
            place = partners[place]
        elif text[place] == "|":
            found.append((first, place))
            first = place + 1
        place += 1
    return [*found, (first, end)]
