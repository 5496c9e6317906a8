"""What the loop does for methods beside their forward pass: a penalty, and a word after each step. And the methods that
use it: half a run and a resume are the whole run, bit for bit; two processes are one with twice the batch."""

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from modules.adapters import methods
from modules.training import loop
from modules.training.state import latest_state, load_state
from tests.training import pair
from tests.training.runs import Place, ask, equal
from tests.training.test_processes import close

ADALORA = {"method": "adalora", "rank": 3, "target_rank": 1, "warmup": 0.2, "final": 0.2, "interval": 1}
RACLORA = {"method": "raclora", "rank": 2, "links": 3}
LORA = {"method": "lora", "rank": 2}
SIX = ("--training.steps", "6", "--training.accumulation", "2")


@pytest.fixture
def told(monkeypatch) -> list[tuple[int, int, dict[str, torch.Tensor]]]:
    """What LoRA's adapters were told: step, steps, and the gradients that were there."""
    found = []

    def after_step(cls, adapters, step, steps):
        assert not torch.is_grad_enabled()
        named = enumerate(adapter.named_parameters() for adapter in adapters)
        found.append((step, steps, {f"{n}.{name}": p.grad.clone() for n, pairs in named for name, p in pairs}))
        return []

    monkeypatch.setattr(methods()["lora"].Adapter, "after_step", classmethod(after_step))
    return found


def test_the_method_is_told_of_each_step_with_the_clipped_gradients(place: Place, told):
    assert place.train("told", *SIX, "--training.max_grad_norm", "0.0001", adapter=LORA) == 0
    assert [(step, steps) for step, steps, _ in told] == [(step, 6) for step in range(1, 7)]
    for _, _, gradients in told:
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        assert norm == pytest.approx(1e-4, rel=0.02)


def test_the_method_is_not_told_of_skipped_steps(place: Place, told, monkeypatch):
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: len(seen) == 2))
    seen, check = [], loop.check_finite

    def checked(session, progress, loss, norm):
        seen.append(session.step)
        check(session, progress, loss, norm)

    monkeypatch.setattr(loop, "check_finite", checked)
    assert place.train("skipped", adapter=LORA) == 0
    assert [step for step, *_ in told] == [1, 3, 4]


def test_the_penalty_counts_once_a_step_whatever_the_accumulation(place: Place, told, monkeypatch):
    one = ["--training.steps", "1", "--training.accumulation", "3", "--training.max_grad_norm", "0"]
    assert place.train("without", *one, adapter=LORA) == 0
    penalty = classmethod(lambda cls, adapters: 5 * sum(adapter.up.sum() for adapter in adapters))
    monkeypatch.setattr(methods()["lora"].Adapter, "penalty", penalty)
    assert place.train("with", *one, adapter=LORA) == 0
    (_, _, without), (_, _, found) = told
    for name, gradient in found.items():
        wanted = without[name] + (5 if name.endswith("up") else 0)
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory) -> Place:
    """Six steps of each without a break."""
    place = Place(stage, tmp_path_factory.mktemp("whole"))
    for adapter in (ADALORA, RACLORA):
        assert place.train(adapter["method"], *SIX, adapter=adapter) == 0
    return place


@pytest.mark.full
@pytest.mark.parametrize("adapter, stop", [(ADALORA, 2), (ADALORA, 5), (RACLORA, 2), (RACLORA, 3)])
def test_half_and_half_is_the_whole(place: Place, whole: Place, monkeypatch, adapter, stop):
    """Stopped between two choices, after the last, at the end of a link and in the middle of one."""
    name = adapter["method"]
    ask(monkeypatch, place, name, "stop", at=stop)
    assert place.train(name, *SIX, adapter=adapter) == 130
    assert place.train(name, *SIX, adapter=adapter) == 0
    assert equal(place.adapter(name), whole.adapter(name))
    losses = [[event["loss"] for event in found.events(name, "step")] for found in (place, whole)]
    assert losses[0] == losses[1]


def test_a_new_link_is_new_to_the_optimizer(place: Place, monkeypatch):
    ask(monkeypatch, place, "links", "save", at=2)  # the first link ends there
    assert place.train("links", *SIX, "--saving.keep_states", "5", adapter=RACLORA) == 0
    states = sorted((place.runs / "links" / "state").iterdir())
    assert load_state(states[0]).optimizer_state["state"]["state"] == {}
    last = load_state(latest_state(place.runs / "links"))
    assert {int(state["step"]) for state in last.optimizer_state["state"]["state"].values()} == {2}
    done = {key: tensor for key, tensor in last.adapter.items() if key.endswith(".done")}
    assert done and all(tensor[:, :4].any() and not tensor[:, 4:].any() for tensor in done.values())


def test_the_budget_is_reached_in_the_whole_network(whole: Place):
    kept = [tensor for key, tensor in whole.adapter("adalora").items() if key.endswith(".kept")]
    assert sum(int(tensor.sum()) for tensor in kept) == len(kept)
    curve = [event["adapter"]["rank"] for event in whole.events("adalora", "step") if event["adapter"]]
    assert curve[-1] == 1.0


@pytest.mark.parametrize("adapter", [ADALORA, RACLORA], ids=lambda a: a["method"])
def test_an_optimizer_that_averages_weights_is_refused(place: Place, adapter, capsys):
    assert place.train("averaged", optimizer={"name": "schedulefree_adamw"}, adapter=adapter) == 2
    assert f"averages the weights of all steps, but {adapter['method']} resets" in capsys.readouterr().err


@pytest.mark.full
def test_two_processes_are_one_with_twice_the_batch(place: Place):
    adapter, more = ADALORA, ["--training.steps", "3", "--optimizer.eps", "1.0"]
    command = place.command("two", *more, "--training.batch_size", "1", adapter=adapter)
    codes, said = pair.train(command, place.runs)
    assert codes == [0, 0], said
    assert place.train("one", *more, "--training.batch_size", "2", adapter=adapter) == 0
    close(place.adapter("two"), place.adapter("one"))
