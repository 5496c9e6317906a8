"""What LoKr claims: LyCORIS' forward pass and way of splitting, no large matrix, steps of one size."""

import pytest
import torch
from lycoris.functional.general import factorization
from lycoris.modules.lokr import LokrModule
from torch import nn

from modules.adapters.lokr import split
from modules.adapters.terms import Product, Terms
from modules.files import forms
from tests.adapters.cases import close
from tests.adapters.steps import adam_steps, first_step, isotropic
from tests.adapters.structured import BASES, adapted_layer, assert_computes_like, lycoris

NAMES = {"first": "lokr_w1", "second": "lokr_w2", "up": "lokr_w2_a", "down": "lokr_w2_b"}


def both(base: nn.Module, rank: int, factor: int | None):
    adapted = adapted_layer("lokr", {"rank": rank, "factor": factor, "alpha": 1.5, "step_size": "raw"}, base)
    names = {ours: theirs for ours, theirs in NAMES.items() if ours in dict(adapted.adapter.named_parameters())}
    tensors = {theirs: adapted.adapter.get_parameter(ours) for ours, theirs in names.items()}
    theirs = lycoris(LokrModule, base, tensors, lora_dim=rank, alpha=1.5, factor=-1 if factor is None else factor)
    return adapted, theirs, names


@pytest.mark.parametrize("rank, factor", [(2, 4), (2, None), (5, 3), (100, 4)])
@pytest.mark.parametrize("name", BASES)
def test_is_the_forward_pass_of_lycoris(name, rank, factor):
    make, shape = BASES[name]
    adapted, theirs, names = both(make(), rank, factor)
    assert set(dict(theirs.named_parameters())) == set(names.values())  # and of the same shapes, or it would not copy
    assert_computes_like(adapted, theirs, names, shape)


@pytest.mark.parametrize("factor", [None, 1, 2, 4, 8, 16, 100])
def test_sizes_are_split_as_in_lycoris(factor):
    for size in (*range(1, 130), 250, 320, 360, 640, 768, 1024, 1280, 2048, 3072, 5120, 10240):
        assert split(size, factor) == factorization(size, -1 if factor is None else factor), size


def test_merging_of_lycoris_applies_the_scale_twice():
    base = nn.Linear(24, 32)
    adapted, theirs, _ = both(base, 2, 4)
    with torch.no_grad():
        change, merged = adapted.adapted_weight() - base.weight, theirs.get_merged_weight()[0] - base.weight
    close(merged, 0.75 * change, 1e-5)


@pytest.mark.parametrize("options", [{"rank": 2, "factor": 4}, {"rank": 99, "factor": None}])
def test_no_large_matrix_is_kept_for_the_backward_pass(options):
    adapted = adapted_layer("lokr", options, nn.Linear(64, 64))
    x, sizes = torch.randn(2, 64, requires_grad=True), []
    base = adapted.base.weight.data_ptr()

    def keep(tensor):
        if tensor.data_ptr() != base:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted(x).sum().backward()
    assert max(sizes) < 64 * 64 / 4


@pytest.mark.parametrize("rank, factor, size", [
    (1, 8, 320), (16, 8, 320), (5000, 8, 320), (16, 2, 1280), (64, 8, 1280), (16, None, 1280), (4096, 16, 1280),
])
def test_one_step_changes_the_weight_by_lr(rank, factor, size):
    assert first_step(isotropic("lokr", size, size, rank=rank, factor=factor)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("rank, growth", [(4, 1.75), (4096, 1.35)])
def test_adam_steps_grow_as_the_factors_turn_to_one_direction(rank, growth):
    """A calibrated LoRA's become 1.32 times as large on this loss, which never turns; so do those of two factors."""
    steps = adam_steps(isotropic("lokr", 320, 320, rank=rank))
    assert steps[0] == pytest.approx(1, abs=0.15) and 1 < steps[-1] / steps[0] < growth


@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
@pytest.mark.parametrize("rank", [3, 99])
def test_goes_on_from_a_product(rank, step_size):
    adapted = isotropic("lokr", 12, 20, rank=rank, factor=2, step_size=step_size)
    first, second = torch.randn(2, 2), (torch.randn(10, 2), torch.randn(2, 6))
    terms, W = forms.expanded(Terms(product=Product("kronecker", (first,), second))), adapted.layer.dense()
    adapted.adapter.start_from(terms, adapted.layer)
    close(adapted.adapter.weight(W), forms.applied(terms, adapted.layer, W), 1e-5)


@pytest.mark.parametrize("product, words", [
    (((torch.ones(4, 2),), (torch.ones(5, 6),)), "4 x 2, but the run's 2 x 2; set adapter.factor 4"),
    (((torch.ones(2, 2),), (torch.ones(10, 6),)), "set adapter.rank 5"),
    (((torch.ones(2, 2),), (torch.ones(10, 4), torch.ones(4, 6))), "set adapter.rank 4"),
])
def test_refuses_other_sizes(product, words):
    adapted = isotropic("lokr", 12, 20, rank=3, factor=2)
    with pytest.raises(ValueError, match=words):
        adapted.adapter.start_from(Terms(product=Product("kronecker", *product)), adapted.layer)
    with pytest.raises(ValueError, match="a low-rank pair, which lokr cannot represent"):
        adapted.adapter.start_from(Terms(up=torch.ones(20, 1), down=torch.ones(1, 12)), adapted.layer)
