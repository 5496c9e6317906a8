"""Starts from the layers' inputs in trainings: what is collected, ranks, passes, resuming, files."""

import pytest
import torch

from modules.adapters.input_start import rows
from modules.training import gradient_start, input_start
from modules.training.loop import batch_loss
from tests.training.runs import OPTIONS, equal, stop_and_resume
from tests.training.test_rules import found as found  # a fixture

pytestmark = pytest.mark.usefixtures("forget_accelerate")

EVA = {"method": "lora", "rank": 2, "init": "eva"}
CORDA = {"method": "lora", "rank": 2, "init": "corda_ipm"}
CONVS = {"targets": {"layers": "all", "include": [], "exclude": ["unet.*.attn*", "unet.*.ff.*"]}}


def begun(session) -> dict[str, torch.Tensor]:
    """The adapters' tensors after the start."""
    input_start.begin(session, batch_loss)
    return {name: tensor.detach().clone() for name, tensor in session.tensors().items()}


def seen(session) -> dict[str, torch.Tensor]:
    """All inputs of each layer, `(n, fan_in)`."""
    kept, hooks = {}, []
    for name, layer in session.adapted.items():
        def keep(module, given, name=name):
            kept.setdefault(name, []).append(rows(module.layer, given[0]).flatten(0, 1))

        hooks.append(layer.register_forward_pre_hook(keep))
    with torch.no_grad():
        for batch in gradient_start.first_batches(session):
            batch_loss(session, batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts).double() for name, parts in kept.items()}


def test_down_holds_the_inputs_own_directions_and_the_ranks_are_shared_out(place):
    with place.session("run", adapter=EVA, **CONVS) as session:
        inputs, tensors = seen(session), begun(session)
        counts = []
        for name, layer in session.adapted.items():
            assert torch.equal(layer.adapted_weight(), layer.layer.native(layer.layer.dense())), name
            down = tensors[f"{name}.down"]
            counts.append(int(down.any(1).sum()))
            assert len(down) == 4 and not down[counts[-1]:].any()
            own = inputs[name] - inputs[name].mean(0)
            best = torch.linalg.svdvals(own)[: counts[-1]].square().sum()
            kept = (own @ torch.linalg.qr(down[: counts[-1]].double().mT).Q).square().sum()
            assert kept >= (1 - 1e-3) * best, name
        assert sum(counts) == 2 * len(counts) and len(set(counts)) > 1
        assert {layer.layer.kind for layer in session.adapted.values()} == {"linear", "conv"}
    assert not place.events("run", "warning")


@pytest.mark.parametrize("adapter", [pytest.param(EVA, id="eva", marks=pytest.mark.full),
                                     pytest.param(CORDA, id="corda")])
def test_a_pass_for_each_layer_gives_what_one_pass_gives(place, monkeypatch, adapter):
    with place.session("one", adapter=adapter) as session:
        whole = begun(session)
        assert len(input_start.groups(session.adapted)) == 1
    monkeypatch.setattr(input_start, "ROOM", 1)
    with place.session("many", adapter=adapter) as session:
        assert len(input_start.groups(session.adapted)) == len(session.adapted) > 1
        assert equal(begun(session), whole)
        for layer in session.adapted.values():
            assert torch.equal(layer.adapted_weight(), layer.layer.dense())


@pytest.mark.full
@pytest.mark.parametrize("adapter", [EVA, {**EVA, "method": "wora"}, CORDA], ids=lambda a: f"{a['method']}-{a['init']}")
def test_a_resumed_run_does_not_begin_again_and_its_file_is_what_was_trained(place, monkeypatch, adapter):
    """Exports are read back and compared with the trained layers; the run fails where they differ."""
    saving = {"state_every": 1}
    assert place.train("whole", adapter=adapter, saving=saving) == 0
    stop_and_resume(monkeypatch, place, "halves", 2, adapter=adapter, saving=saving)
    assert equal(place.adapter("whole"), place.adapter("halves"))
    started = [event for event in place.events("halves", "stage") if event["name"] == "start"]
    assert [event["detail"] for event in started] == ["initial values from inputs of 8 pictures"]


def test_other_starts_collect_nothing(place):
    with place.session("run", adapter={**EVA, "init": "svd"}) as session:
        input_start.begin(session, None)
    assert not [event for event in place.events("run", "stage") if event["name"] == "start"]


def test_inputs_that_are_no_numbers_are_said(place):
    with place.session("run", adapter=EVA) as session, pytest.raises(FloatingPointError, match="non-finite inputs"):
        with torch.no_grad():
            next(iter(session.model.networks.values())).conv_in.bias.fill_(torch.nan)
        begun(session)


def test_the_check_says_what_it_costs(found):
    findings = found(adapter=EVA, training={**OPTIONS["training"]})
    assert not findings.problems
    assert any("adapter.init eva: before the first step the inputs" in note for note in findings.notes)
    assert max(layer.adapter.config.rank for layer in findings.adapted.values()) == 4
