"""A list of objects as an option: `targets.rules` in files, on the command line, in problems and in the manual."""

import json

import pytest
import torch
from safetensors.torch import save_file

from modules.preset import cli, files, options, reference
from modules.preset.files import PresetProblems, differences, resolve
from modules.preset.schema import Preset, Rule

NAME = "targets.rules"
TWO = [{"match": "attention", "rank": 4}, {"match": "unet.mid_block.*", "rank": 8, "lr_scale": 0.5}]


def rules(*overrides, source="lora_demo"):
    return resolve(source, overrides).preset.targets.rules


def problems(text):
    with pytest.raises(PresetProblems) as caught:
        rules((NAME, text))
    return caught.value.problems


@pytest.mark.parametrize(
    "words",
    [
        ["--targets.rules", json.dumps(TWO)],
        [f"--targets.rules={json.dumps(TWO)}"],
        [word for one in TWO for word in ("--targets.rules", json.dumps(one))],
    ],
)
def test_rules_are_json_on_a_command_line_as_a_list_or_one_by_one(words):
    wanted = (Rule(match="attention", rank=4), Rule(match="unet.mid_block.*", rank=8, lr_scale=0.5))
    assert rules(*cli.parse_overrides(words)) == wanted


def test_what_is_not_given_is_null():
    assert rules((NAME, '{"match": "x"}'))[0].model_dump() == {"match": "x", "rank": None, "lr_scale": None}
    assert rules() == rules((NAME, "[]")) == ()


WRONG = [
    ('[{"match": "x", "rank": 0}]', ["targets.rules[0].rank: 0 is too small; at least 1"]),
    ('[{"match": "x", "rank": 5000}]', ["targets.rules[0].rank: 5000 is too large; at most 4096"]),
    ('[{"match": "x"}, {"match": "x", "rank": "many"}]', ["targets.rules[1].rank: 'many' is not a whole number"]),
    ('[{"match": "x", "rank": 1.5}]', ["targets.rules[0].rank: 1.5 is not a whole number"]),
    ('[{"match": "x", "lr_scale": 0}]', ["targets.rules[0].lr_scale: 0 is too small; more than 0"]),
    ('[{"match": "x", "lr_scale": "fast"}]', ["targets.rules[0].lr_scale: 'fast' is not a number"]),
    ('[{"match": 5}]', ["targets.rules[0].match: 5 is not a text (in quotes)"]),
    ('[{"rank": 5}]', ["targets.rules[0].match: required"]),
    ('[{"match": "x", "rnak": 5}]', ["targets.rules[0].rnak: unknown; did you mean rank?"]),
    ('[{"match": "x", "qqq": 5}]', ["targets.rules[0].qqq: unknown; targets.rules[0] has match, rank, lr_scale"]),
    ('[{"mtach": "x", "rank": 0}]', ["targets.rules[0].match: required",
                                    "targets.rules[0].rank: 0 is too small; at least 1",
                                    "targets.rules[0].mtach: unknown; did you mean match?"]),
    ("5", ['targets.rules[0]: 5 is not a rule in braces, as in {"match": ...}']),
    ("[{match: x}]", ["targets.rules[0]: '[{match: x}]' is not a rule in braces, as in {\"match\": ...}"]),
]  # fmt: skip


@pytest.mark.parametrize("text, wanted", WRONG, ids=[wanted[0] for _, wanted in WRONG])
def test_what_is_wrong_inside_is_named_with_its_place(text, wanted):
    assert problems(text) == wanted


def test_what_is_no_list_is_said_to_be_none(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"based_on": "lora_demo", "targets": {"rules": "x"}}))
    with pytest.raises(PresetProblems) as caught:
        resolve(str(path))
    assert caught.value.problems == ["targets.rules: 'x' is not a list of rules, as in [{\"match\": ...}]"]


def test_what_stands_alone_is_told_the_form():
    with pytest.raises(PresetProblems) as caught:
        cli.parse_overrides(["--targets.rules", "[]", "attention"])
    assert str(caught.value).endswith('--targets.rules \'[{"match": ...}, {"match": ...}]\'')


def test_rules_survive_files_and_metadata_and_differ_as_a_whole(tmp_path):
    preset, plain = resolve("lora_demo", [(NAME, json.dumps(TWO))]).preset, resolve("lora_demo").preset
    files.write(preset, tmp_path / "preset.json")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={files.METADATA_KEY: files.to_json(preset)})
    for name in ("preset.json", "x.safetensors"):
        assert resolve(str(tmp_path / name)).preset == preset
    ((name, before, after),) = differences(plain, preset)
    assert (name, before) == (NAME, []) and after == preset.model_dump(mode="json")["targets"]["rules"]
    assert differences(preset, resolve(str(tmp_path / "preset.json")).preset) == []


def test_a_preset_s_own_rules_replace_those_of_the_one_it_is_based_on(tmp_path):
    base, own = tmp_path / "base.json", tmp_path / "own.json"
    base.write_text(
        json.dumps({"based_on": "lora_demo", "targets": {"rules": TWO}}).replace(
            '"based_on": "lora_demo"', '"family": "sdxl", "adapter": {"method": "lora"}'
        )
    )
    own.write_text(json.dumps({"based_on": "base.json", "targets": {"text_encoders": True}}))
    assert len(rules(source=str(own))) == 2
    own.write_text(json.dumps({"based_on": "base.json", "targets": {"rules": [{"match": "y", "rank": 3}]}}))
    assert rules(source=str(own)) == (Rule(match="y", rank=3),)


def test_the_words_for_a_list_of_objects():
    field = options.options(Preset)[NAME]
    assert options.type_words(field.annotation) == "list of rules {match, rank, lr_scale}"
    assert options.field_at(Preset, f"{NAME}[1].rank") is Rule.model_fields["rank"]
    assert options.field_at(Preset, f"{NAME}[1]") is options.field_at(Preset, "nothing") is None
    assert options.entry_at(Preset, "targets.include") is None
    text = cli.options_help()
    for name, inner in Rule.model_fields.items():
        assert f"        {name} ({cli.facts(inner)}): {cli.description(inner).split()[0]}" in text
        assert f"| `{NAME}[].{name}` | {cli.type_facts(inner)} |" in reference.reference_text()
