"""Pairs that start along the gradient of the loss, against the whole gradient."""

import pytest
import torch

from modules.adapters.base import detach
from modules.training import gradient_start
from modules.training.loop import batch_loss
from tests.training.runs import equal, stop_and_resume

pytestmark = pytest.mark.usefixtures("forget_accelerate")

GRADIENT = [
    {"method": "lora", "rank": 2, "init": "gradient"},
    {"method": "lora", "rank": 2, "init": "gradient", "step_size": "calibrated"},
    {"method": "dora", "rank": 2, "init": "gradient"},
]


def whole_gradients(session):
    """The gradient of each adapted layer's weight, and the adapters taken off for it."""
    bases = {name: layer.base for name, layer in session.adapted.items()}
    for network in session.model.networks.values():
        detach(network)
    for base in bases.values():
        base.weight.requires_grad_()
    for batch in gradient_start.first_batches(session):
        batch_loss(session, batch).backward()
    return {name: base.weight.grad.flatten(1) for name, base in bases.items()}


@pytest.mark.short("dora-2-gradient")
@pytest.mark.parametrize("adapter", GRADIENT, ids=lambda a: "-".join(map(str, a.values())))
def test_down_holds_the_gradients_own_directions(place, adapter):
    with place.session("run", adapter=adapter) as session:
        before = {name: layer.adapter.down.detach().clone() for name, layer in session.adapted.items()}
        gradient_start.begin(session, batch_loss)
        first = {name: layer.adapter.down.detach().clone() for name, layer in session.adapted.items()}
        for name, layer in session.adapted.items():
            assert torch.equal(layer.adapted_weight(), layer.layer.native(layer.layer.dense())) or (
                layer.adapted_weight() - layer.layer.dense()).abs().max() < 1e-6, name  # dora's norms round
            assert not layer.adapter.up.any() and layer.adapter.up.grad is None
            size, wanted = gradient_start.root_mean_square(first[name]), gradient_start.root_mean_square(before[name])
            assert size.item() == pytest.approx(wanted.item(), rel=1e-4), name
        if adapter["method"] == "lora":
            gradients = whole_gradients(session)
    if adapter["method"] != "lora":
        return
    shares = []
    for name, gradient in gradients.items():
        rows = first[name] / first[name].norm(dim=1, keepdim=True)
        assert (rows @ rows.mT - torch.eye(2)).abs().max() < 1e-3
        shares.append(((gradient @ rows.mT).norm() / torch.linalg.svdvals(gradient)[:2].norm()).item())
    assert min(shares) > 0.93 and sum(shares) / len(shares) > 0.99, sorted(shares)[:5]


@pytest.mark.full
def test_it_is_the_same_each_time_and_a_resumed_run_does_not_begin_again(place, monkeypatch):
    adapter, saving = GRADIENT[0], {"state_every": 1}
    assert place.train("whole", adapter=adapter, saving=saving) == 0
    stop_and_resume(monkeypatch, place, "halves", 2, adapter=adapter, saving=saving)
    assert equal(place.adapter("whole"), place.adapter("halves"))
    started = [event for event in place.events("halves", "stage") if event["name"] == "start"]
    assert [event["detail"] for event in started] == ["initial values from gradients of 8 pictures"]  # 4 steps of 2


def test_other_methods_do_not_measure(place):
    with place.session("run") as session:
        gradient_start.begin(session, None)
    assert not [event for event in place.events("run", "stage") if event["name"] == "start"]


def test_gradients_that_are_no_numbers_are_said(place):
    with place.session("run", adapter=GRADIENT[0]) as session, pytest.raises(FloatingPointError, match="initial value"):
        gradient_start.begin(session, lambda session, batch: batch_loss(session, batch) * torch.inf)
