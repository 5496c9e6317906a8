"""Weights of words in captions, in the syntax of A1111, ComfyUI and sd-scripts: `(word)`, `[word]`, `(word:1.2)`.

`(x)` multiplies the weight of `x` by 1.1, `[x]` divides it by 1.1, `(x:1.2)` multiplies it by 1.2; they nest, and a
bracket that is never closed applies to the rest. After a backslash a bracket or a backslash stands for itself.
"""

import re
from dataclasses import dataclass

FACTOR = 1.1
"""Of a pair of brackets without a number."""

SIGN = re.compile(r"\\[()\[\]\\]|\\|[()\[\]]|:[+-]?(?:\d+\.?\d*|\.\d+)\)")
"""All that is not text: an escaped sign, a lone backslash, a bracket, the end of a bracket with a number."""


@dataclass
class Part:
    """A part of a caption with one weight."""

    text: str
    """Without the signs."""
    weight: float
    places: list[int]
    """Where in the caption each of its characters is."""


def parts_of(caption: str) -> list[Part]:
    """The caption without its signs, in parts of equal weight, in order; one empty part for a caption without text."""
    found: list[Part] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # how many parts came before each open bracket

    def weigh(first: int, factor: float) -> None:
        for part in found[first:]:
            part.weight *= factor

    def add(text: str, place: int) -> None:
        found.append(Part(text, 1.0, [*range(place, place + len(text))]))

    done = 0
    for sign in SIGN.finditer(caption):
        if sign.start() > done:
            add(caption[done : sign.start()], done)
        word, done = sign[0], sign.end()
        if word[0] == "\\":
            add(word[1:], sign.start() + 1)
        elif word in opened:
            opened[word].append(len(found))
        elif word[-1] == ")" and opened["("]:
            weigh(opened["("].pop(), float(word[1:-1]) if len(word) > 1 else FACTOR)
        elif word == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / FACTOR)
        else:
            add(word, sign.start())
    if done < len(caption):
        add(caption[done:], done)
    for first in opened["("]:
        weigh(first, FACTOR)
    for first in opened["["]:
        weigh(first, 1 / FACTOR)
    return _joined(found) or [Part("", 1.0, [])]


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of equal weight as one: a word is read as a whole even if a sign was in it."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].weight == part.weight:
            found[-1] = Part(found[-1].text + part.text, part.weight, found[-1].places + part.places)
        else:
            found.append(part)
    return found
