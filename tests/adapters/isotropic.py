"""How far the steps of an optimizer move a layer's weight, for the claim that calibrated steps are of one size."""

import torch
from torch import nn

from modules import adapters
from modules.adapters.base import Adapted, attach
from tests.adapters.test_rotation import LR, noise


def isotropic(method: str, fan_in: int, out: int, dtype: torch.dtype = torch.float32, **options) -> Adapted:
    """An adapted linear layer, "0", with normally distributed weights."""
    net = nn.Sequential(nn.Linear(fan_in, out)).to(dtype).requires_grad_(False)
    nn.init.normal_(net[0].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=0)


def adam_steps(adapted: Adapted, count: int = 100) -> list[float]:
    """Relative changes of the weight by the first steps of Adam on a fixed random linear loss of it, in units of lr."""
    W = adapted.base.weight.detach()
    target, found, before = noise(W), [], adapted.adapter.weight(W)
    optimizer = torch.optim.Adam(list(adapted.adapter.parameters()), lr=LR, eps=1e-30)
    for _ in range(count):
        optimizer.zero_grad()
        (before * target).sum().backward()
        optimizer.step()
        after = adapted.adapter.weight(W)
        found.append(((after - before).norm() / W.norm() / LR).item())
        before = after
    return found
