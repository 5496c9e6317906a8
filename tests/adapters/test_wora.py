"""What WoRA claims: its weights only matter by their ratio, never drift through zero, and at 1 it is DoRA."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from tests.adapters import dense
from tests.adapters.cases import CASES, adapt, close, fast, gradients, inputs, oracle, probe, through_weight, trained

both_axes = pytest.mark.parametrize("axis", ["input", "output"])
on_each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@both_axes
@on_each_case
@pytest.mark.parametrize("channel_beta", [False, True], ids=["layer", "channel"])
@pytest.mark.parametrize("route", [fast, through_weight])
def test_the_gradient_of_the_weights_is_orthogonal_to_them(axis, case, channel_beta, route):
    dtype = torch.float32 if case.packing else torch.float64
    adapted = adapt("wora", {"rank": 4, "axis": axis, "channel_beta": channel_beta}, case, dtype)
    x = inputs(case, dtype)
    found = gradients(probe(route(adapted, x)), trained(adapted.adapter), x)
    by_alpha = (adapted.adapter.alpha * found["alpha"]).sum()
    by_beta = adapted.adapter.beta * found["beta"]
    assert by_alpha.abs() > 1e-3, "nothing to test"
    scale = by_alpha.abs() + by_beta.abs().sum()
    assert (by_alpha + by_beta.sum()).abs() <= (1e-5 if case.packing else 1e-13) * scale


@both_axes
@on_each_case
def test_only_the_ratio_of_the_weights_matters(axis, case):
    adapted, x = adapt("wora", {"rank": 4, "axis": axis}, case), inputs(case)
    before = adapted(x)
    with torch.no_grad():
        adapted.adapter.alpha *= 4
        adapted.adapter.beta *= 4
    close(adapted(x), before, 1e-6)


@both_axes
@on_each_case
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (-1, -1)], ids=str)
def test_negative_weights_keep_their_sign(axis, case, signs):
    adapted, x = adapt("wora", {"rank": 4, "axis": axis}, case), inputs(case)
    with torch.no_grad():
        adapted.adapter.alpha *= signs[0]
        adapted.adapter.beta *= signs[1]
        W = adapted.layer.dense()
        terms = adapted.adapter.export_terms(W)
    close(fast(adapted, x), through_weight(adapted, x), 1e-5)
    V, kernel = W + terms.up @ terms.down, adapted.layer.kernel
    exported = V / dense.norm(V, kernel, axis) * dense.along(terms.magnitude, kernel, axis)
    close(exported, adapted.adapter.weight(W), 1e-5)


@both_axes
@on_each_case
def test_with_both_weights_fixed_at_one_it_is_dora_bit_for_bit(axis, case):
    common = {"rank": 4, "alpha": 8.0, "axis": axis}
    x, results = inputs(case), []
    for method, options in (("wora", {"learn_weights": False}), ("dora", {"norm_gradient": "full"})):
        adapted = adapt(method, {**common, **options}, case)
        assert trained(adapted.adapter).keys() == {"up", "down", "magnitude"}
        for route in (fast, through_weight):
            y = route(adapted, x)
            results.append({"y": y, **gradients(probe(y), trained(adapted.adapter), x)})
    for ours, dora in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(ours[key], value) for key, value in dora.items())


def smallest_beta(route, axis: str, steps: int = 3000) -> float:
    """The lowest value of beta while Adam fits a linear layer with the update held at zero."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8))
    adapted = attach(net, "0", adapters.methods()["wora"].Config(axis=axis, rank=2), seed=0)
    adapted.adapter.up.requires_grad_(False)
    optimizer = torch.optim.Adam(trained(adapted.adapter).values(), lr=1e-3, fused=True)
    x, lowest = torch.randn(16, 8), 1.0
    wanted = x @ torch.randn(8, 8)
    for _ in range(steps):
        optimizer.zero_grad()
        (route(adapted, x) - wanted).square().mean().backward()
        optimizer.step()
        lowest = min(lowest, adapted.adapter.beta.item())
    return lowest


@pytest.mark.full
@pytest.mark.short("input")
@both_axes
def test_beta_cannot_drift_through_zero(axis):
    assert smallest_beta(fast, axis) > 0.5


def test_with_a_detached_norm_beta_would_drift_through_zero():
    """The test above notices what it is for: the published mistake, methods.md 1.3."""

    def detached(adapted, x):
        p, W = dict(adapted.adapter.named_parameters()), adapted.base.weight
        V = p["beta"] * W + p["alpha"] * p["up"] @ p["down"]
        changed = V / dense.norm(V, 1, "output").detach() * dense.norm(W, 1, "output")
        return nn.functional.linear(x, changed, adapted.base.bias)

    assert smallest_beta(detached, "output") < 0.1


def test_the_oracle_walks_what_is_claimed():
    walked = oracle("wora").VARIANTS
    assert {v["axis"] for v in walked} == {"input", "output"} and any(v.get("channel_beta") for v in walked)
