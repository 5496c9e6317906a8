"""Rules of targets.rules: whom they are for, what they change in training and in files, and what is wrong with them."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modules.hosts import comfyui, diffusers, kohya
from modules.preset.files import resolve
from modules.preset.schema import Preset, Targets
from modules.training import check, setup
from modules.training.layer_options import Own, own_settings, uneven_rates
from modules.training.optimizers import AdamW, Prodigy
from tests.training.runs import OPTIONS, Place, ask, equal

FIRST = "unet.down_blocks.1.*.attn1.*"
KEYS = f"{FIRST}to_k"
TARGETS = OPTIONS["targets"]


def ruled(*rules: dict, **targets) -> dict:
    """Sections of a preset with these rules."""
    return {"targets": {**TARGETS, **targets, "rules": list(rules)}}


@pytest.fixture
def found(place: Place):
    """What the check finds, for options as typed and sections."""

    def look(*words: str, **sections) -> check.Findings:
        command = place.command("looked", *words, **sections)
        pairs = list(zip(command[4::2], command[5::2], strict=True))
        preset = resolve(command[1], [(name[2:], text) for name, text in pairs]).preset
        return check.examine(preset, "cpu")

    return look


def ranks(findings: check.Findings) -> dict[str, int]:
    return {name: adapted.adapter.config.rank for name, adapted in findings.adapted.items()}


# -- whom they are for ------------------------------------------------------------------------------------------------


def test_a_pattern_or_a_set_and_the_later_rule_wins_field_by_field(found):
    findings = found(
        **ruled(
            {"match": "attention", "rank": 3, "lr_scale": 0.5},
            {"match": FIRST, "lr_scale": 2},
            {"match": KEYS, "rank": 5},
        )
    )
    assert not findings.problems and len(findings.adapted) == 8
    own = own_settings(
        findings.model,
        Targets(
            **ruled(
                {"match": "attention", "rank": 3, "lr_scale": 0.5},
                {"match": FIRST, "lr_scale": 2},
                {"match": KEYS, "rank": 5},
            )["targets"]
        ),
        findings.adapted,
    )
    keys = {name for name in findings.adapted if ".attn1." in name and name.endswith("to_k")}
    first = {name for name in findings.adapted if ".attn1." in name}
    assert keys and first - keys and findings.adapted.keys() - first
    for name, rank in ranks(findings).items():
        assert rank == own[name].rank == (5 if name in keys else 3)
        assert own[name].lr_scale == (2 if name in first else 0.5)
    (swapped,) = {
        own.lr_scale
        for own in own_settings(
            findings.model,
            Targets(**ruled({"match": FIRST, "lr_scale": 2}, {"match": "attention", "lr_scale": 0.5})["targets"]),
            findings.adapted,
        ).values()
    }
    assert swapped == 0.5


def test_rules_choose_no_layers_and_leave_others_as_they_are(found):
    plain, findings = found(), found(**ruled({"match": KEYS, "rank": 5}))
    assert plain.adapted.keys() == findings.adapted.keys()
    for name, adapted in findings.adapted.items():
        same = plain.adapted[name].adapter.config
        assert adapted.adapter.config == (
            same.model_copy(update={"rank": 5}) if name.endswith("to_k") and ".attn1." in name else same
        )


def test_alpha_stays_a_number_or_follows_the_rank(found):
    for alpha, scale in ((None, 1.0), (6.0, 2.0)):
        adapter = {"method": "lora", "rank": 2, "alpha": alpha}
        findings = found(adapter=adapter, **ruled({"match": "attention", "rank": 3}))
        assert {adapted.adapter.config.scale for adapted in findings.adapted.values()} == {scale}


def test_text_encoders_multiply(found):
    match = "text_encoder.*q_proj"
    targets = ruled(
        {"match": match, "lr_scale": 3}, {"match": FIRST, "lr_scale": 5}, text_encoders=True, text_encoder_lr_scale=0.25
    )
    findings = found(**targets)
    own = own_settings(findings.model, Targets(**targets["targets"]), findings.adapted)
    scales = {(name.startswith("text"), one.lr_scale) for name, one in own.items()}
    assert scales == {(True, 0.75), (True, 0.25), (False, 5.0), (False, 1.0)}


# -- what is wrong ----------------------------------------------------------------------------------------------------

WRONG = [
    (
        [{"match": "unet.mid_blok.*", "rank": 4}],
        "targets.rules[0].match: 'unet.mid_blok.*' matches no layer; layer names look like unet.mid_block.",
    ),
    (
        [{"match": FIRST, "rank": 4}, {"match": "atention", "rank": 4}],
        "targets.rules[1].match: 'atention' matches no layer; did you mean the layer set attention?",
    ),
    ([{"match": "", "rank": 4}], "targets.rules[0].match: '' matches no layer; layer names look like unet."),
    (
        [{"match": "unet.mid_block.*", "rank": 4}],
        "targets.rules[0].match: 'unet.mid_block.*' matches only layers that are not adapted, such as unet.mid_block.",
    ),
    ([{"match": "text_encoder.*", "rank": 4}], "add them with targets.text_encoders, or remove the rule"),
    ([{"match": FIRST}], "targets.rules[0]: has neither rank nor lr_scale; set one of them, or remove the rule"),
]


@pytest.mark.parametrize("rules, sentence", WRONG, ids=[sentence for _, sentence in WRONG])
def test_a_rule_without_use_is_a_problem(found, rules, sentence):
    (problem,) = found(**ruled(*rules)).problems
    assert sentence in problem and problem.startswith("targets.rules[")


def test_a_rank_needs_a_method_that_has_one(found):
    findings = found(adapter={"method": "oft"}, **ruled({"match": FIRST, "rank": 4}, {"match": FIRST, "lr_scale": 2}))
    assert findings.problems == ["targets.rules[0].rank: 4, but method oft has no rank; remove it from the rule"]


def test_all_problems_come_at_once_with_and_without_a_model(found):
    wrong = ruled({"match": "nothing", "rank": 4}, {"match": FIRST}, {"match": FIRST, "lr_scale": 2})
    options = {"adapter": {"method": "oft"}, "optimizer": {"name": "prodigy"}, **wrong}
    rate = ["--training.learning_rate", "1"]
    known = found(*rate, **options).problems
    assert [problem.split(":")[0].split(" ")[0] for problem in known] == [
        "targets.rules[0].rank",
        "targets.rules[1]",
        "targets.rules[0].match",
        "targets.rules[2].lr_scale",
    ]
    unknown = found(*rate, "--base.path", "nowhere", **options).problems
    assert set(known) - set(unknown) == {known[2]} and len(unknown) == 4


def test_a_wrong_set_of_layers_is_not_the_rules_fault(found):
    problems = found(**ruled({"match": FIRST, "rank": 4}, layers="atention", exclude=[])).problems
    assert len(problems) == 1 and problems[0].startswith("targets.layers")


@pytest.mark.parametrize("rules, targets, named", [
    ([{"match": FIRST, "lr_scale": 2}], {}, ["targets.rules[0].lr_scale"]),
    ([{"match": "all", "lr_scale": 2}], {}, []),
    ([{"match": FIRST, "lr_scale": 1}, {"match": FIRST, "rank": 4}], {}, []),
    ([{"match": FIRST, "rank": 4}], {"text_encoders": True}, ["targets.text_encoder_lr_scale"]),
    ([{"match": "text_*", "lr_scale": 2}], {"text_encoders": True}, []),
    ([{"match": FIRST, "lr_scale": 2}, {"match": "attention", "lr_scale": 3}], {"text_encoders": True},
     ["targets.text_encoder_lr_scale"]),
    ([{"match": "text_*", "lr_scale": 3}], {"text_encoders": True},
     ["targets.text_encoder_lr_scale", "targets.rules[0].lr_scale"]),
])  # fmt: skip
def test_one_rate_for_all_is_asked_of_the_options_that_break_it(found, rules, targets, named):
    sections = {"optimizer": {"name": "prodigy"}, **ruled(*rules, **targets)}
    problems = found("--training.learning_rate", "1", **sections).problems
    assert [problem.split(" ")[0] for problem in problems] == named
    assert all("prodigy estimates one for all layers: set it to 1.0" in problem for problem in problems)


def test_prodigy_refuses_groups_of_different_rates():
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr_scale": scale, "decay": True} for scale in (1.0, 2.0)]
    with pytest.raises(ValueError, match="targets.rules"):
        Prodigy().build(groups, 1.0)


# -- training ---------------------------------------------------------------------------------------------------------


def test_every_layer_learns_at_its_rate_with_its_rank(found):
    rules = ruled({"match": FIRST, "rank": 3, "lr_scale": 0.5}, {"match": KEYS, "rank": 1})
    findings = found(**rules)
    groups = setup.parameter_groups(findings.adapted, findings.model, Targets(**rules["targets"]))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) and len(groups) == 4  # two rates, each with and without decay
    optimizer = AdamW().build(groups, 0.01)
    rate_of = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, adapted in findings.adapted.items():
        rates = {rate_of[id(p)] for p in adapted.adapter.parameters() if p.requires_grad}
        assert rates == {0.005 if ".attn1." in name else 0.01}
        rank = (1 if name.endswith("to_k") else 3) if ".attn1." in name else 2
        assert adapted.adapter.down.shape[0] == adapted.adapter.up.shape[1] == rank


def test_a_first_step_is_as_long_as_the_rate_says(place: Place):
    # Adam's first step is the learning rate for each weight that has a gradient: that of up, which starts at zero.
    adapter, steps = {"method": "lora", "rank": 2}, ["--training.steps", "1", "--training.max_grad_norm", "0"]
    rules = ruled({"match": FIRST, "rank": 3, "lr_scale": 0.125})
    options = {"name": "adamw", "weight_decay": 0, "eps": 1e-30}
    assert place.train("one", *steps, adapter=adapter, optimizer=options, **rules) == 0
    ups = {key: tensor for key, tensor in place.adapter("one").items() if key.endswith(".up")}
    for key, up in ups.items():
        scale, rank = (0.125, 3) if ".attn1." in key else (1, 2)
        moved = up[up != 0].abs()
        assert up.shape[1] == rank and len(moved) and torch.allclose(moved, torch.tensor(0.01 * scale), rtol=1e-4)
    rows = [line.split("\t") for line in (place.runs / "one" / "layers.tsv").read_text().splitlines()]
    assert rows[0][-2:] == ["rank", "lr_scale"] and len(rows) == 1 + len(ups)
    assert {(".attn1." in row[0], *row[-2:]) for row in rows[1:]} == {(True, "3", "0.125"), (False, "2", "1")}


@pytest.mark.full
def test_stopped_and_resumed_is_the_whole_run_bit_for_bit(place: Place, monkeypatch):
    rules = ruled({"match": FIRST, "rank": 4, "lr_scale": 0.5}, {"match": KEYS, "rank": 1, "lr_scale": 3})
    assert place.train("whole", **rules) == 0
    ask(monkeypatch, place, "halves", "stop", at=2)
    assert place.train("halves", **rules) == 130
    assert place.train("halves", **rules) == 0
    assert equal(place.adapter("whole"), place.adapter("halves"))
    assert place.train("halves", **ruled({"match": FIRST, "rank": 5})) == 2, "a run of another preset"


def test_the_check_tells_ranks_and_rates_apart(place: Place, capsys):
    sections = ruled({"match": FIRST, "rank": 4, "lr_scale": 0.5})
    assert place.train("looked", "--check", "--json", **sections) == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert {(".attn1." in row["name"], row["rank"], row["lr_scale"]) for row in rows} == {
        (True, 4, 0.5),
        (False, 2, 1.0),
    }
    assert place.train("looked", "--check", **sections) == 0
    text = capsys.readouterr().out
    assert "rank 4, learning rate x 0.5, e.g." in text and "rank 2, e.g." in text
    listed = [line.split() for line in text.splitlines() if ", e.g. " in line]
    assert sum(int(words[0]) for words in listed) == len(rows)
    assert place.train("looked", "--check") == 0
    assert "rank" not in capsys.readouterr().out


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("method", ["lora", "wora"])
@pytest.mark.parametrize("host", [comfyui, kohya, diffusers], ids=lambda host: host.__name__.rpartition(".")[2])
def test_the_file_has_each_layer_s_rank_and_tells_the_truth(place: Place, host, method):
    name = host.__name__.rpartition(".")[2]
    axis = {"axis": "input" if host is kohya else "output"} if method != "lora" else {}
    sections = ruled({"match": FIRST, "rank": 5}, {"match": KEYS, "rank": 1})
    adapter = {"method": method, "rank": 2, "alpha": 3.0, **axis}
    words = ["--training.steps", "2", "--export.host", name, "--export.dtype", "float32"]
    assert place.train(name, *words, adapter=adapter, **sections) == 0  # an inexact file would be refused
    path = place.runs / name / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, names = load_file(path), host.NAMES
    seen = {key: tensor.shape[0] for key, tensor in tensors.items() if key.endswith(names.down)}
    assert set(seen.values()) == {1, 2, 5}
    for key, rank in seen.items():
        stem = key.removesuffix(names.down)
        assert tensors[stem + names.up].shape[1] == rank
        alpha = rank if method == "wora" else 1  # A1111 applies alpha / rank behind a magnitude
        assert not names.alpha or tensors[stem + names.alpha] == alpha
    assert metadata["ss_network_dim"] == "Dynamic"
    assert metadata["ss_network_alpha"] == ("1.0" if names.alpha and method == "lora" else "Dynamic")
    errors = json.loads(metadata["gimbal.errors"])
    assert len(errors) == len(seen) and max(errors.values()) < 1e-5
    assert resolve(str(path)).preset.targets.rules == resolve(str(place.runs / name)).preset.targets.rules != ()


def test_one_rank_is_still_a_number(place: Place):
    assert place.train("even", "--training.steps", "1", **ruled({"match": "attention", "rank": 3})) == 0
    with safe_open(place.runs / "even" / "even.safetensors", "pt") as file:
        assert file.metadata()["ss_network_dim"] == "3"


# -- the parts --------------------------------------------------------------------------------------------------------


def test_nothing_is_uneven_without_layers_or_factors():
    assert uneven_rates([]) == ()
    assert uneven_rates([Own(None, {}), Own(4, {"a": 1.0})]) == ()
    assert uneven_rates([Own(None, {"a": 0.5, "b": 2.0}), Own(None, {})]) == ()
    assert uneven_rates([Own(None, {"a": 0.5, "b": 4.0}), Own(None, {"a": 0.5})]) == (("b", 4.0),)


def test_names_are_told_apart_by_case_like_all_patterns():
    model = SimpleNamespace(networks={"unet": torch.nn.Sequential(torch.nn.Linear(2, 2))}, named_targets=dict)
    targets = Preset.model_validate(
        {"family": "sdxl", "adapter": {"method": "lora"}, "targets": {"rules": [{"match": "UNET.0", "rank": 4}]}}
    ).targets
    assert own_settings(model, targets, ["unet.0"])["unet.0"].rank is None
