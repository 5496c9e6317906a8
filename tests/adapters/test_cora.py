"""CoRA's basis: orthonormal whatever the pool holds, and steps of a known size from there."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from tests.adapters.cases import close
from tests.adapters.test_lora import steps


def layer(out, fan_in, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(fan_in, out)).requires_grad_(False)
    return attach(net, "0", adapters.methods()["cora"].Config(method="cora", **options), seed=1)


def pairs(out, fan_in, *ranks):
    torch.manual_seed(3)
    return [(torch.randn(out, rank), torch.randn(rank, fan_in)) for rank in ranks]


@pytest.mark.parametrize("ranks", [(2,), (2, 3), (8, 1, 4)], ids=str)
@pytest.mark.parametrize("rank", [4, 30], ids=str)
def test_up_is_orthonormal_and_spans_the_largest_changes(ranks, rank):
    adapted, given = layer(20, 16, rank=rank, step_size="raw"), pairs(20, 16, *ranks)
    adapted.adapter.start_from_pool(given)
    columns = adapted.adapter.up[:, :20]
    close(columns.mT @ columns, torch.eye(min(rank, 20)), 1e-5)
    change = torch.cat([up @ down for up, down in given], 1)
    best = torch.linalg.svdvals(change)[: min(rank, sum(ranks))].norm()
    assert (columns.mT @ change).norm().item() == pytest.approx(best.item(), rel=1e-4)
    assert torch.equal(adapted.adapted_weight(), adapted.base.weight)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("rank, width", [(1, 320), (64, 320), (4, 1280)])
def test_one_step_changes_the_weight_by_lr(frozen, rank, width):
    adapted = layer(width, width, rank=rank, frozen=frozen)
    adapted.adapter.start_from_pool(pairs(width, width, 2, 3))
    (first,) = steps(adapted, 1)
    assert 1 / 1.15 < first < 1.15


@pytest.mark.parametrize("frozen, limit", [(True, 1.05), (False, 1.35)])
def test_the_hundredth_step_is_like_the_first(frozen, limit):
    found = steps(layer(320, 320, rank=8, frozen=frozen), 100)  # not frozen, up begins to count as down grows
    assert 1 / limit < found[-1] / found[0] < limit
