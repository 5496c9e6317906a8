"""Runs whose captions change with each use: the same however they are interrupted, from whatever file they come."""

import json
from pathlib import Path

import pytest

from tests.training.runs import Place, draw_pictures, equal

CHANGING = {
    "resolution": 16, "validation_folder": "", "wildcards": True, "shuffle": True, "part_dropout": 0.2,
    "keep_separator": "|||", "trigger": "sks", "underscores": True, "drop_never": ["face"], "caption_dropout": 0.1,
}  # fmt: skip
CAPTION = "{red|blue}_one ||| apple, {2::heart|face}, green\nyellow, [trigger], {a|b}"


def pictures(path: Path, kind: str) -> str:
    """Four pictures whose captions are in files of one kind."""
    draw_pictures(path, 4, 0)
    for number in range(4):
        (path / f"{number}.txt").unlink()
        text = f"{CAPTION}, {number}"
        if kind == "json":
            (path / f"{number}.json").write_text(json.dumps({"caption": text.split("\n")}))
        elif kind == "caption":
            (path / f"{number}.caption").write_text(text)
    return str(path)


@pytest.mark.full
@pytest.mark.parametrize("lines", ["random", "each"])
def test_a_run_is_the_same_in_two_parts_and_from_another_source(place: Place, tmp_path, lines):
    cache = str(tmp_path / "cache")
    data = {**CHANGING, "caption_lines": lines, "cache_folder": cache}
    whole = {**data, "folders": [pictures(tmp_path / "one" / "set", "caption")]}
    parts = {**data, "folders": [pictures(tmp_path / "two" / "set", "json")]}
    assert place.train("whole", "--training.steps", "4", data=whole) == 0
    assert place.train("parts", "--training.steps", "2", data=parts) == 0
    assert place.train("parts", "--training.steps", "4", data=parts) == 0
    assert equal(place.adapter("whole"), place.adapter("parts"))
    rows = (place.runs / "whole" / "pictures.tsv").read_text(encoding="utf-8")
    assert rows.count("apple") == 4 and rows == (place.runs / "parts" / "pictures.tsv").read_text(encoding="utf-8")
    other = {**whole, "caption_lines": "first"}
    assert place.train("other", "--training.steps", "4", data=other) == 0
    assert not equal(place.adapter("whole"), place.adapter("other"))
