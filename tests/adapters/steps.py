"""How far steps of Adam move a layer's weight, as a part of its norm."""

import torch
from torch import nn

from modules import adapters
from modules.adapters.base import Adapted, attach
from tests.adapters.cases import trained


def square_layer(method: str, options: dict, width: int) -> Adapted:
    """An adapted linear layer with isotropic weights."""
    net = nn.Sequential(nn.Linear(width, width, bias=False))
    nn.init.normal_(net[0].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=0)


def adam_steps(adapted: Adapted, lr: float, steps: int = 1) -> tuple[float, float]:
    """The first and the last step of this many down a fixed random linear slope, each in units of lr."""
    W = adapted.base.weight.detach()
    slope = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(trained(adapted.adapter).values())
    optimizer, found = torch.optim.Adam(parameters, lr=lr, eps=1e-30), []
    for step in range(steps):
        optimizer.zero_grad()
        before = adapted.adapter.weight(W)
        (before * slope).sum().backward()
        optimizer.step()
        if step in (0, steps - 1):
            with torch.no_grad():
                found.append(((adapted.adapter.weight(W) - before).norm() / W.norm() / lr).item())
    return found[0], found[-1]
