"""Dropout and the largest norm in trainings: resuming, accumulation, layers computed again; where they are off."""

from types import SimpleNamespace

import pytest
import torch

from modules.adapters.base import adapter_state
from modules.training import active_ranks, loop
from modules.training.feed import Feed
from modules.training.outputs import validate
from tests.training.runs import Place, ask, equal
from tests.training.test_rules import found as found  # a fixture

DROPS = {"method": "lora", "rank": 4, "init": "orthogonal", "dropout": 0.3, "rank_dropout": 0.3, "module_dropout": 0.2,
         "min_rank": 1}
MORE = ("--training.accumulation", "2", "--targets.text_encoders", "true")


@pytest.mark.parametrize("adapter", [
    DROPS | {"max_norm": 0.02},
    pytest.param({"method": "wora", "rank": 4, "module_dropout": 0.3, "max_norm": 0.02,
                  "magnitude": "absolute", "first_alpha": 8.0, "channel_alpha": True}, marks=pytest.mark.full),
], ids=lambda adapter: adapter["method"])
def test_a_resumed_run_equals_an_uninterrupted_one(place: Place, monkeypatch, adapter):
    options = {"adapter": adapter}
    assert place.train("whole", *MORE, **options) == 0
    ask(monkeypatch, place, "parts", "stop", at=2)
    assert place.train("parts", *MORE, **options) == 130
    assert place.train("parts", *MORE, **options) == 0
    assert equal(place.adapter("parts"), place.adapter("whole"))


def started(session) -> None:
    """Away from the start, where `up` is zero and nothing that is dropped has a gradient."""
    for number, adapted in enumerate(session.adapted.values()):
        generator = torch.Generator().manual_seed(number)
        adapted.adapter.up.data.copy_(0.1 * torch.randn(adapted.adapter.up.shape, generator=generator))


def gradient(place: Place, name: str, *more: str, **adapter) -> torch.Tensor:
    """Of the first step."""
    words = ("--training.max_grad_norm", "0", "--optimizer.weight_decay", "0", *more)
    data = {"resolution": 16, "folders": [str(place.stage / "one")]}  # one picture: the order cannot differ
    with place.session(name, *words, adapter=DROPS | adapter, data=data) as session:
        started(session)
        loop.take_step(session, loop.Progress(Feed(session)))
        assert all(one.adapter.active is None for one in session.adapted.values())
        assert "dropout" not in DROPS or all(one.adapter.drop is None for one in session.adapted.values())
        return session.flat.gradients.clone()


def test_accumulation_and_recomputed_layers_change_nothing(place: Place):
    whole = gradient(place, "one", "--training.batch_size", "2")
    for name, more in (("two", ("--training.batch_size", "1", "--training.accumulation", "2")),
                       ("again", ("--training.gradient_checkpointing", "true"))):
        torch.testing.assert_close(gradient(place, name, *more), whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    other = gradient(place, "other", "--training.batch_size", "2", dropout=0.31)
    assert (other - whole).norm() > 0.01 * whole.norm()


def test_active_ranks_follow_each_samples_own_noise_level(place: Place):
    """T-LoRA without dropout, in the fused passes: a batch, its samples one by one with layers computed again."""
    adapter = {"method": "dora", "rank": 4, "init": "orthogonal", "min_rank": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "DROPS", adapter)
        whole = gradient(place, "levels", "--training.batch_size", "2")
        one_by_one = ("--training.batch_size", "1", "--training.accumulation", "2",
                      "--training.gradient_checkpointing", "true")
        again = gradient(place, "levels-again", *one_by_one)
        other = gradient(place, "levels-other", "--training.batch_size", "2", min_rank_power=4)
    torch.testing.assert_close(again, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    assert (other - whole).norm() > 0.01 * whole.norm()


def test_a_model_that_computes_samples_one_by_one_needs_batches_of_one(place: Place):
    from modules.preset.files import resolve

    command = place.command("any", "--training.batch_size", "2", adapter={"method": "lora", "rank": 4, "min_rank": 1})
    preset = resolve(command[1], [("training.batch_size", "2")]).preset
    model = SimpleNamespace(one_by_one=True)
    assert "needs training.batch_size 1" in active_ranks.problems(preset, model)[0]
    single = preset.model_copy(update={"training": preset.training.model_copy(update={"batch_size": 1})})
    assert not active_ranks.problems(single, model)
    assert not active_ranks.problems(preset, SimpleNamespace(one_by_one=False))


def test_validation_drops_nothing(place: Place):
    def loss(name, adapter):
        with place.session(name, adapter=adapter) as session:
            started(session)
            validate(session)
            return session.measured[1]

    assert loss("with", DROPS) == loss("without", {"method": "lora", "rank": 4, "init": "orthogonal"})


def test_no_update_of_a_training_is_longer(place: Place):
    with place.session("run", adapter={"method": "lora", "rank": 4, "max_norm": 0.02}) as session:
        progress = loop.Progress(Feed(session))
        for _ in range(2):
            loop.take_step(session, progress)
            session.step += 1
        norms = [(one.adapted_weight() - one.base.weight).norm().item() for one in session.adapted.values()]
        assert 0.0199 < max(norms) < 0.0201 and adapter_state(session.adapted)


@pytest.mark.parametrize("words, adapter, complaint", [
    ({"compile": True}, {"method": "lora", "rank_dropout": 0.1},
     "training.compile: does not work with adapter.dropout"),
    ({}, {"method": "lora", "max_norm": 1.0}, "adapter.max_norm scales them after each step"),
])
def test_what_does_not_fit_is_refused_by_the_check(found, words, adapter, complaint):
    from tests.training.runs import OPTIONS

    optimizer = {"name": "schedulefree_adamw"} if "max_norm" in adapter else {"name": "adamw"}
    findings = found(adapter=adapter, optimizer=optimizer, training=OPTIONS["training"] | words)
    assert any(complaint in problem for problem in findings.problems), findings.problems


@pytest.mark.parametrize("adapter", [{"method": "oft", "dropout": 0.1}, {"method": "dora", "rank_dropout": 0.1},
                                     {"method": "oft", "max_norm": 1.0}])
def test_a_method_without_it_refuses_it(found, adapter):
    with pytest.raises(ValueError, match=f"adapter.{list(adapter)[-1]}"):
        found(adapter=adapter)
