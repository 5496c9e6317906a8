"""`targets.layers` as patterns or none: exactly these layers, and sentences about what matches nothing."""

import pytest

from modules.preset.files import resolve
from modules.training import check, setup
from modules.training.matching import parts_of
from tests.training.runs import Place


@pytest.fixture(scope="module")
def model(stage):
    """A tiny base whose weights were not read."""
    from modules import families

    place = Place(stage, stage)
    found, problems = families.read("sdxl", resolve(place.command("model")[1]).preset.base)
    assert not problems
    return found


def matched(model, layers: str, **targets) -> tuple[list[str], list[str]]:
    from modules.preset.schema import Targets

    return setup.match_layers(model, Targets(layers=layers, **targets))


def test_patterns_are_the_choice_itself(model):
    names = setup.layer_names(model)
    blocks = ("unet.down_blocks.1.", "unet.mid_block.")
    found, problems = matched(model, "unet.down_blocks.1.*, unet.mid_block.*")
    assert found == [name for name in names if name.startswith(blocks)] and found and not problems
    assert matched(model, "none", include=["unet.down_blocks.1.*", "unet.mid_block.*"]) == (found, [])
    assert matched(model, "unet.down_blocks.1.*,unet.mid_block.*", exclude=["*attentions*"])[0] == [
        name for name in found if "attentions" not in name
    ]
    one = found[0]
    assert matched(model, one) == ([one], [])


def test_a_set_and_a_pattern_together(model):
    attention, extra = matched(model, "attention")[0], matched(model, "unet.conv_in")[0]
    assert set(matched(model, "attention, unet.conv_in")[0]) == {*attention, *extra} and extra


def test_text_encoders_only_where_they_are_adapted(model):
    assert all(name.startswith("unet.") for name in matched(model, "*")[0])
    assert any(not name.startswith("unet.") for name in matched(model, "*", text_encoders=True)[0])
    text = next(name for name in setup.layer_names(model) if not name.startswith("unet."))
    found, (problem,) = matched(model, text)
    assert not found and problem.startswith(f"targets.layers: '{text}' matches only layers of text encoders")


@pytest.mark.parametrize("layers, words", [
    ("unet.mid_blok.*", ["'unet.mid_blok.*' matches no layer", "layer names look like unet.mid_block."]),
    ("unet.mid_block.*, unet.nothing*", ["'unet.nothing*' matches no layer"]),
    ("atention", ["not a layer set", "did you mean attention?"]),
    ("nothing", ["not a layer set", "none, or patterns"]),
    ("mid_block", ["not a layer set", "did you mean the layers whose names have it, '*mid_block*'?"]),
    ("", ["'' is not a layer set"]),
])  # fmt: skip
def test_what_matches_nothing_is_named(model, layers, words):
    (problem,) = matched(model, layers)[1]
    assert problem.startswith("targets.layers: ") and all(word in problem for word in words), problem


def test_none_needs_something_to_include(model):
    assert matched(model, "none") == ([], [setup.NO_CHOICE])


def test_commas_between_brackets_are_the_patterns_own():
    assert parts_of("a.[0,1].*, b") == ["a.[0,1].*", "b"] and parts_of(" none ") == []


def test_rules_and_the_report_follow(place: Place):
    words = ["--targets.layers", "unet.mid_block.*", "--targets.exclude", "[]"]
    command = place.command("rules", *words)
    pairs = [(name[2:], text) for name, text in zip(command[4::2], command[5::2], strict=True)]
    preset = resolve(command[1], pairs).preset
    found = check.examine(preset, "cpu")
    assert not found.problems and found.adapted
    report = check.report(preset, found)
    assert [row["name"] for row in report["layers"]] == list(found.adapted)
    assert f"{len(found.adapted)} layers, " in check.text(report)
