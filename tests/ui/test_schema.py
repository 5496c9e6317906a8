"""What the window reads off the schema, compared with what the trainer says about the same options and presets."""

import json
import random
from dataclasses import asdict

import pytest
from made_up import (
    are_of_sections,
    of_each_variant,
    schema,
    some_preset,
    trainer_says,
    value_of_all,
    without_refused,
)

from modules.preset import files, options
from modules.preset.schema import Preset
from ui.core import places
from ui.core.check import Findings
from ui.core.preset.schema import ABSENT, Difference, Schema, at, differences, flatten, holds, with_value, without

SEEDS = range(30)

ODD = (None, True, 0, 1, -1, 0.5, 3.0, 1e12, -1e12, 2**32, float("inf"), "", "5", " 5.0 ", "1e-4", "x", "yes",
       [], ["a"], ["a", 5], {}, {"a": 1}, [{}], [{"match": 5, "rank": 0, "lr_scale": "x"}],
       [{"match": "a", "rank": "5", "lr_scale": 2}], [{"match": None, "rnak": 5, "qqq": 1}])  # fmt: skip


# -- fields -----------------------------------------------------------------------------------------------------------


def test_a_preset_has_the_trainer_s_options_in_the_trainer_s_order():
    for values in of_each_variant():
        wanted = list(options.options(Preset, values))
        sections = schema().sections(values)
        assert [field.path for section in sections for field in section.fields] == wanted
        assert list(schema().fields(values)) == wanted
        tops = [path.partition(".")[0] if "." in path else "" for path in wanted]
        assert [section.path for section in sections] == list(dict.fromkeys(tops))
        assert all(section.title and (section.description or section.fields[0].kind == "tag") for section in sections)


def test_every_field_says_what_the_trainer_says():
    seen = set()
    for group in options.groups(Preset):
        everything = schema().everything()
        for path, info in group.options():
            tag = schema().tags.get(group.path)
            if tag and path == tag.path:
                assert everything[path] == [tag] and set(tag.choices) == set(options.choices(Preset, path))
                assert set(tag.descriptions) == set(tag.choices) and all(tag.descriptions.values())
                continue
            (field,) = [one for one in everything[path] if one.description == " ".join((info.description or "").split())
                        and one.default == group.defaults().get(path.rpartition(".")[2])
                        and one.only_with == options.hint(info, "only_with")]  # fmt: skip
            hints = {name: options.hint(info, name) for name in ("why", "unit", "group", "only_with")}
            said = {"why": field.why, "unit": field.unit, "group": field.group, "only_with": field.only_with}
            assert said == hints
            assert (field.advanced, field.required) == (bool(options.hint(info, "advanced")), info.is_required())
            assert field.nullable == (type(None) in options.members(info.annotation))
            bounds = {"ge": field.minimum, "gt": field.exclusive_minimum,
                      "le": field.maximum, "lt": field.exclusive_maximum, "multiple_of": field.multiple_of}  # fmt: skip
            given = {name: bound for one in info.metadata for name, bound in asdict(one).items()}
            assert {name: bound for name, bound in bounds.items() if bound is not None} == given
            assert field.kind == (options.hint(info, "kind") or field.kind) and field.label
            seen.add(id(field))
    plain = [field for fields in schema().everything().values() for field in fields if field.kind != "tag"]
    assert {id(field) for field in plain} == seen, "no field that no option stands behind"


def test_every_path_knows_its_owners():
    for path in options.options(Preset):
        trainers = {tag: tuple(choices) for tag, choices in options.owners(Preset, path).items() if tag != path}
        assert schema().owners(path) == trainers


def test_the_file_has_only_keys_that_the_window_understands():
    known = {"title", "description", "type", "default", "enum", "const", "anyOf", "items", "minimum", "maximum",
             "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "group", "why", "unit", "advanced", "kind",
             "needs", "only_with", "oneOf", "discriminator", "$ref"}  # fmt: skip
    root = json.loads(places.SCHEMA.read_text(encoding="utf-8"))
    assert set(root) - {"$schema", "$defs", "renames", "entries", "implied"} <= {
        *known, "additionalProperties", "properties", "required",
    }
    for node in (root, *root["$defs"].values()):
        assert not node["additionalProperties"]
        for name, inner in node["properties"].items():
            assert set(inner) <= known, f"{node['title']}.{name}"


def test_a_shape_that_the_window_does_not_know_is_refused():
    root = {"$defs": {}, "properties": {"pair": {"title": "Pair", "type": "object", "default": {}}}}
    with pytest.raises(ValueError, match="pair: the schema describes it in a way that the window does not know"):
        Schema(root)


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_odd_values_are_judged_as_the_trainer_judges_them():
    judged = []
    for values in of_each_variant():
        values = with_value(values, "family", schema().fields(values)["family"].choices[0])
        values = {**values, "export": {"host": "comfyui_node", "form": "compact"}}  # with which no option is idle
        for path, field in schema().fields(values).items():
            if field.kind == "tag" or path == "family" or field in judged:
                continue
            judged.append(field)
            for odd in ODD:
                changed = with_value(values, path, odd)
                resolved, wrong = trainer_says(changed)
                problem = field.problem(odd)
                if are_of_sections(wrong) and not problem:
                    continue  # right by itself, but not with the others' defaults
                assert [f"{path}: {one}" for one in problem.splitlines()] == same_words(wrong, path), (path, odd)
                if resolved is not None:
                    assert schema().complete(changed) == (resolved, ()), (path, odd)


def same_words(wrong, path):
    """The trainer's sentences as the window says them: with an entry's number behind the colon."""
    found = Findings(problems=tuple(wrong)).by_path([path])
    return [f"{path}: {one}" for one in found.pop(path, [])] + [*found.values()]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_preset_is_completed_as_the_trainer_completes_it(seed):
    values = some_preset(random.Random(seed))
    assert schema().complete(values) == (trainer_says(values)[0], ())


WRONG = [
    {"adapter": {"method": "lora", "rnak": 8}},
    {"adapter": {"method": "lora", "axis": "input"}},
    {"adapter": {"method": "lroa"}},
    {"adapter": {"rank": 8}},
    {"adapter": {"method": "loha", "init": "gradient"}},  # other methods have the option with other values
    {"adapter": {"method": "lora", "init": "gradeint"}},
    {"adapter": {"method": "oft", "rotation": {"kind": "planes", "block_size": 8}}},
    {"adapter": {"method": "oft", "rotation": {"kind": "plane"}}},
    {"adapter": {"method": "oft", "rotation": {"kind": "plane"}}, "training": {"rank": 8, "steps": 0}},
    {"training": 5},
    {"training": {"rank": 8}},
    {"training": {"learnin_rate": 1, "steps": "many"}},
    {"trainig": {"steps": 8}, "dta": {}, "samples": {"prompts": "a cat"}},
    {"training": {"block_size": 8}},
    {"validation": {"qqq": 8}},
    {"optimizer": {"name": "adamw9"}},
    {"export": {"host": "comfy", "ttle": "x"}},
    {},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: json.dumps(wrong))
def test_a_wrong_preset_has_the_trainer_s_problems(wrong):
    values = {"family": "sdxl", "adapter": {"method": "lora"}, **wrong}
    values = schema().with_tags(values)
    _, wanted = trainer_says(values)
    assert sorted(schema().complete(values)[1]) == sorted(wanted)


def test_what_has_to_be_given():
    values, problems = schema().complete({})
    assert [problem.partition(":")[0] for problem in problems] == ["family", "adapter.method"]
    assert not holds(values, "family") and not holds(values, "adapter")


def test_wrong_values_are_kept_and_unknown_names_are_not():
    values, problems = schema().complete({"training": {"steps": "many", "stesp": 5}, "adapter": {"method": "lora"}})
    assert at(values, "training.steps") == "many" and not holds(values, "training.stesp")
    assert len(problems) == 3


def test_a_section_whose_tag_is_unknown_waits_for_one():
    given = {"family": "sdxl", "adapter": {"method": "lroa", "rank": 5, "axis": "output"}}
    values, problems = schema().complete(given)
    assert values["adapter"] == given["adapter"] == schema().minimal(values)["adapter"] and len(problems) == 1
    assert [path for path in schema().fields(values) if path.startswith("adapter")] == ["adapter.method"]
    values, notes = schema().switched(values, "adapter.method", "lora")
    assert values["adapter"] == schema().complete({"adapter": {"method": "lora", "rank": 5}})[0]["adapter"]
    assert notes == ("adapter.axis = 'output' dropped: method lora has no such option",)


# -- switching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_another_variant_keeps_what_the_trainer_keeps(seed, tmp_path):
    rng = random.Random(seed)
    values = schema().complete(some_preset(rng))[0]
    path = tmp_path / "any.json"
    for _ in range(4):
        tag = rng.choice([field for field in schema().fields(values).values() if field.kind == "tag"])
        choice = rng.choice(tag.choices)
        values = schema().complete(without_refused(values, rng, tag.path, choice))[0]
        path.write_text(json.dumps(values))
        resolved = files.resolve(str(path), [(tag.path, choice)])
        values, notes = schema().switched(values, tag.path, choice)
        assert {**values, "name": ""} == {**resolved.preset.model_dump(mode="json"), "name": ""}
        assert list(notes) == resolved.notes
        section = tag.path.rpartition(".")[0]
        free = [field for path, field in schema().fields(values).items() if path.startswith(f"{section}.")]
        field = rng.choice([field for field in free if field.kind != "tag"])
        values = with_value(values, field.path, value_of_all(field, rng))
        values = schema().complete(without_refused(values, rng))[0]


# -- only what differs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_minimal_preset_says_everything_and_nothing_twice(seed):
    values = schema().complete(some_preset(random.Random(seed)))[0]
    minimal = schema().minimal(values)
    assert schema().complete(minimal) == (values, ()) and trainer_says(minimal)[0] == values
    order = list(schema().fields(values))
    assert list(flatten(minimal)) == [path for path in order if holds(minimal, path)]
    for path in flatten(minimal):
        if schema().fields(values)[path].kind != "tag":
            assert schema().complete(without(minimal, path))[0] != values, f"{path} is not needed"


def test_defaults_need_no_words():
    values, _ = schema().complete({"family": "sdxl", "adapter": {"method": "wora"}})
    assert schema().minimal(values) == {"family": "sdxl", "adapter": {"method": "wora"}}


# -- values by path ---------------------------------------------------------------------------------------------------


def test_a_changed_copy_shares_the_rest():
    values = {"a": {"x": 1, "y": {"z": 2}}, "b": {"x": [1]}}
    changed = with_value(values, "a.y.z", 3)
    assert values["a"]["y"] == {"z": 2} and changed == {"a": {"x": 1, "y": {"z": 3}}, "b": {"x": [1]}}
    assert changed["b"] is values["b"]
    assert with_value({}, "a.b", None) == {"a": {"b": None}}
    assert without({"a": {"b": 1}, "c": 2}, "a.b") == {"c": 2}
    assert (at(values, "a.y.z"), at(values, "a.q"), at(values, "a.x.q")) == (2, None, None)


def test_differences_are_what_differs():
    a, b = {"a": {"x": 1, "y": []}, "b": None, "c": 1}, {"a": {"x": 2, "y": []}, "c": 1.0, "d": {"e": "f"}}
    assert differences(a, b) == [Difference("a.x", 1, 2), Difference("b", None, ABSENT), Difference("d.e", ABSENT, "f")]
    assert differences(a, a) == [] and str(ABSENT) == "(absent)"
