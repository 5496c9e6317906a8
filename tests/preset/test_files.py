"""Presets as files: every way to give one, every way to get one wrong, and what the message says then."""

import json
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from modules import adapters, families
from modules.preset import files
from modules.preset.files import PresetProblems, differences, resolve
from modules.preset.problems import enumerated

LORA = {"family": "sdxl", "adapter": {"method": "lora", "rank": 4}}
OFT = {"family": "sdxl", "adapter": {"method": "oft", "rotation": {"kind": "blocks", "block_size": 8}}}
CONFIGS = {method: module.Config for method, module in adapters.methods().items()}
METHODS = ", ".join(CONFIGS)


def having(option):
    """The methods with this option, as a sentence has them."""
    return enumerated([method for method, config in CONFIGS.items() if option in config.model_fields], "and")


@pytest.fixture
def saved(tmp_path):
    """A function that writes a preset file and returns its path."""

    def save(values, name="mine.json"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return str(path)

    return save


def problems(source, overrides=()):
    with pytest.raises(PresetProblems) as caught:
        resolve(source, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# -- what is wrong, in words -----------------------------------------------------------------------------------------

WRONG = [
    # what the file has more than LORA, or None instead of it; the whole message
    ({"adapter": {"method": "lora", "rnak": 8}}, "adapter.rnak: unknown; did you mean rank?"),
    ({"adapter": {"method": "lora", "axis": "input"}},
     f"adapter.axis: method lora has no such option; it is an option of {having('axis')}"),
    ({"adapter": {"method": "lroa"}},
     f"adapter.method: 'lroa' is not one of {METHODS}; did you mean lora?"),
    ({"adapter": {"rank": 8}}, f"adapter.method: required: one of {METHODS}"),
    ({"adapter": {"method": "oft", "rotation": {"kind": "planes", "block_size": 8}}},
     "adapter.rotation.block_size: kind planes has no such option; it is an option of blocks"),
    ({"adapter": {"method": "oft", "rotation": {"kind": "planes", "planes": 0}}},
     "adapter.rotation.planes: 0 is too small; at least 1"),
    ({"adapter": {"method": "oft", "rotation": {"kind": "plane"}}},
     "adapter.rotation.kind: 'plane' is not one of blocks, planes; did you mean planes?"),
    ({"adapter": "lora"}, "adapter: 'lora' is not a section: give its options in braces, as in {...}"),
    ({"training": 5}, "training: 5 is not a section: give its options in braces, as in {...}"),
    ({"training": {"rank": 8}}, "training.rank: unknown; did you mean adapter.rank or export.rank?"),
    ({"training": {"learnin_rate": 1}}, "training.learnin_rate: unknown; did you mean learning_rate?"),
    ({"trainig": {"steps": 8}}, "trainig: unknown; did you mean training?"),
    ({"training": {"block_size": 8}}, "training.block_size: unknown; did you mean batch_size?"),
    ({"validation": {"qqqqqqqqqq": 8}},
     "validation.qqqqqqqqqq: unknown; validation has every, every_unit, draws, spectrum, ema"),
    ({"training": {"steps": "many"}}, "training.steps: 'many' is not a whole number"),
    ({"training": {"steps": 1.5}}, "training.steps: 1.5 is not a whole number"),
    ({"training": {"steps": None}}, "training.steps: null is not a whole number"),
    ({"training": {"learning_rate": "fast"}}, "training.learning_rate: 'fast' is not a number"),
    ({"training": {"learning_rate": 20}}, "training.learning_rate: 20 is too large; at most 10"),
    ({"training": {"learning_rate": 0}}, "training.learning_rate: 0 is too small; more than 0"),
    ({"training": {"steps": 0}}, "training.steps: 0 is too small; at least 1"),
    ({"training": {"seed": 2**32}}, "training.seed: 4294967296 is too large; less than 4294967296"),
    ({"data": {"part_dropout": 1}}, "data.part_dropout: 1 is too large; less than 1"),
    ({"data": {"flip": "maybe"}}, "data.flip: 'maybe' is not true or false"),
    ({"data": {"trigger": 5}}, "data.trigger: 5 is not a text (in quotes)"),
    ({"samples": {"prompts": "a cat"}}, "samples.prompts: 'a cat' is not a list"),
    ({"samples": {"prompts": ["a", 5]}}, "samples.prompts[1]: 5 is not a text (in quotes)"),
    ({"export": {"host": "comfy"}},
     "export.host: 'comfy' is not one of comfyui, kohya, diffusers, lycoris, comfyui_node; did you mean comfyui?"),
    ({"family": "sdx"}, f"family: 'sdx': no such family; available: {', '.join(families.names())}"),
    ({"name": "a/b"}, "name: 'a/b' is not a valid folder name; remove the slashes"),
    ({"data": {"trigger": ["x" * 100]}}, f"data.trigger: ['{'x' * 75}... is not a text (in quotes)"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_named_with_its_place_and_what_would_be_right(saved, change, message):
    assert problems(saved({**LORA, **change})) == [message]


def test_what_has_to_be_given(saved):
    assert problems(saved({})) == ["family: required", "adapter: required"]


def test_all_problems_come_at_once_in_the_order_of_the_preset(saved):
    wrong = {"family": "sdxl", "adapter": {"method": "lora", "rnak": 8, "rank": -1},
             "training": {"steps": "many", "learning_rate": 20}, "dta": {}}
    assert problems(saved(wrong), [("training.rank", "3"), ("data.flip", "maybe")]) == [
        "training.rank: unknown; did you mean adapter.rank or export.rank?",
        "adapter.rank: -1 is too small; at least 1",
        "adapter.rnak: unknown; did you mean rank?",
        "data.flip: 'maybe' is not true or false",
        "training.steps: 'many' is not a whole number",
        "training.learning_rate: 20 is too large; at most 10",
        "dta: unknown; did you mean data?",
    ]


@pytest.mark.parametrize("method", [method for method, config in CONFIGS.items() if "init" in config.model_fields])
def test_the_values_in_a_message_are_those_of_the_chosen_method(saved, method):
    """Methods have the option `init` with different values."""
    own = ", ".join(get_args(CONFIGS[method].model_fields["init"].annotation))
    message = f"adapter.init: 'gausian' is not one of {own}; did you mean gaussian?"
    values = {"family": "sdxl", "adapter": {"method": method, "init": "gausian"}}
    assert problems(saved(values)) == [message]
    assert problems(saved(LORA), [("adapter.method", method), ("adapter.init", "gausian")]) == [message]


# -- files ------------------------------------------------------------------------------------------------------------

BROKEN = [
    ('{"family": "sdxl",\n  "adapter" {}}', "{path}: is not JSON (line 2, column 13: Expecting ':' delimiter)"),
    ("", "{path}: is not JSON (it is empty)"),
    ("[1]", "{path}: a preset is an object in braces, as in {{...}}"),
    ('{"family": "sdxl", "family": "sdxl"}', "{path}: family is given twice in one section; keep one"),
    ('{"training": {"learning_rate": NaN}}', "{path}: NaN is not a number"),
]


@pytest.mark.parametrize("text, message", BROKEN)
def test_a_broken_file_is_named_with_line_and_column(saved, text, message):
    path = saved(text)
    assert problems(path) == [message.format(path=path)]


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "binary.json"
    path.write_bytes(b'{"name": "\xff"}')
    assert problems(str(path)) == [f"{path}: is not UTF-8 text (byte 11 is 0xff); save it as UTF-8"]


def test_windows_notepad_puts_a_mark_in_front(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(LORA), encoding="utf-8-sig")
    assert resolve(str(path)).name == "mine"


def test_an_unknown_name_gives_the_nearest_ones_and_how_to_list_them():
    (problem,) = problems("wora_sdlx")
    assert problem.startswith("'wora_sdlx': no such preset; did you mean wora_sdxl")
    assert problem.endswith("(python scripts/train.py --list all shows all presets)")
    assert "did you mean" not in problems("qqqqqqq")[0]
    assert "no such preset" in problems("")[0]


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    assert problems(f"{tmp_path}/none.json") == [f"{tmp_path}/none.json: no such file or folder"]
    assert problems(f"{tmp_path}/none") == [f"{tmp_path}/none: no such file or folder"]
    assert problems(f"{tmp_path}/run") == [f"{tmp_path}/run: not a run folder, because it has no preset.json"]
    assert problems(f"{tmp_path}/notes.txt") == [
        f"{tmp_path}/notes.txt: not a preset; presets are .json files, run folders or .safetensors files"
    ]


def test_a_name_a_file_a_run_folder_and_an_exported_file_give_the_same_preset(tmp_path):
    named = resolve("wora_demo")
    run = tmp_path / "wora_demo"
    run.mkdir()
    files.write(named.preset, run / "preset.json")
    metadata = {files.METADATA_KEY: files.to_json(named.preset)}
    save_file({"x": torch.zeros(1)}, tmp_path / "any.safetensors", metadata=metadata)
    for source in (run, run / "preset.json", tmp_path / "any.safetensors"):
        assert resolve(str(source)) == named


def test_exported_files_without_a_preset(tmp_path):
    foreign, broken = tmp_path / "foreign.safetensors", tmp_path / "broken.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    broken.write_bytes(b"nonsense")
    assert problems(str(foreign)) == [
        f"{foreign}: no preset inside; only files written by Gimbal have one (gimbal.preset)"
    ]
    assert problems(str(broken))[0].startswith(f"{broken} is damaged or not a safetensors file")


def test_the_name_is_the_preset_s_or_the_file_s(saved, tmp_path):
    assert resolve(saved(LORA)).name == resolve(saved(LORA)).preset.name == "mine"
    assert resolve(saved({**LORA, "name": "other"})).name == "other"
    assert resolve(saved(LORA), [("name", "given")]).name == "given"
    assert resolve(saved(LORA, "preset.json")).name == tmp_path.name


# -- based_on ---------------------------------------------------------------------------------------------------------


def test_a_preset_is_merged_into_the_one_it_is_based_on(saved):
    saved({**LORA, "name": "base", "description": "Base.", "training": {"steps": 7, "batch_size": 3}}, "base.json")
    preset = resolve(saved({"based_on": "base.json", "training": {"steps": 9}, "adapter": {"alpha": 2}})).preset
    assert (preset.training.steps, preset.training.batch_size) == (9, 3)
    assert (preset.adapter.method, preset.adapter.rank, preset.adapter.alpha) == ("lora", 4, 2)
    assert (preset.name, preset.description) == ("mine", ""), "two runs of one name would share a folder"


TAGGED = [
    # base's section, own section, result
    ({"method": "lora", "rank": 4}, {"method": "lora", "alpha": 2}, {"method": "lora", "rank": 4, "alpha": 2}),
    ({"method": "lora", "rank": 4}, {"method": "dora"}, {"method": "dora", "rank": 16}),
    (OFT["adapter"], {"rotation": {"kind": "planes"}}, {"method": "oft", "rotation": {"kind": "planes", "planes": 4}}),
    (OFT["adapter"], {"rotation": {"block_size": 4}}, {"rotation": {"kind": "blocks", "block_size": 4}}),
    (OFT["adapter"], {"method": "doft"}, {"method": "doft", "rotation": {"kind": "blocks", "block_size": 32}}),
    ({"method": "oft", "rotation": {"block_size": 4}}, {"method": "oft"}, {"rotation": {"block_size": 4}}),
]


@pytest.mark.parametrize("base, own, wanted", TAGGED)
def test_a_tagged_section_of_another_kind_replaces_the_whole_section(saved, base, own, wanted):
    saved({"family": "sdxl", "adapter": base}, "base.json")
    adapter = resolve(saved({"based_on": "base.json", "adapter": own})).preset.adapter.model_dump()
    rotation = wanted.pop("rotation", {})
    assert adapter.items() >= wanted.items()
    assert adapter.get("rotation", {}).items() >= rotation.items()


def test_an_optimizer_without_a_name_is_the_base_s_or_the_default_one(saved):
    saved({**LORA, "optimizer": {"name": "adafactor"}}, "base.json")
    own = {"optimizer": {"weight_decay": 0.5}}
    assert resolve(saved({"based_on": "base.json", **own})).preset.optimizer.name == "adafactor"
    default = resolve(saved({**LORA, **own})).preset.optimizer
    assert (default, default.weight_decay) == (type(resolve(saved(LORA)).preset.optimizer)(weight_decay=0.5), 0.5)


def test_based_on_has_one_level_and_finds_names_and_files_beside_it(saved, tmp_path):
    assert resolve(saved({"based_on": "lora_sdxl"})).preset.adapter.method == "lora"
    middle, own = saved({"based_on": "lora_sdxl"}, "middle.json"), saved({"based_on": "middle.json"})
    assert problems(own) == [
        f"{own}: based_on: middle.json is itself based on 'lora_sdxl', but only one level is allowed"
    ]
    assert middle.startswith(str(tmp_path))
    assert problems(saved({"based_on": "none.json"})) == [f"{tmp_path}/none.json: no such file or folder"]
    assert problems(saved({"based_on": 5})) == [f"{own}: based_on: 5 is not a preset name"]


# -- overrides --------------------------------------------------------------------------------------------------------

OVERRIDES = [
    ("adapter.rank", "32", lambda p: p.adapter.rank, 32),
    ("training.learning_rate", "2e-4", lambda p: p.training.learning_rate, 2e-4),
    ("training.learning_rate", ".5", lambda p: p.training.learning_rate, 0.5),
    ("training.steps", "2e3", lambda p: p.training.steps, 2000),
    ("training.epochs", "null", lambda p: p.training.epochs, None),
    ("objective.min_snr_gamma", "null", lambda p: p.objective.min_snr_gamma, None),
    ("data.shuffle", "true", lambda p: p.data.shuffle, True),
    ("data.shuffle", "False", lambda p: p.data.shuffle, False),
    ("name", "123", lambda p: p.name, "123"),
    ("name", "null", lambda p: p.name, "null"),
    ("data.trigger", "[sks]", lambda p: p.data.trigger, "[sks]"),
    ("data.trigger", '"sks"', lambda p: p.data.trigger, '"sks"'),
    ("data.trigger", "", lambda p: p.data.trigger, ""),
    ("samples.prompts", "red apple, noto style", lambda p: p.samples.prompts, ("red apple, noto style",)),
    ("samples.prompts", "7", lambda p: p.samples.prompts, ("7",)),
    ("samples.prompts", '["a", "b"]', lambda p: p.samples.prompts, ("a", "b")),
    ("samples.prompts", "[a] cat", lambda p: p.samples.prompts, ("[a] cat",)),
    ("samples.prompts", "[]", lambda p: p.samples.prompts, ()),
    ("export.host", "kohya", lambda p: p.export.host, "kohya"),
    ("optimizer.weight_decay", "0", lambda p: p.optimizer.weight_decay, 0),
]


@pytest.mark.parametrize("name, text, read, wanted", OVERRIDES)
def test_the_type_of_an_option_decides_what_its_text_means(saved, name, text, read, wanted):
    value = read(resolve(saved(LORA), [(name, text)]).preset)
    assert (value, type(value)) == (wanted, type(wanted)) or (isinstance(wanted, int) and value == wanted)


WRONG_OVERRIDES = [
    ([("training.steps", "many")], "training.steps: 'many' is not a whole number"),
    ([("training.learning_rate", "nan")], "training.learning_rate: 'nan' is not a finite number"),
    ([("training.learning_rate", "Infinity")], "training.learning_rate: inf is not a finite number"),
    ([("adapter.rnak", "3")], "adapter.rnak: unknown; did you mean rank?"),
    ([("trainig.steps", "3")], "trainig.steps: unknown; did you mean training.steps?"),
    ([("training.steps.x", "3")], "training.steps.x: unknown; did you mean training.steps?"),
    ([("training", "3")], "training: is a section; give one of its options, such as training.steps"),
    ([("adapter.method", "oft"), ("adapter.rank", "4")],
     f"adapter.rank: method oft has no such option; it is an option of {having('rank')}"),
    ([("adapter.rank", "4"), ("adapter.method", "oft")],
     f"adapter.rank: method oft has no such option; it is an option of {having('rank')}"),
    ([("adapter.rotation.kind", "planes")],
     f"adapter.rotation.kind: method lora has no such option; it is an option of {having('rotation')}"),
    ([("adapter.method", "lroa"), ("adapter.rank", "4")],
     f"adapter.method: 'lroa' is not one of {METHODS}; did you mean lora?"),
]


@pytest.mark.parametrize("overrides, message", WRONG_OVERRIDES)
def test_a_wrong_override(saved, overrides, message):
    assert problems(saved(LORA), overrides) == [message]


def test_another_method_drops_what_only_the_old_one_knows_and_says_so(saved):
    resolved = resolve(saved({**LORA, "adapter": {"method": "dora", "rank": 4, "norm_gradient": "full"}}),
                       [("adapter.method", "lora")])
    assert resolved.preset.adapter == CONFIGS["lora"](rank=4)
    assert resolved.notes == ["adapter.norm_gradient = 'full' dropped: method lora has no such option"]


def test_another_kind_of_rotation(saved):
    resolved = resolve(saved(OFT), [("adapter.rotation.planes", "2"), ("adapter.rotation.kind", "planes")])
    assert resolved.preset.adapter.rotation.model_dump() == {"kind": "planes", "planes": 2}
    assert resolved.notes == ["adapter.rotation.block_size = 8 dropped: kind planes has no such option"]


def test_method_and_kind_together(saved):
    overrides = [("adapter.rotation.kind", "planes"), ("adapter.method", "doft"), ("adapter.rotation.planes", "2")]
    adapter = resolve(saved(LORA), overrides).preset.adapter
    assert adapter == CONFIGS["doft"](rotation={"kind": "planes", "planes": 2})


def test_a_typing_error_in_the_file_is_not_dropped_with_the_method(saved):
    path = saved({**LORA, "adapter": {"method": "lora", "rnak": 4}})
    assert problems(path, [("adapter.method", "dora")]) == ["adapter.rnak: unknown; did you mean rank?"]


def test_defaults_of_the_old_variant_in_a_complete_preset_are_not_carried_over(saved):
    complete = files.to_json(resolve(saved({**LORA, "optimizer": {"name": "adamw", "weight_decay": 0.3}})).preset)
    lion = resolve(saved(complete), [("optimizer.name", "lion8bit")]).preset.optimizer
    assert (lion.beta2, lion.weight_decay) == (type(lion)().beta2, 0.3)


# -- writing and comparing --------------------------------------------------------------------------------------------


def test_written_presets_are_read_back_the_same_and_leave_nothing_else(tmp_path):
    overrides = [("data.trigger", 'süß "quoted" 🙂'), ("training.learning_rate", "1e-7")]
    preset = resolve("doft_planes_demo", overrides).preset
    path = tmp_path / "preset.json"
    files.write(preset, path)
    files.write(preset, path)
    assert resolve(str(path)).preset == preset
    assert [file.name for file in tmp_path.iterdir()] == ["preset.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "preset.json"
    path.write_text("old")
    monkeypatch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write(resolve("lora_demo").preset, path)
    assert path.read_text() == "old"


def test_differences():
    lora = resolve("lora_demo").preset
    assert differences(lora, lora) == []
    changed = resolve("lora_demo", [("training.steps", "9"), ("samples.prompts", "cat"), ("adapter.alpha", "3")]).preset
    assert differences(lora, changed) == [
        ("adapter.alpha", None, 3.0), ("training.steps", lora.training.steps, 9),
        ("samples.prompts", list(lora.samples.prompts), ["cat"]),
    ]
    dora = resolve("lora_demo", [("adapter.method", "dora")]).preset
    found = differences(lora, dora)
    assert [one for one in found if one[2] != files.ABSENT] == [
        ("adapter.method", "lora", "dora"), ("adapter.axis", files.ABSENT, "input"),
        ("adapter.magnitude", files.ABSENT, "relative"), ("adapter.norm_gradient", files.ABSENT, "detached"),
    ]
    assert ("adapter.rank_dropout", 0.0, files.ABSENT) in found
