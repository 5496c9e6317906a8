"""What the tests of methods made of products and butterflies share: LyCORIS' own modules."""

from typing import Any

import torch
from torch import Tensor, nn

from modules import adapters
from modules.adapters.base import Adapted, attach
from tests.adapters.cases import close, probe, randomise

BASES = {
    "linear": (lambda: nn.Linear(24, 32), (3, 5, 24)),
    "conv": (lambda: nn.Conv2d(12, 16, 3, stride=2, padding=1), (2, 12, 7, 7)),
}
"""Layers, and the shape of what they are given."""


def adapted_layer(method: str, options: dict, base: nn.Module, scale: float = 0.3) -> Adapted:
    """A layer with an adapter, away from its start."""
    net = nn.ModuleDict({"layer": base.requires_grad_(False)})
    adapted = attach(net, "layer", adapters.methods()[method].Config(method=method, **options), seed=1)
    randomise(adapted.adapter, scale=scale)
    return adapted


def lycoris(kind: Any, base: nn.Module, tensors: dict[str, Tensor], **options: Any) -> nn.Module:
    """LyCORIS' module of this kind around the layer, with these tensors for its own."""
    module = kind("layer", base, 1.0, **options)
    module.apply_to = None
    with torch.no_grad():
        for name, tensor in tensors.items():
            module.get_parameter(name).copy_(tensor.detach().reshape(module.get_parameter(name).shape))
    return module


def assert_computes_like(adapted: Adapted, theirs: nn.Module, pairs: dict[str, str], shape: tuple[int, ...]) -> None:
    """Outputs and gradients of ours and theirs; `pairs`: our parameters and their names for them."""
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    ours = dict(adapted.adapter.named_parameters())
    y = adapted(x)
    found = torch.autograd.grad(probe(y), [*(ours[name] for name in pairs), x])
    expected = theirs(x)
    close(y, expected, 1e-5, "output")
    parameters = dict(theirs.named_parameters())
    wanted = torch.autograd.grad(probe(expected), [*(parameters[name] for name in pairs.values()), x])
    for name, one, other in zip([*pairs, "x"], found, wanted, strict=True):
        close(one, other.reshape(one.shape), 1e-5, name)
