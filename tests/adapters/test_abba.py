"""What ABBA claims: it starts from the base's own leading directions, is a LoRA of rank r1 r2, and steps by lr."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import Adapted, attach
from tests.adapters.cases import close, fast, randomise, through_weight
from tests.adapters.steps import adam_steps, isotropic
from tests.adapters.test_rotation import noise, relative_step


def steep(**options) -> Adapted:
    """A linear layer whose singular values fall by 0.7 from each to the next."""
    adapted = isotropic("abba", 96, 64)
    left, values, right = torch.linalg.svd(adapted.base.weight, full_matrices=False)
    net = nn.Sequential(nn.Linear(96, 64)).requires_grad_(False)
    net[0].weight.copy_(left * (values[0] * 0.7 ** torch.arange(64)) @ right)
    return attach(net, "0", adapters.methods()["abba"].Config(**options), seed=0)


@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
def test_the_first_matrix_starts_as_the_leading_part_of_the_base(step_size):
    adapted = steep(rank=6, step_size=step_size)
    left, values, right = torch.linalg.svd(adapted.base.weight)
    best = left[:, :6] * values[:6] @ right[:6]
    first = adapted.adapter.first_up @ adapted.adapter.first_down
    close(first * (best.norm() / first.norm() if step_size == "calibrated" else 1), best, 1e-4)
    if step_size == "raw":
        close(adapted.adapter.first_up.norm(dim=0), values[:6].sqrt(), 1e-4)
        close(adapted.adapter.first_down.norm(dim=1), values[:6].sqrt(), 1e-4)
        assert adapted.adapter.factor == 32, "the publication's alpha"


@pytest.mark.parametrize("rank, second", [(2, None), (3, 5), (5, 3)])
def test_the_file_is_a_lora_of_the_product_of_both_ranks(rank, second):
    adapted = isotropic("abba", 128, 96, torch.float64, rank=rank, second_rank=second)
    randomise(adapted.adapter, scale=1.0)
    W = adapted.base.weight
    with torch.no_grad():
        terms, wanted = adapted.adapter.export_terms(W), adapted.adapter.weight(W) - W
    full = rank * (second or rank)
    assert terms.difference is None and terms.up.shape == (96, full) and terms.down.shape == (full, 128)
    assert torch.linalg.matrix_rank(wanted) == full
    close(terms.up @ terms.down, wanted, 1e-13)


@pytest.mark.parametrize("rank, key", [(7, "up"), (8, "difference")])
def test_the_smaller_form_is_computed_with(rank, key):
    """64 * 256 entries are more than 7 * 7 * (64 + 256), and fewer than 8 * 8 * (64 + 256)."""
    adapted = isotropic("abba", 256, 64, torch.float64, rank=rank)
    randomise(adapted.adapter)
    assert key in adapted.adapter.derive(adapted.layer)
    x = torch.randn(5, 256, dtype=torch.float64)
    close(fast(adapted, x), through_weight(adapted, x), 1e-12)


def test_a_rank_wider_than_the_layer_is_lowered():
    adapter = isotropic("abba", 12, 5, rank=8).adapter
    assert adapter.first_up.shape == (5, 5) and adapter.second_down.shape == (8, 12)


def test_a_zero_weight_can_learn():
    net = nn.Sequential(nn.Linear(16, 8).requires_grad_(False))
    net[0].weight.zero_()
    adapted = attach(net, "0", adapters.methods()["abba"].Config(rank=2), seed=0)
    adapted(torch.randn(4, 16)).sum().backward()
    assert adapted.adapter.second_up.grad.abs().min() > 0 and adapted.adapter.factor.isfinite()


def test_an_alpha_that_does_nothing_is_refused():
    with pytest.raises(ValueError, match="alpha 8 has no effect"):
        adapters.methods()["abba"].Config(alpha=8)


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("rank", [1, 4, 32])
def test_one_step_changes_the_weight_by_lr(width, rank):
    adapted = isotropic("abba", width, width, rank=rank)
    step, _ = relative_step(adapted, {adapted.adapter.second_up: noise(adapted.adapter.second_up)})
    assert 1 / 1.15 < step < 1.15, f"one step is {step:.3f} lr"


@pytest.mark.parametrize("rank", [4, 16])
def test_steps_grow_no_more_than_those_of_a_lora(rank):
    """Where the three other factors had a root mean square of 1 and not 3, the hundredth step were two of the first."""
    ours = adam_steps(isotropic("abba", 320, 320, rank=rank))
    lora = adam_steps(isotropic("lora", 320, 320, rank=rank, step_size="calibrated"))
    assert ours[99] / ours[0] < 1.05 * lora[99] / lora[0] < 1.4
