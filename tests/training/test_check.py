"""Findings before a training: each problem names its option, and whatever can be known is known in spite of it."""

import json
import re

import pytest

from modules.preset import files, options
from modules.preset.files import PresetProblems
from modules.preset.schema import Preset
from modules.training import check
from tests.training.runs import OPTIONS, Place

KNOWN = options.options(Preset)


def option_of(problem: str) -> str:
    """The option that a problem begins with."""
    found = re.match(r"([a-z0-9_]+(\.[a-z0-9_]+)*)(\[\d+\](\.[a-z_]+)?)?[: ]", problem)
    assert found and found[1] in KNOWN, problem
    return found[1]


@pytest.fixture
def checked(place: Place, capsys):
    """The report on a preset, as the window gets it."""

    def run(*words: str, **sections) -> dict:
        code = place.train("checked", "--check", "--json", *words, **sections)
        facts = json.loads(capsys.readouterr().out)
        assert code == (2 if facts["problems"] else 0)
        return facts

    return run


BAD_VALUES = {
    "adapter": {"method": "wora", "rank": 0},
    "targets": {"include": ["a", 5], "layers": 3, "text_encoder_lr_scale": 0},
    "optimizer": {"name": "adam"},
    "training": {"steps": "many", "learning_rate": -1, "precision": "float33", "seed": None},
    "data": {"flip": "maybe", "folders": [4], "part_dropout": 1},
}


def test_wrong_values_name_their_options(place: Place):
    with pytest.raises(PresetProblems) as error:
        files.resolve(place.command("bad", **BAD_VALUES)[1])
    wrong = [f"{section}.{name}" for section, values in BAD_VALUES.items() for name in values]
    assert sorted(map(option_of, error.value.problems)) == sorted(set(wrong) - {"adapter.method"})


FILE = "{stage}/base/model_index.json"

BAD = [
    (["--base", ""], {}, ["base.path"]),
    (["--base", "nobody/nothing"], {}, ["base.path"]),
    (["--base", "nowhere.safetensors"], {}, ["base.path"]),
    (["--base", "{stage}/pictures"], {}, ["base.path"]),
    (["--targets.layers", "atention"], {}, ["targets.layers"]),
    (["--targets.include", '["no.*", "unet.conv_in"]', "--targets.exclude", "nothing"], {},
     ["targets.include", "targets.exclude"]),
    (["--targets.exclude", "*"], {}, ["targets.exclude"]),
    (["--targets.text_encoders", "--targets.include", "text_encoder*embedding"],
     {"adapter": {"method": "oft"}, "targets": {"layers": "attention"}}, ["targets.exclude"]),
    (["--export.host", "diffusers"], {}, ["export.host"]),
    (["--data", "{stage}/nowhere", "--data", "{stage}/base", "--data.validation_folder", FILE], {},
     ["data.folders"] * 3),
    (["--data", "{stage}/pictures", "--data", "{stage}", "--data", "{stage}/pictures"], {}, ["data.folders"] * 2),
    (["--data.folders", "[]", "--data.resolution", "16", "--data.separator=", "--data.shuffle"], {},
     ["data.folders", "data.separator"]),
    (["--saving.folder", f"{FILE}/x", "--data.cache_folder", FILE], {}, ["saving.folder", "data.cache_folder"]),
    (["--saving.folder", "x" * 300, "--data.cache_folder", "a\0b"], {}, ["saving.folder", "data.cache_folder"]),
    (["--training.precision", "float16", "--training.learning_rate", "5"], {},
     ["training.precision", "training.learning_rate"]),
    (["--targets.text_encoders", "--training.learning_rate", "0.01"], {"optimizer": {"name": "prodigy"}},
     ["training.learning_rate", "targets.text_encoder_lr_scale"]),
    (["--training.schedule", "cosine"], {"optimizer": {"name": "schedulefree_adamw"}}, ["training.schedule"]),
    ([], {"optimizer": {"name": "paged_lion8bit"}}, ["optimizer.name"]),
]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("words, sections, wrong", BAD)
def test_problems_name_their_options(checked, place: Place, words, sections, wrong):
    facts = checked(*(word.format(stage=place.stage) for word in words), **sections)
    assert sorted(set(map(option_of, facts["problems"]))) == sorted(set(wrong)), facts["problems"]
    assert len(facts["problems"]) >= len(wrong)


def test_layers_are_known_without_pictures(checked):
    good, bad = checked(), checked("--data", "nowhere", "--targets.include", '["no.*", "unet.conv_in"]')
    assert good["problems"] == [] and len(bad["problems"]) == 2
    names = [row["name"] for row in bad["layers"]]
    assert "unet.conv_in" in names and len(names) == len(good["layers"]) + 1
    assert bad["parameters"] == sum(row["parameters"] for row in bad["layers"]) > 0
    assert bad["layer_sets"] == good["layer_sets"] and OPTIONS["targets"]["layers"] in good["layer_sets"]
    assert bad["trainable_layers"] == good["trainable_layers"] > len(names)
    assert bad["file_bytes"] > good["file_bytes"] and sum(bad["forms"].values()) == len(names)
    assert (bad["pictures"], bad["buckets"], bad["steps"], bad["steps_per_epoch"]) == (0, "", 4, 0)
    assert bad["validation_pictures"] == 2


def test_the_report_says_where_captions_come_from(checked, place: Place):
    facts = checked()
    pictures, validation = facts["captions"]
    assert str(place.stage / "pictures") in pictures and "5 from .txt files" in pictures and "validation" in validation
    assert pictures in check.text(facts).splitlines()


def test_pictures_are_known_without_a_model(checked):
    facts = checked("--base", "nowhere")
    assert facts["pictures"] == 5 and "16 x 16" in facts["buckets"] and facts["steps_per_epoch"] == 3
    assert any("estimated" in note for note in facts["notes"])
    assert facts["layers"] == facts["layer_sets"] == [] and facts["trainable_layers"] == facts["parameters"] == 0
    assert facts["forms"] == {} and facts["file_bytes"] == 0


def test_a_wrong_set_leaves_the_patterns_alone(checked):
    facts = checked("--targets.layers", "atention", "--targets.exclude", "unet.conv_in")
    assert len(facts["problems"]) == 1 and facts["layers"] == [] and facts["trainable_layers"] > 0


def test_a_report_always_has_the_same_fields(checked):
    assert checked().keys() == checked("--base", "nowhere", "--data", "nowhere").keys()


def test_notes_are_said_once(place: Place):
    preset = files.resolve(place.command("odd", "--data.resolution", "18")[1], [("data.resolution", "18")]).preset
    notes = check.examine(preset, "cpu").notes
    assert len(notes) == len(set(notes)) and sum("not a multiple" in note for note in notes) == 1
