"""A preset's options on the command line."""

from itertools import groupby
from typing import get_args

import pytest

from modules.preset import cli, files, options, renames, section
from modules.preset.files import PresetProblems
from modules.preset.schema import Preset

RIGHT = [
    ("", []),
    ("--adapter.rank 32", [("adapter.rank", "32")]),
    ("--adapter.rank=32 --training.steps 5", [("adapter.rank", "32"), ("training.steps", "5")]),
    ("--training.learning-rate 1", [("training.learning_rate", "1")]),
    ("--optimizer.beta2_decay -0.8", [("optimizer.beta2_decay", "-0.8")]),
    ("--data.trigger=--x=y", [("data.trigger", "--x=y")]),
    ("--data.trigger=", [("data.trigger", "")]),
    ("--data.shuffle", [("data.shuffle", "true")]),
    ("--data.shuffle --data.flip", [("data.shuffle", "true"), ("data.flip", "true")]),
    ("--data.shuffle false --data.flip true", [("data.shuffle", "false"), ("data.flip", "true")]),
    ("--base X --data Y --name Z", [("base.path", "X"), ("data.folders", "Y"), ("name", "Z")]),
    ("--data A --data B --name Z --data=C", [("data.folders", '["A", "B", "C"]'), ("name", "Z")]),
    ('--data ["A","B"] --data.folders C', [("data.folders", '["A", "B", "C"]')]),
    ("--data.folder A", [("data.folder", "A")]),
    ("--data.folder A --data 5", [("data.folder", '["A", "5"]')]),
    ("--samples.prompts one --samples.prompts two", [("samples.prompts", '["one", "two"]')]),
]


@pytest.mark.parametrize("line, wanted", RIGHT)
def test_overrides(line, wanted):
    assert cli.parse_overrides(line.split()) == wanted


WRONG = [
    ("--adapter.rnak 3", ["--adapter.rnak: unknown; did you mean --adapter.rank?"]),
    ("--rank 3", ["--rank: unknown; did you mean --adapter.rank or --export.rank?"]),
    ("--trainig.steps 3", ["--trainig.steps: unknown; did you mean --training.steps?"]),
    ("--chek", ["--chek: unknown; did you mean --check?"]),
    ("--presset wora_sdxl", ["--presset: unknown; did you mean --preset?"]),
    ("--qqq 3", ["--qqq: unknown; --help lists all options"]),
    ("--training 3", ["--training: is a section; give one of its options, such as --training.steps"]),
    ("--adapter.rank 3 --adapter.rank 4", ["--adapter.rank: given twice"]),
    ("--base X --base.path X", ["--base.path: given twice"]),
    ("--training.steps", ["--training.steps: needs a value; write --training.steps=VALUE if it begins with --"]),
    ("--training.steps --data.flip",
     ["--training.steps: needs a value; write --training.steps=VALUE if it begins with --"]),
    ("wora_sdxl", ["unexpected 'wora_sdxl'; give options as --section.option value"]),
    ("--training.steps 3 4", ["unexpected '4'; give options as --section.option value"]),
    ("--samples.prompts cat dog",
     ["unexpected 'dog'; give several values as a list: --samples.prompts '[\"one\", \"two\"]'"]),
    ("-x --adapter.rnak 3 --data.flip 4 5",
     ["unexpected '-x'; give options as --section.option value",
      "--adapter.rnak: unknown; did you mean --adapter.rank?",
      "unexpected '5'; give options as --section.option value"]),
]


@pytest.mark.parametrize("line, wanted", WRONG)
def test_problems_of_a_command_line_come_at_once(line, wanted):
    with pytest.raises(PresetProblems) as caught:
        cli.parse_overrides(line.split(), ["--preset", "--check"])
    assert caught.value.problems == wanted


def test_an_old_name_is_accepted(monkeypatch):
    monkeypatch.setitem(renames.RENAMES, "data.mix", "data.shuffle")
    assert cli.parse_overrides(["--data.mix"]) == [("data.mix", "true")]


def test_what_is_parsed_is_what_is_resolved():
    line = "--adapter.method oft --adapter.rotation.block_size 8 --training.learning-rate 2e-3 --data.shuffle --name 7"
    resolved = files.resolve("lora_demo", cli.parse_overrides(line.split()))
    preset = resolved.preset
    assert (preset.adapter.rotation.block_size, preset.training.learning_rate, preset.data.shuffle) == (8, 2e-3, True)
    assert resolved.name == "7"


@pytest.mark.parametrize("long", ["float32", "float16", "bfloat16"])
def test_number_formats_have_one_list_of_spellings(long):
    """Wherever an option is a choice of number formats, and nowhere else."""
    short = {long: short for short, long in section.NUMBER_FORMATS.items()}[long]
    takers = [name for name, field in options.options(Preset).items() if long in get_args(field.annotation)]
    assert {"export.dtype", "base.dtype", "training.precision"} <= set(takers)
    line = [word for name in takers for word in (f"--{name}", short)]
    preset = files.resolve("lora_demo", cli.parse_overrides([*line, "--export.title", short])).preset
    assert all(options.at(preset.model_dump(), name) == long for name in takers)
    assert preset.export.title == short
    with pytest.raises(PresetProblems, match=f"'{short}' is not one of mse"):
        files.resolve("lora_demo", [("objective.loss", short)])


def test_aliases_lead_to_options_and_hide_none():
    known = options.options(Preset)
    assert all(name in known and alias not in known for alias, name in cli.ALIASES.items())


def test_help_names_every_option_with_its_meaning():
    text = cli.options_help()
    for name, field in options.options(Preset).items():
        assert f"  --{name}  (" in text
        tag = name in options.tag_choices(Preset)
        assert tag or cli.description(field).split(".")[0].split()[0] in text
    assert "  --training.warmup  (whole number, in steps, at least 0; default 50)" in text
    assert "  --adapter.method  (one of the following; required)" in text


def test_help_gives_each_method_its_own_form_of_an_option():
    lines = cli.options_help().splitlines()
    for group in options.groups(Preset):
        for name, field in group.options() if group.path == "adapter" else ():
            entries = [line for line in lines if line.startswith(f"  --{name}  ({cli.facts(field)})")]
            marks = [line.rpartition("  [")[2].rstrip("]").split(", ") for line in entries if line.endswith("]")]
            method = dict(group.chosen)["adapter.method"]
            known = len(marks) < len(entries) or any(method in mark for mark in marks)
            assert known or name == "adapter.method", (method, name)
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert len([flag for flag, _ in groupby(flags)]) == len(set(flags)), "the forms of an option stand together"


def test_every_option_has_a_docstring():
    for group in options.groups(Preset):
        assert cli.about(group), group
        for name, field in group.options():
            assert field.description, name
