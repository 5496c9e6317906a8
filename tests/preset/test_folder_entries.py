"""Entries of data.folders in preset files and on the command line, and the option that they have replaced."""

import json

import pytest

from modules.preset.cli import parse_overrides
from modules.preset.files import resolve, to_json
from modules.preset.problems import PresetProblems
from modules.training.ended import stored_preset
from modules.training.run import changes, check_same

LORA = {"family": "sdxl", "base": {"path": "x"}, "adapter": {"method": "lora"}}


def folders_of(source, *overrides) -> tuple[list, list[str]]:
    resolved = resolve(str(source), overrides)
    return json.loads(to_json(resolved.preset))["data"]["folders"], resolved.notes


def test_the_old_option_is_an_entry(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**LORA, "data": {"folders": ["a"], "validation_folder": "v"}}))
    held = {"path": "v", "role": "validation"}
    note = "data.validation_folder was renamed to data.folders (an entry with role validation)"
    assert folders_of(path) == (["a", held], [f"{path}: {note}"])
    assert folders_of(path, ("data.folders", "b"))[0] == ["b", held]  # as it was when these were two options
    assert folders_of(path, ("data.validation_folder", "w")) == (
        ["a", {"path": "w", "role": "validation"}], [f"{path}: {note}", note]
    )  # fmt: skip
    assert folders_of(path, ("data.validation_folder", ""))[0] == ["a"]
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"based_on": str(path), "data": {"validation_folder": "w"}}))
    assert folders_of(child)[0] == ["a", {"path": "w", "role": "validation"}]
    new = tmp_path / "new.json"
    new.write_text(json.dumps({**LORA, "data": {"folders": ["a", held]}}))
    assert folders_of(new) == (["a", held], [])
    assert folders_of(new, ("data.validation_folder", "w"))[0] == ["a", {"path": "w", "role": "validation"}]
    found, (kept,) = folders_of(new, ("data.folders", "b"))  # as it was when these were two options, but said
    assert found == ["b", held] and "role validation is kept (v); --data.validation_folder= leaves it out" in kept
    assert folders_of(new, ("data.folders", "b"), ("data.validation_folder", ""))[0] == ["b"]
    other = {"path": "o", "role": "validation"}
    assert folders_of(new, ("data.folders", json.dumps([other]))) == ([other], [])
    both = tmp_path / "both.json"
    both.write_text(json.dumps({**LORA, "data": {"folders": ["a", held], "validation_folder": "w"}}))
    with pytest.raises(PresetProblems, match="both give one; remove data.validation_folder"):
        resolve(str(both))


def test_entries_on_the_command_line():
    words = ["--data", "a", "--data", '{"path": "b", "repeats": 0.5}', "--data.validation_folder", "v"]
    found, _ = folders_of("lora_demo", *parse_overrides(words))
    assert found == ["a", {"path": "b", "repeats": 0.5}, {"path": "v", "role": "validation"}]
    assert folders_of("lora_demo", *parse_overrides(["--data", "{braces}"]))[0][0] == "{braces}"


@pytest.mark.parametrize("entry, sentence", [
    ({"path": "a", "reppeats": 2}, "data.folders[0].reppeats: unknown; did you mean repeats?"),
    ({"path": "a", "repeats": 0}, "data.folders[0].repeats: 0 is too small; more than 0"),
    ({"role": "train"}, "data.folders[0].path: required"),
    ({"path": "a", "role": "valid"}, "data.folders[0].role: 'valid' is not one of train, regularisation, validation"),
    ({"path": "a", "resolutions": [3]}, "data.folders[0].resolutions[0]: 3 is too small; at least 16"),
    (5, "data.folders[0]: 5 is not a text (in quotes)"),
])
def test_wrong_entries_are_named(tmp_path, entry, sentence):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**LORA, "data": {"folders": [entry]}}))
    with pytest.raises(PresetProblems) as found:
        resolve(str(path))
    assert found.value.problems[0].startswith(sentence)


def test_an_old_run_is_the_run_of_the_same_preset(tmp_path):
    """A run folder's preset is complete; one from before folders had settings is that of a run that resumes."""
    new = resolve("wora_demo", [("data.validation_folder", "v")]).preset
    values = json.loads(to_json(new))
    values["data"] = {
        name: value for name, value in values["data"].items()
        if name not in ("recursive", "regularisation_ratio", "resolutions", "resolution_shares", "max_enlargement",
                        "prefix", "suffix")
    } | {"folders": ["demo/dataset"], "validation_folder": "v"}  # fmt: skip
    place = tmp_path / "wora_demo"
    place.mkdir()
    (place / "preset.json").write_text(json.dumps(values))
    assert changes(stored_preset(place / "preset.json")[0], new) == []
    check_same(place, new)
    values["data"]["validation_folder"] = "w"
    (place / "preset.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="data.folders"):
        check_same(place, new)
