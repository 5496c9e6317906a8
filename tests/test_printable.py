"""Nothing that a file says reaches a terminal as a command."""

import json
import unicodedata

import pytest

from modules import printable

JOINERS = "\u200c\u200d"
"""Needed within words and emoji."""


@pytest.mark.parametrize("text", ["\x1b[2J", "a\x07", "\x9b31m", "x\u202egnp.exe", "\u2066a\u2069", "\udce9", "a\rb"])
def test_what_steers_a_terminal_is_escaped(text):
    for made in (printable.shown(text), printable.printed(text)):
        assert not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in made)
        assert json.loads(f'"{made}"') == text  # the escapes are JSON's, so that printed JSON stays JSON


def test_lines_stay_lines_in_a_text_and_not_in_a_value():
    assert printable.printed("a\n\tb") == "a\n\tb"
    assert printable.shown("a\n\tb") == "a\\n\\tb"


@pytest.mark.parametrize("text", ["müde 猫 🐈 کتاب", "👩\u200d🚀", "می\u200cخواهم", "e\u0301"])
def test_words_of_every_language_stay(text):
    assert printable.shown(text) == printable.printed(text) == text


def test_every_character_without_a_shape_is_covered():
    """Of the whole Basic Multilingual Plane: what Unicode calls control, surrogate or separator."""
    kinds = ("Cc", "Cs", "Zl", "Zp")
    left = [n for n in range(0x10000) if unicodedata.category(chr(n)) in kinds and printable.shown(chr(n)) == chr(n)]
    assert not left
