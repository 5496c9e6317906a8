"""Layers whose weight is zero everywhere: each method says truly whether it can change them, and nothing turns NaN."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from modules.adapters.layers import as_layer
from modules.training import setup
from tests.adapters.cases import (
    CASES,
    adapt,
    adapter_class,
    all_close,
    every_variant,
    fast,
    gradients,
    inputs,
    probe,
    through_weight,
    trained,
)

LINEAR, CONV = CASES[0], CASES[3]


def on_zeros(method, options, case):
    """A fresh adapter on a layer of zeros; None where the method refuses it, which has to be what it says of itself."""
    net = nn.Sequential(case.make()).requires_grad_(False)
    net[0].weight.zero_()
    try:
        return attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=1)
    except ValueError as refusal:
        assert not adapter_class(method).moves_zero and "0: its weight is zero" in str(refusal)
        return None


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=lambda case: case.name)
@every_variant
def test_a_method_says_truly_whether_it_can_change_a_weight_of_zeros(method, options, case):
    if case.kind not in adapter_class(method).kinds:
        pytest.skip(f"{method} does not adapt {case.kind} layers")
    adapted = on_zeros(method, options, case)
    if adapted is None:
        return
    parameters, draw = trained(adapted.adapter), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(parameters.values(), lr=0.05)
    for _ in range(4):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    changed = adapted.adapted_weight()
    assert changed.isfinite().all()
    assert bool(changed.any()) == adapted.adapter.moves_zero


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=lambda case: case.name)
@every_variant
def test_training_on_zeros_is_finite_and_learns_where_it_can(method, options, case):
    if case.kind not in adapter_class(method).kinds:
        pytest.skip(f"{method} does not adapt {case.kind} layers")
    adapted, x = on_zeros(method, options, case), inputs(case)
    if adapted is None:
        return
    parameters = trained(adapted.adapter)
    optimizer = torch.optim.Adam(parameters.values(), lr=0.05)
    for _ in range(4):
        for route in (fast, through_weight):
            y = route(adapted, x)
            found = gradients(probe(y), parameters, x)
            assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in found.values()), route.__name__
        for name, parameter in parameters.items():
            parameter.grad = found[name]
        optimizer.step()
    assert bool(adapted.adapted_weight().any()) == adapted.adapter.moves_zero


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=lambda case: case.name)
@every_variant
def test_parameters_of_zeros_are_finite_too(method, options, case):
    """Nothing that has a length is divided by it where it has none."""
    if case.kind not in adapter_class(method).kinds:
        pytest.skip(f"{method} does not adapt {case.kind} layers")
    adapted, x = adapt(method, options, case, start=True), inputs(case)
    parameters = trained(adapted.adapter)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    found = []
    for route in (fast, through_weight):
        y = route(adapted, x)
        found.append({"y": y, **gradients(probe(y), parameters, x)})
        assert all(tensor.isfinite().all() for tensor in found[-1].values()), route.__name__
    all_close(found[0], found[1], 1e-5, floor=1e-5)
    assert adapted.adapted_weight().isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_layer_knows_whether_it_is_zero(case):
    layer = adapt("lora", {"rank": 2}, case, start=True).layer
    assert not layer.is_zero()
    if not case.packing:
        with torch.no_grad():
            layer.base.weight.zero_()
        assert layer.is_zero()
        layer.base.weight[0].flatten()[0] = 1e-30
        assert not layer.is_zero()
    with torch.device("meta"):
        assert not as_layer(nn.Linear(3, 3), "without values").is_zero()


def test_packed_zeros_are_zeros():
    from modules import quant

    for packing in ("nf4", "int8", "fp8"):
        net = nn.Sequential(nn.Linear(64, 12)).requires_grad_(False)
        net[0].weight.zero_()
        quant.pack_linears(net, packing)
        assert as_layer(net[0], "0").is_zero(), packing


def test_layers_that_cannot_be_changed_are_named_once():
    net = nn.ModuleDict({f"layer{n}": nn.Linear(8, 6) for n in range(6)}).requires_grad_(False)
    for n in range(5):
        net[f"layer{n}"].weight.zero_()
    for method in ("dora", "lora"):
        config = adapters.methods()[method].Config(rank=2)
        layers = {name: attach(nn.ModuleDict({name: net[name]}), name, config, 0) for name in net}
        notes = setup.unmoved(layers)
        if method == "lora":
            assert notes == []
            continue
        (note,) = notes
        assert "dora cannot change 5 of 6 layers" in note and "layer0, layer1, layer2 and 2 more" in note
        assert "targets.exclude" in note and "LoRA" in note and "layer5" not in note
