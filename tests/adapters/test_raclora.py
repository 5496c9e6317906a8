"""What RAC-LoRA claims: a chain is the sum of its links, and a link is a LoRA with a frozen random factor."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import Terms, attach
from modules.adapters.raclora import Adapter
from tests.adapters.cases import close, fast, randomise

METHOD = adapters.methods()["raclora"]
LR = 1e-3


def layer(width: int = 16, out: int = 12, dtype: torch.dtype = torch.float64, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, out)).to(dtype)
    nn.init.normal_(net[0].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return attach(net, "0", METHOD.Config(**options), seed=2)


def test_a_chain_is_the_sum_of_its_links():
    adapted = layer(rank=3, links=4)
    adapter, W = adapted.adapter, adapted.layer.dense()
    factor, total = adapter.factor.double(), W.clone()
    with torch.no_grad():
        for step in range(1, 41):
            randomise(adapter, seed=step)
            if step % 10 == 0:  # the link is finished as it is now
                number = step // 10 - 1
                assert adapter.link == number
                total += factor * adapter.up @ adapter.down[3 * number : 3 * number + 3]
            before = adapter.weight(W)
            fresh = Adapter.after_step([adapter], step, 40)
            close(adapter.weight(W), before, 1e-14)
            assert bool(fresh) == (step in (10, 20, 30))
            if fresh:
                assert fresh[0] is adapter.up and not adapter.up.any()
        close(adapter.weight(W), total, 1e-12)
        terms = adapter.export_terms(W)
        assert terms.up.shape == (12, 12) and terms.down.shape == (12, 16)
        close(W + terms.up @ terms.down, total, 1e-12)


def test_links_that_were_skipped_or_do_not_fit_are_left_empty():
    adapter = layer(rank=2, links=4).adapter
    randomise(adapter)
    with torch.no_grad():
        Adapter.after_step([adapter], 11, 20)  # step 5 and 10 overflowed
    assert adapter.link == 2 and adapter.done[:, :2].any() and not adapter.done[:, 2:].any()
    short = layer(rank=2, links=4).adapter
    with torch.no_grad():
        found = [(Adapter.after_step([short], step, 2), int(short.link))[1] for step in (1, 2)]
    assert found == [2, 3]


def test_only_the_link_under_way_learns():
    adapted = layer(rank=2, links=3)
    adapter, x = adapted.adapter, torch.randn(5, 16, dtype=torch.float64)
    assert [name for name, _ in adapter.named_parameters()] == ["up"]
    randomise(adapter)
    with torch.no_grad():
        Adapter.after_step([adapter], 1, 3)
        randomise(adapter)
    done, down = adapter.done.clone(), adapter.down.clone()
    fast(adapted, x).square().sum().backward()
    torch.optim.SGD(adapter.parameters(), lr=0.1).step()
    assert torch.equal(adapter.done, done) and torch.equal(adapter.down, down)


def test_directions_of_links_are_independent():
    down = layer(width=512, rank=4, links=8, dtype=torch.float32).adapter.down
    rows = down / down.norm(dim=1, keepdim=True)
    assert (rows @ rows.t() - torch.eye(32)).abs().max() < 0.25


@pytest.mark.parametrize("step_size", ["calibrated", "raw"])
def test_it_goes_on_from_a_lora_in_its_first_link(step_size):
    up, down = torch.randn(12, 2, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    adapted = layer(rank=3, links=2, step_size=step_size)
    adapted.adapter.start_from(Terms(up=up, down=down), adapted.layer)
    W = adapted.layer.dense()
    close(adapted.adapter.weight(W), W + up @ down, 1e-6)
    with pytest.raises(ValueError, match="set adapter.rank 4"):
        adapted.adapter.start_from(Terms(up=torch.zeros(12, 4), down=torch.zeros(4, 16)), adapted.layer)


@pytest.mark.parametrize("rank, width", [(1, 320), (64, 320), (8, 1280)])
def test_steps_have_one_size_whatever_rank_width_and_link(rank, width):
    adapted, changes = layer(width, width, torch.float32, rank=rank, links=2), []
    adapter, W = adapted.adapter, adapted.base.weight.detach()
    direction = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=LR, eps=1e-30)
    for step in range(1, 201):
        adapter.up.grad = None
        looked = step in (1, 100, 101, 200)
        before = adapter.weight(W).detach() if looked else W
        chain = adapter.down[rank * int(adapter.link) :][:rank]
        adapter.up.grad = adapter.factor * direction @ chain.t()
        optimizer.step()
        if looked:
            changes.append(((adapter.weight(W).detach() - before).norm() / W.norm() / LR).item())
        with torch.no_grad():
            for parameter in Adapter.after_step([adapter], step, 200):
                optimizer.state.pop(parameter)
    assert all(abs(change - 1) < 0.15 for change in changes), changes
