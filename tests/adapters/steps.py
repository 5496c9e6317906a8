"""How far the steps of an optimizer move a layer's weight, for the claim that calibrated steps are of one size."""

import torch
from torch import nn

from modules import adapters
from modules.adapters.base import Adapted, attach
from tests.adapters.cases import trained

LR = 1e-3


def isotropic(method: str, fan_in: int, out: int, dtype: torch.dtype = torch.float32, **options) -> Adapted:
    """A fresh adapter on a linear layer, "0", with normally distributed weights."""
    net = nn.Sequential(nn.Linear(fan_in, out)).to(dtype).requires_grad_(False)
    nn.init.normal_(net[0].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=0)


def adam_steps(adapted: Adapted, count: int = 100, lr: float = LR) -> list[float]:
    """Relative changes of the weight by the first steps of Adam on a fixed random linear loss of it, in units of lr."""
    W = adapted.layer.dense()
    slope = torch.randn(W.shape, generator=torch.Generator().manual_seed(1)).to(W.dtype)
    optimizer = torch.optim.Adam(list(trained(adapted.adapter).values()), lr=lr, eps=1e-30)
    found, before = [], adapted.adapter.weight(W)
    for _ in range(count):
        optimizer.zero_grad()
        (before * slope).sum().backward()
        optimizer.step()
        after = adapted.adapter.weight(W)
        found.append(((after - before).detach().norm() / W.norm() / lr).item())
        before = after
    return found


def first_step(adapted: Adapted) -> float:
    """The relative change of the weight by a step of lr with random signs in every parameter, in units of lr."""
    W, generator = adapted.layer.dense(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = adapted.adapter.weight(W)
        for parameter in adapted.adapter.parameters():
            parameter += LR * torch.randn(parameter.shape, generator=generator).sign()
        return ((adapted.adapter.weight(W) - before).norm() / W.norm() / LR).item()
