"""Presets that nobody means well with: all of them are refused in sentences, and soon."""

import json
import os
import time

import pytest

from modules.preset.files import resolve
from modules.preset.problems import PresetProblems

DEEP = 100_000


def problems(source: str) -> list[str]:
    """What is wrong with a preset, within a few seconds."""
    begun = time.monotonic()
    with pytest.raises(PresetProblems) as caught:
        resolve(source)
    assert time.monotonic() - begun < 10
    assert len(str(caught.value)) < 100_000
    return caught.value.problems


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, '{"a":' * 500 + "1" + "}" * 500])
def test_deep_nesting_is_a_sentence(tmp_path, text):
    path = tmp_path / "deep.json"
    path.write_text(text)
    [said] = problems(str(path))
    assert said.startswith(f"{path}: ") and "levels deep" in said


@pytest.mark.parametrize("source", ["x" * 300, "x" * 300 + ".json", "a/" + "x" * 300, "x\0y.json", "/dev/null.json",
                                    "x" * 100_000, "\ud800.json", "\ud800"])
def test_names_that_no_file_can_have(source):
    assert len(problems(source)) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in problems(str(tmp_path / "x.json"))[0]


def test_many_unknown_options_do_not_take_the_square_of_their_number(tmp_path):
    path = tmp_path / "many.json"
    path.write_text(json.dumps({"family": "sdxl", **{f"opt{n}": n for n in range(40_000)}}))
    assert problems(str(path))[-1] == "and 39951 more problems; fix these first"


def test_a_long_name_is_not_compared_with_all_others(tmp_path):
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"family": "sdxl", "adapter": {"rank" * 100_000: 1}}))
    assert problems(str(path))


@pytest.mark.parametrize("name", ["\ud800", "a\ud800", "\u202e", "\x1b[2J"])
def test_half_characters_are_sentences(tmp_path, name):
    path = tmp_path / "half.json"
    for values in ({name: 1}, {"name": name}, {"data": {"folders": [name]}}, {"adapter": {"method": name}}):
        path.write_text(json.dumps({"family": "sdxl", **values}))
        try:
            resolve(str(path))
        except PresetProblems as error:
            assert error.problems
