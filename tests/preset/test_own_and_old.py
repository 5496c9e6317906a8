"""Presets that are the user's own, and presets from before an option got another name."""

import json

import pytest

from modules.preset import files, listing, options, renames
from modules.preset.files import PresetProblems, resolve

LORA = {"family": "sdxl", "adapter": {"method": "lora", "rank": 4}}


@pytest.fixture
def saved(tmp_path):
    """A function that writes a preset file and returns its path."""

    def save(values, name="mine.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))
        return str(path)

    return save


def problem_of(source):
    with pytest.raises(PresetProblems) as caught:
        resolve(source)
    (problem,) = caught.value.problems
    return problem


def test_own_presets_are_found_by_name_and_built_in_ones_win(saved, tmp_path, monkeypatch):
    saved({**LORA, "description": "Built in."}, "first.json")
    hidden = saved({**LORA, "description": "Hidden."}, "own/first.json")
    saved({"based_on": "first", "description": "Mine."}, "own/mine.json")
    saved({"based_on": "mine"}, "own/other.json")
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    listed = [line.split(maxsplit=1) for line in listing.text("own").splitlines()[1:]]
    assert listed == [["first", "Built in."], ["mine", "Mine."], ["other"], [hidden, "Hidden."]]
    assert files.find("mine") == tmp_path / "own" / "mine.json" and files.find("first") == tmp_path / "first.json"
    assert (resolve("mine").name, resolve("mine").preset.adapter.rank) == ("mine", 4)
    assert resolve(hidden).preset.description == "Hidden."
    assert "itself based on 'first'" in problem_of("other")
    assert "did you mean mine" in problem_of("mien")


def test_renamed_options_are_read_and_reported(saved, monkeypatch):
    monkeypatch.setitem(renames.RENAMES, "training.lr", "training.learning_rate")
    monkeypatch.setitem(renames.RENAMES, "old.snr", "objective.min_snr_gamma")
    path = saved({**LORA, "training": {"lr": 0.5}, "old": {"snr": None}})
    resolved = resolve(path)
    assert (resolved.preset.training.learning_rate, resolved.preset.objective.min_snr_gamma) == (0.5, None)
    assert resolved.notes == [f"{path}: training.lr was renamed to training.learning_rate",
                              f"{path}: old.snr was renamed to objective.min_snr_gamma"]
    overridden = resolve(saved(LORA), [("training.lr", "0.25")])
    assert overridden.preset.training.learning_rate == 0.25
    assert overridden.notes == ["training.lr was renamed to training.learning_rate"]


def test_the_one_folder_of_old_presets(saved):
    path = saved({**LORA, "data": {"folder": "pictures"}})
    resolved = resolve(path)
    assert resolved.preset.data.folders == ("pictures",)
    assert resolved.notes == [f"{path}: data.folder was renamed to data.folders"]
    assert resolve(path, [("data.folder", "others")]).preset.data.folders == ("others",)
    assert resolve(saved({**LORA, "data": {"folder": ""}})).preset.data.folders == ()


def test_old_and_new_name_together_are_refused(saved, monkeypatch):
    monkeypatch.setitem(renames.RENAMES, "training.lr", "training.learning_rate")
    path = saved({**LORA, "training": {"lr": 0.5, "learning_rate": 0.5}})
    assert problem_of(path) == (
        f"{path}: training.lr was renamed to training.learning_rate, but both are given; remove training.lr"
    )


def test_every_rename_leads_to_an_option_and_hides_none():
    from modules.preset.schema import Preset

    known = options.options(Preset)
    assert all(new in known and old not in known for old, new in renames.RENAMES.items())


def test_a_rank_of_the_exported_file_means_what_it_meant_before_there_were_forms(saved):
    path = saved({**LORA, "export": {"rank": 16}})
    resolved = resolve(path)
    assert (resolved.preset.export.form, resolved.preset.export.rank) == ("compact", 16)
    assert resolved.notes == [f"{path}: export.rank no longer implies export.form compact, so it is set"]
    assert resolve(saved({**LORA, "export": {"rank": None}})).preset.export.form == "auto"
    assert resolve(saved({**LORA, "export": {"rank": 16, "form": "svd"}})).preset.export.form == "svd"
    assert "has no effect with form auto" in problem_of(saved({**LORA, "export": {"rank": 16, "form": "auto"}}))
