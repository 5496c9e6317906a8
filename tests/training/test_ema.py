"""The moving average of the weights: diffusers' own, the same after a stop, and shown only where it is asked for."""

import sys

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from modules.preset.schema import Preset, Training
from modules.training import ema, optimizers, setup, state
from modules.training.ema import Ema
from modules.training.state import states
from scripts import export
from tests.training.runs import Place, ask, equal

pytestmark = pytest.mark.usefixtures("forget_accelerate")

AVERAGED = {"ema": "device", "ema_decay": 0.7, "ema_start": 1, "ema_every": 2}
SECTIONS = {"adapter": {"method": "lora", "rank": 2}, "saving": {"state_every": 1, "keep_states": 9, "keep_best": True}}


def moving(steps: int = 12) -> tuple[dict[str, torch.nn.Parameter], list[list[torch.Tensor]]]:
    """Two parameters, one of transposed memory, and their values after each of some steps."""
    draw = torch.Generator().manual_seed(0)
    values = [[torch.randn(3, 4, generator=draw), torch.randn(5, generator=draw)] for _ in range(steps)]
    return {"a": torch.nn.Parameter(torch.zeros(4, 3).T), "b": torch.nn.Parameter(torch.zeros(5))}, values


def set_to(parameters: dict[str, torch.nn.Parameter], values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters.values(), values, strict=True):
            parameter.copy_(value)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("place", ["device", "main_memory"])
def test_the_average_is_that_of_diffusers(start, place):
    parameters, values = moving()
    own = Ema(parameters, Training(ema=place, ema_decay=0.4, ema_start=start))
    theirs = EMAModel(parameters.values(), decay=0.4, update_after_step=start, foreach=True)
    for step, value in enumerate(values, 1):
        set_to(parameters, value)
        own.update(step)
        theirs.step(parameters.values())
        found = own.tensors() or parameters  # before the start, the trained ones
        torch.testing.assert_close([*map(torch.Tensor.detach, found.values())], theirs.shadow_params)


def test_every_third_step_is_averaged_with_the_decay_of_its_step():
    parameters, values = moving()
    own = Ema(parameters, Training(ema="device", ema_decay=0.6, ema_start=1, ema_every=3))
    for step, value in enumerate(values, 1):
        set_to(parameters, value)
        own.update(step)
    expected = values[3][0]  # step 4 is the first; the decay is that of the steps since the start
    for step in (7, 10):
        kept = min(0.6, (1 + step - 2) / (10 + step - 2))
        expected = kept * expected + (1 - kept) * values[step - 1][0]
    torch.testing.assert_close(own.tensors()["a"], expected)


def test_the_trained_values_come_back_bit_for_bit_also_after_an_error():
    parameters, values = moving()
    own = Ema(parameters, Training(ema="main_memory"))
    for step in (1, 2):
        set_to(parameters, values[step])
        own.update(step)
    with pytest.raises(RuntimeError, match="inside"), own.shown():
        assert all(torch.equal(parameters[name], value) for name, value in own.tensors().items())
        assert not torch.equal(parameters["a"], values[2][0])
        raise RuntimeError("inside")
    assert torch.equal(parameters["a"], values[2][0]) and torch.equal(parameters["b"], values[2][1])


# -- in a run ---------------------------------------------------------------------------------------------------------


def learn(place: Place, name: str, *more: str, **sections) -> int:
    training = {"steps": 4, "batch_size": 1, "learning_rate": 0.01, "schedule": "constant", "warmup": 0,
                "gradient_checkpointing": False, **sections.pop("training", {})}
    return place.train(name, *more, **{**SECTIONS, "training": training, **sections})


def trained(place: Place, name: str, step: int = 4) -> dict[str, torch.Tensor]:
    return state.load_state(place.runs / name / "state" / f"step-{step:06d}").adapter


@pytest.mark.full
def test_a_stopped_run_with_an_average_is_the_whole_run(place: Place, monkeypatch):
    assert learn(place, "plain") == 0
    assert learn(place, "whole", training=AVERAGED, validation={"every": 1, "draws": 1}) == 0
    with monkeypatch.context() as patch:
        ask(patch, place, "parts", "stop", at=3)
        assert learn(place, "parts", training=AVERAGED, validation={"every": 1, "draws": 1}) == 130
    assert learn(place, "parts", training=AVERAGED, validation={"every": 1, "draws": 1}) == 0
    assert equal(place.adapter("whole"), place.adapter("parts"))
    newest = [state.load_state(states(place.runs / name)[-1]) for name in ("whole", "parts")]
    kept = newest[0].ema
    assert equal(kept, newest[1].ema) and equal(kept, {name: place.adapter("whole")[name] for name in kept})
    assert equal(trained(place, "plain"), trained(place, "whole")), "the training differs"
    assert not equal(place.adapter("plain"), place.adapter("whole"))
    assert not state.load_state(states(place.runs / "whole")[1]).ema, "an average before its start"
    whole, parts = ([(event["step"], event["loss"]) for event in place.events(name, "validation")]
                    for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.full
def test_each_output_shows_the_weights_that_its_option_says(place: Place, monkeypatch):
    """Of one run with averages everywhere and one with the trained weights: all else is alike."""
    drawn = {"enabled": True, "steps": 1, "prompts": ["red apple"], "width": 16, "height": 16}
    off = {"samples": {**drawn, "ema": False}, "validation": {"draws": 1, "ema": False}, "export": {"ema": False}}
    averaged = {**AVERAGED, "ema": "main_memory", "ema_start": 0, "ema_every": 1}
    assert learn(place, "on", training=averaged, samples=drawn, validation={"draws": 1}) == 0
    assert learn(place, "off", training=averaged, **off) == 0
    assert equal(place.adapter("off"), trained(place, "on"))
    assert equal(trained(place, "off"), trained(place, "on")) and not equal(place.adapter("on"), place.adapter("off"))
    last = {name: place.events(name, "validation")[-1]["loss"] for name in ("on", "off")}
    pictures = {name: sorted((place.runs / name / "samples").glob("*000004*"))[0].read_bytes() for name in last}
    files = {name: load_file(place.runs / name / f"{name}.safetensors") for name in last}
    assert last["on"] != last["off"] and pictures["on"] != pictures["off"] and not equal(files["on"], files["off"])
    # and afterwards: a state has both
    out = place.runs / "again.safetensors"
    for words, expected in ((["--state", "4"], "on"), (["--state", "4", "--ema", "false"], "off"), ([], "on")):
        monkeypatch.setattr(sys, "argv", ["export.py", str(place.runs / "on"), *words, "--out", str(out)])
        assert export.main() == 0
        assert equal(load_file(out), files[expected]), words
        out.unlink()


def test_a_finished_adapter_has_one_kind_of_weights_only(place: Place, monkeypatch, capsys):
    assert learn(place, "run", training={**AVERAGED, "steps": 3}) == 0
    monkeypatch.setattr(sys, "argv", ["export.py", str(place.runs / "run"), "--ema", "false"])
    assert export.main() == 2
    assert "has the averaged weights only; give a training state with --state" in capsys.readouterr().err


def test_a_state_without_its_average_is_not_resumed():
    parameters, _ = moving()
    options = Training(ema="device", ema_start=2)
    ema.check(options, parameters, {}, 2)
    ema.check(options, parameters, parameters, 3)
    for saved, step in (({}, 3), ({"a": parameters["a"]}, 3), (parameters, 2)):
        with pytest.raises(ValueError, match=r"training\.ema"):
            ema.check(options, parameters, saved, step)


# -- what the check says ----------------------------------------------------------------------------------------------


def preset(method: str = "lora", optimizer: str = "adamw", **sections) -> Preset:
    return Preset.model_validate({"family": "sdxl", "adapter": {"method": method}, "optimizer": {"name": optimizer},
                                  **sections})


def test_averages_of_averages_and_of_reset_weights_are_refused():
    on = {"training": {"ema": "device"}}
    assert setup.optimizer_problems(preset(**on)) == []
    (problem,) = setup.optimizer_problems(preset(optimizer="schedulefree_adamw", **on))
    assert problem.startswith("training.ema is device, but a schedule-free optimizer averages the weights itself")
    (problem,) = setup.optimizer_problems(preset("raclora", **on))
    assert "raclora resets some of the weights" in problem and "set training.ema to none" in problem
    assert setup.optimizer_problems(preset("raclora")) == []
    assert ema.problems(Training(), optimizers.ScheduleFreeAdamW(), "raclora") == []


def test_notes_on_an_average_that_never_begins_and_on_the_best():
    given = preset(training={"ema": "device", "ema_start": 10, "ema_every": 5}, saving={"keep_best": True})
    assert ema.notes(given, 15) == [] and ema.notes(preset(), 1) == []
    (note,) = ema.notes(given, 14)
    assert "has no effect: the first step that is averaged is 15" in note and "the training has 14" in note
    other = preset(training={"ema": "device"}, saving={"keep_best": True}, export={"ema": False})
    (note,) = ema.notes(other, 100)
    assert "the loss of the averaged weights" in note and "exports the trained ones" in note
