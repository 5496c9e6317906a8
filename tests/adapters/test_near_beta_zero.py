"""A learned weight of the base at zero and near it: every route is finite and right, by a dense float64 definition."""

import pytest
import torch
from torch import Tensor

from modules.adapters.base import Adapted
from modules.adapters.decomposed import FARTHEST
from modules.adapters.derived import Derived
from modules.files import forms
from tests.adapters.cases import (
    CASES,
    adapt,
    all_close,
    by_oracle,
    close,
    fast,
    gradients,
    inputs,
    oracle,
    probe,
    through_weight,
    trained,
)

DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.bfloat16
BETAS = [0.0, 1e-45, -1e-45, 1e-30, 1e-8, -1e-8, 1e-3]
LINEAR, CONV, EMBEDDING, PACKED = CASES[0], CASES[3], CASES[6], CASES[8]

on_each_case = pytest.mark.parametrize("case", [LINEAR, CONV, EMBEDDING, PACKED], ids=lambda case: case.name)
both_axes = pytest.mark.parametrize("axis", ["input", "output"])
per_channel = pytest.mark.parametrize("channel", [False, True], ids=["layer", "channel"])
each_beta = pytest.mark.parametrize("beta", BETAS, ids=str)


def options(axis: str, channel: bool) -> dict:
    return {"rank": 3, "axis": axis, "channel_beta": channel}


def made(axis: str, channel: bool, case, beta: float, dtype: torch.dtype = SINGLE, start: bool = False) -> Adapted:
    """A layer away from its start whose beta is this; with one per channel, that of every third channel."""
    adapted = adapt("wora", options(axis, channel), case, dtype, start)
    with torch.no_grad():
        (adapted.adapter.beta[::3] if channel else adapted.adapter.beta).fill_(beta)
    return adapted


def definition(adapted: Adapted, axis: str, channel: bool) -> Tensor:
    """`W'` of the oracle, float64."""
    state = {name: value.double() for name, value in adapted.adapter.state_dict().items()}
    layer = adapted.layer
    return oracle("wora").weight(state, layer.dense().double(), layer.channels, layer.kernel, options(axis, channel))


@each_beta
@per_channel
@both_axes
@on_each_case
def test_every_route_is_the_definition(axis, channel, case, beta):
    adapted, x = made(axis, channel, case, beta), inputs(case)
    expected, wanted = by_oracle("wora", options(axis, channel), adapted, x)
    assert expected.isfinite().all() and all(gradient.isfinite().all() for gradient in wanted.values())
    for route in (fast, through_weight):
        y = route(adapted, x)
        close(y, expected, 3e-6, route.__name__)
        all_close(gradients(probe(y), trained(adapted.adapter), x), wanted, 2e-5, floor=1e-5)
    W, meant = adapted.layer.dense(), definition(adapted, axis, channel)
    close(adapted.adapter.weight(W), meant, 3e-6)
    with torch.no_grad():
        close(forms.applied(adapted.adapter.export_terms(W), adapted.layer, W), meant, 3e-6)


@each_beta
@per_channel
@both_axes
def test_also_in_16_bits(axis, channel, beta):
    adapted, x = made(axis, channel, LINEAR, beta), inputs(LINEAR)
    adapted.to(HALF)
    expected, wanted = by_oracle("wora", options(axis, channel), adapted, x)
    x = x.detach().to(HALF).requires_grad_()
    for route in (fast, through_weight):
        y = route(adapted, x)
        close(y, expected, 3e-2, route.__name__)
        all_close(gradients(probe(y), trained(adapted.adapter), x), wanted, 5e-2, floor=1e-2)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@each_beta
@per_channel
@both_axes
def test_also_while_the_update_is_zero(axis, channel, beta, dtype):
    """The base's direction alone is left then, whatever its weight; of a weight of zero nothing is."""
    adapted, x = made(axis, channel, LINEAR, beta, dtype, start=True), inputs(LINEAR, dtype)
    W = adapted.layer.dense()
    sign = adapted.adapter.beta.sign().detach().to(dtype)
    meant = W * (sign.unsqueeze(0 if axis == "input" else 1) if channel else sign)
    close(adapted.adapter.weight(W), meant, 1e-6)
    expected = x @ meant.mT + adapted.base.bias
    for route in (fast, through_weight):
        y = route(adapted, x)
        close(y, expected, 1e-6, route.__name__)
        found = gradients(probe(y), trained(adapted.adapter), x)
        assert all(gradient.isfinite().all() for gradient in found.values()), (route.__name__, found)


@per_channel
@both_axes
@pytest.mark.parametrize("ratio", [FARTHEST * 0.99, FARTHEST * 1.01])
def test_nothing_jumps_where_the_route_changes(axis, channel, ratio):
    adapted, x = made(axis, channel, LINEAR, 0.0, DOUBLE), inputs(LINEAR, DOUBLE)
    with torch.no_grad():
        adapted.adapter.beta.fill_(adapted.adapter.alpha / ratio)
    assert ("weight" in adapted.adapter.derive(adapted.layer)) == (ratio > FARTHEST)
    expected, wanted = by_oracle("wora", options(axis, channel), adapted, x)
    y = fast(adapted, x)
    close(y, expected, 1e-10)
    all_close(gradients(probe(y), trained(adapted.adapter), x), wanted, 1e-9)


@both_axes
def test_a_training_goes_through_zero_and_back(axis):
    """Leaves of the one route are gone when the other one is taken; other layers stay on theirs."""
    layers = [made(axis, False, LINEAR, beta, DOUBLE) for beta in (0.7, -0.7)]
    derived, x = Derived(layers), inputs(LINEAR, DOUBLE)
    for beta in (0.5, 1e-4, 0.0, -1e-4, -0.5):
        with torch.no_grad():
            layers[0].adapter.beta.fill_(beta)
        derived.begin()
        assert ("weight" in layers[0].leaves) == (abs(beta) < 1e-2) and "weight" not in layers[1].leaves
        for adapted in layers:
            expected, wanted = by_oracle("wora", options(axis, False), adapted, x)
            adapted.zero_grad(set_to_none=True)
            y = adapted(x)
            close(y, expected, 1e-10)
            probe(y).backward()
            adapted.wanted = wanted
        derived.pull_back()
        for adapted in layers:
            found = {name: p.grad for name, p in trained(adapted.adapter).items()}
            all_close(found, {name: adapted.wanted[name] for name in found}, 1e-9)


@each_beta
@per_channel
@both_axes
@pytest.mark.parametrize("dead", ["one", "all"])
def test_dead_rows_and_channels_of_the_base_stay_finite_and_dead(axis, channel, beta, dead):
    adapted, x = made(axis, channel, LINEAR, beta), inputs(LINEAR)
    with torch.no_grad():
        adapted.base.weight[0 if dead == "one" else slice(None)] = 0
        adapted.base.weight[:, 3] = 0
    adapted.layer.forget()
    routes = []
    for route in (fast, through_weight):
        y = route(adapted, x)
        found = gradients(probe(y), trained(adapted.adapter), x)
        assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in found.values()), route.__name__
        routes.append({"y": y, **found})
    all_close(routes[0], routes[1], 2e-5, floor=1e-5)
    W = adapted.layer.dense()
    changed = adapted.adapter.weight(W)
    assert not (changed[:, 3] if axis == "input" else changed[0]).any()
    with torch.no_grad():
        close(forms.applied(adapted.adapter.export_terms(W), adapted.layer, W), changed, 3e-6)


@per_channel
@both_axes
@on_each_case
def test_the_gradient_stays_orthogonal_to_the_weights(axis, channel, case):
    adapted, x = made(axis, channel, case, 1e-3), inputs(case)
    found = gradients(probe(fast(adapted, x)), trained(adapted.adapter), x)
    along = [(getattr(adapted.adapter, name) * found[name]).detach() for name in ("alpha", "beta")]
    assert sum(part.sum() for part in along).abs() <= 1e-4 * sum(part.abs().sum() for part in along)


@pytest.mark.parametrize("method, more", [("dora", {}), ("dora", {"norm_gradient": "full"}), ("wora", {})])
@both_axes
def test_a_direction_of_zero_adds_nothing(method, more, axis):
    """One row or channel of V is exactly zero: the update has taken the base away."""
    adapted = adapt(method, {"rank": 12, "axis": axis, **more}, LINEAR)
    x, W = inputs(LINEAR), adapted.layer.dense().clone()
    with torch.no_grad():
        adapted.base.weight.copy_(W.mul(64).round() / 64)  # sums are exact then
        adapted.layer.forget()
        W = adapted.layer.dense()
        adapted.adapter.up.copy_(torch.eye(12))
        adapted.adapter.down.zero_()
        place = (slice(None), 1) if axis == "input" else (1, slice(None))
        adapted.adapter.down[place] = -W[place]
        if method == "wora":
            adapted.adapter.alpha.fill_(1.0)
            adapted.adapter.beta.fill_(1.0)
    assert not adapted.adapter.weight(W)[place].any()
    for route in (fast, through_weight):
        y = route(adapted, x)
        assert y.isfinite().all(), route.__name__
        found = gradients(probe(y), trained(adapted.adapter), x)
        assert all(gradient.isfinite().all() for gradient in found.values()), (route.__name__, found)
    close(fast(adapted, x), through_weight(adapted, x), 1e-5)
