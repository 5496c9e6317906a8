"""Text encoders that learn at their own rates, and stop learning before the end."""

import json

import pytest
import torch
from safetensors import safe_open

from modules.preset.files import resolve
from modules.preset.schema import Targets
from modules.training import check, freezing, setup, state
from modules.training.layer_options import own_settings
from modules.training.optimizers import DEFAULT, AdamW
from tests.training.runs import OPTIONS, Place, equal, stop_and_resume

pytestmark = pytest.mark.usefixtures("forget_accelerate")

STEPS, STOP = 5, 2
SECOND = "text_encoder_2"


def sections(**targets) -> dict:
    """Both text encoders learn; the second stops after two of five steps."""
    chosen = {"layers": "unet.down_blocks.1.*.attn1.to_[qk], text_encoder*.q_proj", "text_encoders": True,
              "encoders": [{"name": SECOND, "lr_scale": 3, "stop": STOP / STEPS}], **targets}
    return {"targets": chosen, "adapter": {"method": "lora", "rank": 2},
            "optimizer": {"name": "adamw", "weight_decay": 0.5},
            "training": {**OPTIONS["training"], "steps": STEPS, "batch_size": 1},
            "saving": {"state_every": 1, "keep_states": 9}}


def looked(place: Place, *words: str, **given) -> check.Findings:
    command = place.command("looked", *words, **{**sections(), **given})
    pairs = list(zip(command[4::2], command[5::2], strict=True))
    return check.examine(resolve(command[1], [(name[2:], text) for name, text in pairs]).preset, "cpu")


def states(place: Place, name: str) -> list[dict[str, torch.Tensor]]:
    return [state.load_state(folder).adapter for folder in state.states(place.runs / name)]


def part(tensors: dict[str, torch.Tensor], network: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{network}.")}


def test_each_encoder_has_its_rate_and_rules_multiply_it(place: Place):
    targets = sections(rules=[{"match": "text_encoder*.layers.0.*", "lr_scale": 2}])["targets"]
    found = looked(place, targets=targets)
    own = own_settings(found.model, Targets(**targets), found.adapted)
    rates = {(name.partition(".")[0], ".layers.0." in name): (one.lr_scale, one.stop) for name, one in own.items()}
    assert rates == {("unet", False): (1, 1), ("text_encoder", True): (1, 1), ("text_encoder", False): (0.5, 1),
                     (SECOND, True): (6, 0.4), (SECOND, False): (3, 0.4)}
    optimizer = AdamW().build(setup.parameter_groups(found.adapted, found.model, Targets(**targets)), 0.01)
    assert sorted({group["initial_lr"] for group in optimizer.param_groups}) == [0.005, 0.01, 0.03, 0.06]


@pytest.mark.parametrize("targets, sentence", [
    ({"encoders": [{"name": "text_encoder_3", "stop": 0.5}]},
     "targets.encoders[0].name: 'text_encoder_3' is no text encoder of this model; available: text_encoder, "
     "text_encoder_2"),
    ({"encoders": [{"name": SECOND, "stop": 0.5}], "exclude": ["text_encoder_2.*"]},
     "targets.encoders[0].name: no layer of text_encoder_2 is adapted"),
    ({"encoders": [{"name": SECOND}]}, "targets.encoders[0]: has neither lr_scale nor stop; set one of them"),
    ({"exclude": ["unet.*"], "text_encoder_stop": 0.5}, "only text encoders are trained, and all that is trained"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(place: Place, targets, sentence):
    (problem,) = looked(place, **sections(**targets)).problems
    assert sentence in problem


def test_what_has_no_effect_is_said(place: Place):
    late = looked(place, **sections(encoders=[], text_encoder_stop=0.95)).notes
    assert [note for note in late if "text_encoder_stop" in note] == [
        "a stop after 0.95 of the steps (targets.text_encoder_stop, encoders or tokens) has no effect: it is after the "
        "last of 5 steps"]
    off = {"layers": "attention", "text_encoder_stop": 0.5, "encoders": [{"name": SECOND, "stop": 0.5}]}
    notes = looked(place, targets=off).notes
    assert any(note.startswith("targets.text_encoder_stop 0.5 has no effect without") for note in notes)
    prodigy = {**sections(), "optimizer": {"name": "prodigy"}}
    problems = looked(place, "--training.learning_rate", "1", **prodigy).problems
    assert [problem.split(" ")[0] for problem in problems] == [
        "targets.text_encoder_lr_scale", "targets.encoders[0].lr_scale"]


def test_a_stopped_encoder_stays_bit_for_bit(place: Place):
    """With momentum and weight decay, which would go on. The file says both rates."""
    assert place.train("run", **sections()) == 0
    found = states(place, "run")
    assert len(found) == STEPS
    for before, after, number in zip(found, found[1:], range(1, STEPS), strict=False):
        assert equal(part(before, SECOND), part(after, SECOND)) == (number >= STOP)
        assert not equal(part(before, "text_encoder"), part(after, "text_encoder"))
        assert not equal(part(before, "unet"), part(after, "unet"))
    with safe_open(place.runs / "run" / "run.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ss_text_encoder_lr"]) == [0.005, 0.03]


@pytest.mark.full
@pytest.mark.parametrize("name", ["adafactor", "prodigy", "schedulefree_adamw", "lora_rite", "lora_pre", DEFAULT.name])
def test_no_optimizer_moves_what_has_stopped(place: Place, name):
    if name == DEFAULT.name and not torch.cuda.is_available():
        pytest.importorskip("bitsandbytes")
    same = {"text_encoder_lr_scale": 1, "encoders": [], "text_encoder_stop": STOP / STEPS}
    rate = ("--training.learning_rate", "1" if name == "prodigy" else "0.01")
    assert place.train("run", *rate, **{**sections(**same), "optimizer": {"name": name}}) == 0
    found = states(place, "run")
    for after in found[STOP:]:
        assert equal(part(found[STOP - 1], "text_encoder"), part(after, "text_encoder"))
        assert equal(part(found[STOP - 1], SECOND), part(after, SECOND))
    assert not equal(part(found[-2], "unet"), part(found[-1], "unet"))
    assert not equal(part(found[0], SECOND), part(found[1], SECOND))


@pytest.mark.full
@pytest.mark.parametrize("at", [1, STOP, 3])
def test_a_run_that_is_resumed_before_at_and_after_the_stop_is_the_whole_run(place: Place, monkeypatch, at):
    averaged = {**sections()["training"], "ema": "device", "ema_decay": 0.6}
    more = {**sections(), "training": averaged}
    assert place.train("whole", **more) == 0
    stop_and_resume(monkeypatch, place, "parts", at, **more)
    assert equal(place.adapter("whole"), place.adapter("parts"))
    whole, parts = (state.load_state(state.states(place.runs / name)[-1]) for name in ("whole", "parts"))
    assert equal(whole.adapter, parts.adapter) and equal(whole.ema, parts.ema)
    assert str(whole.optimizer_state) == str(parts.optimizer_state)


def test_a_longer_run_says_what_would_have_been_different():
    assert freezing.replanned([1.0, 0.5], 40, 100, 200) == ""
    assert freezing.replanned([1.0, 0.5], 60, 100, 200) == (
        "the text encoders' training stopped after step 50, and would stop after step 100 now")
    assert [freezing.last_step(share, 7) for share in (0.01, 0.5, 1.0)] == [1, 4, 7]


def test_no_graph_is_kept_where_no_text_encoder_is_trained_any_more(place: Place):
    with place.session("run", **sections(encoders=[], text_encoder_stop=STOP / STEPS)) as session:
        for session.step in range(STEPS):
            assert session.encode(["red"])["hidden"].requires_grad == (session.step < STOP)
