"""Deriving many layers together gives what each gives alone, values and gradients, whatever their shapes."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from modules.adapters.derived import Derived
from tests.adapters.cases import FIRST, adapter_class, label, randomise, variants

SHAPES = [(12, 16), (12, 16), (8, 16), (12, 16), (16, 12)]


@pytest.mark.parametrize("method, options", variants(), ids=[label(m, o) for m, o in variants()])
def test_together_is_each_alone(method, options):
    assert method in FIRST
    torch.manual_seed(0)
    network = nn.ModuleList([nn.Linear(columns, rows) for rows, columns in SHAPES]).double()
    if "conv" in adapter_class(method).kinds:
        network.append(nn.Conv2d(8, 6, 3).double())
    config = adapters.methods()[method].Config(method=method, **options)
    layers = [attach(network, str(number), config, 0) for number in range(len(network))]
    for number, layer in enumerate(layers):
        randomise(layer.adapter, seed=number, scale=0.1)
    derived = Derived(layers)
    derived.begin()
    for number, layer in enumerate(layers):
        alone = layer.adapter.derive(layer.layer)
        assert alone.keys() == layer.leaves.keys()
        for key, tensor in alone.items():
            assert torch.allclose(tensor, layer.leaves[key], rtol=1e-12, atol=1e-14), (number, key)
            layer.leaves[key].grad = torch.full_like(tensor, 1.0 + number)
    wanted = []
    for number, layer in enumerate(layers):
        tensors = [tensor for tensor in layer.adapter.derive(layer.layer).values() if tensor.requires_grad]
        parameters = [p for p in layer.adapter.parameters() if p.requires_grad]
        sums = [(1.0 + number) * tensor.sum() for tensor in tensors]
        found = torch.autograd.grad(sum(sums), parameters, allow_unused=True) if sums else [None] * len(parameters)
        wanted += list(zip(parameters, found, strict=True))
    derived.pull_back()
    for parameter, expected in wanted:
        assert (parameter.grad is None) == (expected is None)
        assert expected is None or torch.allclose(parameter.grad, expected, rtol=1e-10, atol=1e-12)
