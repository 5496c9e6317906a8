"""What WoRA claims: its weights only matter by their ratio, never drift through zero, and at 1 it is DoRA."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import Terms, attach
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
    assert any(v.get("channel_alpha") for v in walked) and any(v.get("magnitude") == "absolute" for v in walked)


# -- as published -----------------------------------------------------------------------------------------------------

PUBLISHED = {"rank": 4, "axis": "input", "first_alpha": 8.0, "init": "published", "magnitude": "absolute",
             "decay_weights": True}


def test_as_published_it_moves_as_the_authors_layer():
    """Filtering-WoRA's layer (`LinearWithWoRAMerged`): `m V / ||V||`, `V = beta W + alpha (A B)^T`, all trained."""
    adapted = adapt("wora", PUBLISHED, CASES[0], torch.float64, start=True)
    adapter, W = adapted.adapter, adapted.base.weight.detach()
    A, B = adapter.down.detach().mT.clone(), adapter.up.detach().mT.clone()
    m, alpha, beta = W.norm(dim=0, keepdim=True), torch.tensor(8.0).double(), torch.tensor(1.0).double()
    theirs = [tensor.clone().requires_grad_() for tensor in (A, B, m, alpha, beta)]

    def combined():
        A, B, m, alpha, beta = theirs
        V = beta * W + alpha * (A @ B).mT
        return m * V / V.norm(dim=0, keepdim=True)

    ours = list(trained(adapter).values())
    assert len(ours) == len(theirs)
    optimizers = [torch.optim.Adam(group, lr=0.01) for group in (ours, theirs)]
    x = inputs(CASES[0], torch.float64).detach()
    for _ in range(8):
        for optimizer, y in zip(optimizers, (fast(adapted, x), nn.functional.linear(x, combined(), adapted.base.bias)),
                                strict=True):
            optimizer.zero_grad()
            probe(y.sin()).backward()
            optimizer.step()
    close(adapter.weight(W), combined(), 1e-7)  # Adam divides the weights' first gradients, which are rounding errors
    assert (adapter.weight(W) - W).norm() > 0.1 * W.norm()


def test_the_published_start_has_its_size_and_its_parameters_decay():
    net = nn.Sequential(nn.Linear(512, 8))
    adapter = attach(net, "0", adapters.methods()["wora"].Config(**PUBLISHED | {"rank": 16}), seed=0).adapter
    assert abs(adapter.down.std().item() * 4 - 1) < 0.03 and adapter.alpha.item() == 8 and adapter.beta.item() == 1
    assert adapter.undecayed == ()


@both_axes
def test_negative_magnitudes_of_a_file_are_read_where_they_can_be_represented(axis):
    options, case = {**PUBLISHED, "axis": axis}, CASES[3]
    adapted = adapt("wora", options, case, torch.float64, start=True)
    W, kernel = adapted.layer.dense(), adapted.layer.kernel
    torch.manual_seed(0)
    up, down = torch.randn(len(W), 3, dtype=W.dtype), torch.randn(3, W.shape[1], dtype=W.dtype)
    magnitude = torch.randn(len(adapted.adapter.magnitude), dtype=W.dtype)
    terms = Terms(up=up, down=down, magnitude=magnitude, axis=axis)
    adapted.adapter.start_from(terms, adapted.layer)
    V = W + up @ down
    wanted = V / dense.norm(V, kernel, axis) * dense.along(magnitude, kernel, axis)
    close(adapted.adapter.weight(W), wanted, 1e-10)
    relative = adapt("wora", options | {"magnitude": "relative"}, case, torch.float64, start=True)
    with pytest.raises(ValueError, match="step_size raw and adapter.magnitude absolute"):
        relative.adapter.start_from(terms, relative.layer)


@pytest.mark.parametrize("option", [{"first_alpha": 8.0}, {"magnitude": "absolute"}])
def test_what_calibrated_steps_set_is_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} .* has no effect with step_size calibrated"):
        adapters.methods()["wora"].Config(step_size="calibrated", **option)
