"""Captions that are cut, by the names of their pictures; options of reading captions that have no effect; what files
say about them."""

import json

import pytest
import torch
from safetensors import safe_open

from modules.export import metadata
from modules.preset import files
from modules.training import check
from tests.tiny_sd15 import make_folder
from tests.training.runs import Place, draw_pictures

WORDS = {"a.png": 30, "b.png": 76, "c.png": 140, "d.png": 160}
"""How many words of one letter, which are tokens of the tiny tokenizer, a picture's caption has."""


@pytest.fixture
def long(place: Place) -> Place:
    folder = place.runs / "long"
    draw_pictures(folder, len(WORDS), 3)
    for number, (name, count) in enumerate(WORDS.items()):
        (folder / f"{number}.png").rename(folder / name)
        (folder / f"{number}.txt").rename((folder / name).with_suffix(".txt"))
        (folder / name).with_suffix(".txt").write_text("q " * count, encoding="utf-8")
    return place


def notes_of(place: Place, *more: str, **sections) -> list[str]:
    command = place.command("notes", *more, **sections)
    words = dict(zip(command[4::2], command[5::2], strict=True))
    preset = files.resolve(command[1], [("name", "notes"), *((key[2:], word) for key, word in words.items())]).preset
    found = check.examine(preset, "cpu")
    return [*found.problems, *found.notes]


def data_of(place: Place) -> dict:
    return {"resolution": 16, "folders": [str(place.runs / "long")]}


@pytest.mark.parametrize("tokens, cut", [(75, ["b.png", "c.png", "d.png"]), (150, ["d.png"]), (225, [])])
def test_what_is_cut_is_listed_by_file(long: Place, tokens, cut):
    found = [note for note in notes_of(long, "--data.caption_tokens", str(tokens), data=data_of(long)) if "cut" in note]
    assert len(found) == bool(cut)
    for note in found:
        assert f"after {tokens} tokens" in note and "the longest has 160" in note and "data.caption_tokens 225" in note
        assert note.endswith(f"{len(cut)}: {', '.join(cut)}") and "q q" not in note and len(note) < 300


def test_a_caption_of_a_megabyte_and_many_files_make_a_short_note(place: Place):
    folder = place.runs / "long"
    draw_pictures(folder, 15, 3)
    (folder / "0.txt").write_text("a word, " * 20_000, encoding="utf-8")
    for number in range(1, 15):
        (folder / f"{number}.txt").write_text("a word, " * 50, encoding="utf-8")
    (note,) = [note for note in notes_of(place, data=data_of(place)) if "cut" in note]
    assert len(note) < 400 and "15: 0.png, 1.png, 10.png" in note and "and 5 more" in note and "a word" not in note
    assert "data.caption_tokens" not in note, "no length reads a caption of a megabyte"


def test_prompts_that_are_cut_are_named(place: Place):
    samples = {"enabled": True, "prompts": ["red", "q " * 80], "negative": "q " * 90}
    (note,) = [note for note in notes_of(place, samples=samples) if "cut" in note]
    assert note.startswith("prompts are cut") and note.endswith("2: samples.negative, samples.prompts[1]")


def test_the_run_says_so_too(long: Place, capsys):
    assert long.train("said", "--training.steps", "1", data=data_of(long)) == 0
    assert any("3: b.png, c.png, d.png" in event["message"] for event in long.events("said", "warning"))
    assert "3: b.png, c.png, d.png" in capsys.readouterr().err


@pytest.mark.full
def test_a_run_on_long_captions_learns_from_their_end(long: Place):
    """Only the last token differs; and its file says how long captions were."""
    adapters = []
    for number, word in enumerate("xy"):
        (long.runs / "long" / "c.txt").write_text(f"{'q ' * 139}{word}", encoding="utf-8")
        more = ["--training.steps", "2", "--training.batch_size", "4", "--data.caption_tokens", "150"]
        assert long.train(f"end{number}", *more, data={**data_of(long), "caption_dropout": 0}) == 0
        adapters.append(long.adapter(f"end{number}"))
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    with safe_open(long.runs / "end0" / "end0.safetensors", "pt") as file:
        found = file.metadata()
    assert found["ss_max_token_length"] == "150" and "ss_clip_skip" not in found
    assert json.loads(found[metadata.METADATA_KEY])["data"]["caption_tokens"] == 150


def test_options_without_effect_are_said(place: Place):
    assert any(note.startswith("base.clip_skip: 2 has no effect") for note in notes_of(place, "--base.clip_skip", "2"))


@pytest.mark.full
def test_clip_skip_of_a_run(place: Place, tmp_path):
    base = str(make_folder(tmp_path / "sd15", short=True))
    targets = {"layers": "attention", "include": [], "exclude": []}
    given = {"family": "sd15", "targets": targets}
    more = ["--base.path", base, "--training.steps", "1", "--data.caption_dropout", "0"]
    for name, skip in (("last", "1"), ("other", "2"), ("plain", "null")):
        assert place.train(name, *more, "--base.clip_skip", skip, **given) == 0
    losses = {name: place.events(name, "step")[0]["loss"] for name in ("last", "other", "plain")}
    assert losses["last"] == losses["plain"] != losses["other"]
    with safe_open(place.runs / "other" / "other.safetensors", "pt") as file:
        assert file.metadata()["ss_clip_skip"] == "2"
    (problem,) = [note for note in notes_of(place, *more[:2], "--base.clip_skip", "3", **given) if "clip_skip" in note]
    assert "2 layers" in problem
    assert place.train("other", *more, "--base.clip_skip", "1", **given) == 2, "another model: no resuming"


@pytest.mark.parametrize("tokens, words", [("100", "not a multiple of 75"), ("0", "at least 75"), ("2325", "at most")])
def test_only_whole_chunks(place: Place, tokens, words, capsys):
    assert place.train("odd", "--check", "--data.caption_tokens", tokens) == 2
    said = capsys.readouterr().err
    assert "data.caption_tokens: " in said and words in said
