"""Every method on every kind of layer against its own dense float64 definition. Methods are found by discovery."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from modules import adapters, quant
from modules.adapters.base import adapted_layers, attach
from modules.adapters.derived import Derived
from tests.adapters import dense
from tests.adapters.cases import (
    CASES,
    FIRST,
    Case,
    adapt,
    adapter_class,
    all_close,
    by_oracle,
    close,
    every_pair,
    exact,
    fast,
    gradients,
    has_oracle,
    inputs,
    network,
    oracle,
    probe,
    randomise,
    step_gradients,
    through_weight,
    trained,
)

REFUSED = [(m, case) for m in adapters.methods() for case in CASES if case.kind not in adapter_class(m).kinds]


# -- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", adapters.methods())
def test_every_method_has_an_oracle(method):
    assert oracle(method).VARIANTS


def test_every_oracle_has_a_method():
    files = {path.stem for path in (Path(__file__).parent / "oracles").glob("*.py")}
    assert files == set(adapters.methods()), "an oracle is left over from a method that is gone"


def test_a_method_without_an_oracle_is_refused_in_words():
    assert not has_oracle("nonsense")
    with pytest.raises(ValueError, match="the method nonsense has no oracle: write tests/adapters/oracles/nonsense.py"):
        oracle("nonsense")


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, case", REFUSED, ids=[f"{m}-{c.name}" for m, c in REFUSED])
def test_kinds_that_make_no_sense_are_refused_by_name(method, case):
    net = nn.ModuleDict({"odd_layer": network(case)[0]})
    config = adapters.methods()[method].Config(method=method, **FIRST[method])
    with pytest.raises(ValueError, match=f"odd_layer.*{method}.*{case.kind}"):
        attach(net, "odd_layer", config, seed=0)
    assert not list(adapted_layers(net)), "the network was changed all the same"


@pytest.mark.parametrize("method", FIRST)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv1d(8, 8, 3, padding_mode="reflect", padding=1),
        nn.LayerNorm(8),
        nn.Embedding(8, 8, max_norm=1.0),
    ],
    ids=["grouped", "reflect", "LayerNorm", "max_norm"],
)
def test_layers_that_cannot_be_adapted_are_refused_by_name(method, layer):
    net = nn.ModuleDict({"odd_layer": layer})
    with pytest.raises(ValueError, match="odd_layer"):
        attach(net, "odd_layer", adapters.methods()[method].Config(method=method, **FIRST[method]), seed=0)


# -- the mathematics --------------------------------------------------------------------------------------------------


@every_pair
def test_starts_as_the_identity(method, options, case):
    adapted, x = adapt(method, options, case, start=True), inputs(case)
    expected = network(case)(x)
    for route in (fast, through_weight):
        y = route(adapted, x)
        assert (y - expected).abs().max() <= 1e-6 * expected.abs().max()


@every_pair
def test_weight_is_the_definition(method, options, case):
    dtype, tolerance = exact(case)
    adapted = adapt(method, options, case, dtype)
    W = dense.matrix(adapted.base, quant.dense_weight(adapted.base))
    parameters = {name: value.double() for name, value in adapted.adapter.state_dict().items()}
    kernel = adapted.layer.kernel
    expected = oracle(method).weight(parameters, W.double(), W.shape[1] // kernel, kernel, options)
    close(adapted.adapter.weight(W), expected, tolerance)
    close(adapted.adapted_weight(), dense.native(adapted.base, expected), tolerance)


@every_pair
def test_both_routes_and_their_gradients_agree_with_the_oracle(method, options, case):
    dtype, tolerance = exact(case)
    adapted, x = adapt(method, options, case, dtype), inputs(case, dtype)
    expected, expected_gradients = by_oracle(method, options, adapted, x)
    for route in (fast, through_weight):
        y = route(adapted, x)
        close(y, expected, tolerance, route.__name__)
        found = gradients(probe(y), trained(adapted.adapter), x)
        all_close(found, expected_gradients, tolerance, floor=1e-6 if case.packing else 1e-12)


@pytest.mark.once
@every_pair
def test_both_routes_agree_in_single_precision(method, options, case):
    adapted, x = adapt(method, options, case), inputs(case)
    expected, expected_gradients = by_oracle(method, options, adapted, x)
    for route in (fast, through_weight):
        y = route(adapted, x)
        close(y, expected, 3e-6, route.__name__)
        all_close(gradients(probe(y), trained(adapted.adapter), x), expected_gradients, 1e-5, floor=1e-6)


@every_pair
def test_derived_once_a_step_is_exact(method, options, case):
    dtype, _ = exact(case)
    adapted = adapt(method, options, case, dtype)
    batches = [inputs(case, dtype, seed=i) for i in range(3)]
    wanted, derived = trained(adapted.adapter), Derived([adapted])
    for step in range(2):  # the second step finds the first one's parameters changed
        randomise(adapted.adapter, seed=step, scale=0.02)
        loss = sum(probe(through_weight(adapted, x), seed=i) for i, x in enumerate(batches))
        expected = torch.autograd.grad(loss, list(wanted.values()))
        all_close(
            step_gradients(derived, batches),
            dict(zip(wanted, expected, strict=True)),
            1e-6 if case.packing else 1e-10,
            floor=1e-6 if case.packing else 1e-12,
        )


@pytest.mark.once
@every_pair
def test_leaves_persist_from_step_to_step(method, options, case):
    adapted, x = adapt(method, options, case), inputs(case)
    derived = Derived([adapted])
    derived.begin()
    first = dict(adapted.leaves)
    randomise(adapted.adapter, seed=3)
    derived.begin()
    assert all(adapted.leaves[key] is leaf for key, leaf in first.items())
    close(adapted(x), through_weight(adapted, x), 3e-6)
    derived.end()
    with derived.frozen():
        close(adapted(x), through_weight(adapted, x), 3e-6)


@every_pair
def test_export_terms_are_exact(method, options, case):
    dtype, tolerance = exact(case)
    adapted = adapt(method, options, case, dtype)
    W, kernel = adapted.layer.dense().to(dtype), adapted.layer.kernel
    with torch.no_grad():
        terms = adapted.adapter.export_terms(W)
    V = W
    if terms.rotation is not None:
        V = dense.by_rotation(V, terms.rotation, terms.side, kernel)
    if terms.up is not None:
        V = V + terms.up @ terms.down
    if terms.difference is not None:
        V = V + terms.difference
    if terms.product is not None and terms.up is None and terms.difference is None:
        V = V + dense.multiplied(terms.product)
    if terms.magnitude is not None:
        V = V / dense.norm(V, kernel, terms.axis) * dense.along(terms.magnitude, kernel, terms.axis)
    close(V, adapted.adapter.weight(W), tolerance)


@pytest.mark.once
@every_pair
def test_only_the_adapter_learns(method, options, case):
    adapted, x = adapt(method, options, case), inputs(case)
    before = copy.deepcopy(adapted.base.state_dict())
    dense_before = adapted.layer.dense().clone()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    probe(adapted(x)).backward()
    optimizer.step()
    assert {n for n, p in adapted.named_parameters() if p.requires_grad} == {
        f"adapter.{n}" for n in trained(adapted.adapter)
    }
    after = adapted.base.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if isinstance(value, torch.Tensor))
    assert torch.equal(adapted.layer.dense(), dense_before)


@pytest.mark.once
@every_pair
def test_dead_rows_and_channels_stay_finite(method, options, case):
    if case.packing:
        case = Case(case.name, case.kind, lambda: nn.Linear(64, 12), case.shape)
    net = network(case)
    kernel = max(1, dense.matrix(net[0], net[0].weight)[0].numel() // case_channels(case))
    dead = dense.matrix(net[0], net[0].weight).clone()
    dead[2] = 0
    dead[:, kernel : 2 * kernel] = 0
    net[0].weight.copy_(dense.native(net[0], dead))
    x = inputs(case)
    expected = net(x)
    adapted = attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=0)
    for route in (fast, through_weight):
        close(route(adapted, x), expected, 1e-6, route.__name__)
    wanted = trained(adapted.adapter)
    for _ in range(2):
        for route in (fast, through_weight):
            y = route(adapted, x)
            assert y.isfinite().all(), route.__name__
            found = gradients(probe(y), wanted, x)
            assert all(g.isfinite().all() for g in found.values()), (route.__name__, found)
        close(fast(adapted, x), through_weight(adapted, x), 1e-5)
        randomise(adapted.adapter)


def case_channels(case: Case) -> int:
    """Channels of a case's layer."""
    return 16 if case.kind == "embedding" else case.shape[1 if case.kind == "conv" else -1]
