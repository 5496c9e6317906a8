"""What LoHa claims: LyCORIS' forward pass, a low-rank route where it is the smaller one, steps of one size."""

import pytest
import torch
from lycoris.modules.loha import LohaModule
from torch import nn

from modules.adapters.terms import Product, Terms
from modules.files import forms
from tests.adapters.cases import close
from tests.adapters.steps import adam_steps, first_step, isotropic
from tests.adapters.structured import BASES, adapted_layer, assert_computes_like, lycoris

NAMES = {"up1": "hada_w1_a", "down1": "hada_w1_b", "up2": "hada_w2_a", "down2": "hada_w2_b"}
RAW = {"rank": 3, "alpha": 1.5, "step_size": "raw"}


def both(base: nn.Module, options: dict):
    adapted = adapted_layer("loha", options, base)
    tensors = {theirs: adapted.adapter.get_parameter(ours) for ours, theirs in NAMES.items()}
    return adapted, lycoris(LohaModule, base, tensors, lora_dim=options["rank"], alpha=options["alpha"])


@pytest.mark.parametrize("rank", [2, 7])
@pytest.mark.parametrize("name", BASES)
def test_is_the_forward_pass_of_lycoris(name, rank):
    make, shape = BASES[name]
    adapted, theirs = both(make(), {**RAW, "rank": rank})
    assert adapted.adapter.is_low_rank == (rank == 2)
    assert_computes_like(adapted, theirs, NAMES, shape)


def test_merging_of_lycoris_applies_the_scale_twice():
    base = nn.Linear(24, 32)
    adapted, theirs = both(base, RAW)
    with torch.no_grad():
        change, merged = adapted.adapted_weight() - base.weight, theirs.get_merged_weight()[0] - base.weight
    close(merged, 0.5 * change, 1e-5)


def test_starts_as_published():
    adapter = isotropic("loha", 640, 640, rank=16, step_size="raw").adapter
    assert adapter.factor == 1 and not adapter.up2.any()
    for parameter, deviation in ((adapter.up1, 0.1), (adapter.down1, 1), (adapter.down2, 1)):
        assert parameter.std().item() == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("rank, size", [(1, 320), (8, 320), (64, 320), (8, 1280), (64, 1280)])
def test_one_step_changes_the_weight_by_lr(rank, size):
    assert first_step(isotropic("loha", size, size, rank=rank)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("rank", [4, 32])
def test_steps_of_adam_keep_their_size(rank):
    """On a loss that never turns, which all four factors follow."""
    steps = adam_steps(isotropic("loha", 320, 320, rank=rank))
    assert steps[0] == pytest.approx(1, abs=0.15) and 0.9 < steps[-1] / steps[0] < 1.3


@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
def test_goes_on_from_a_product_and_from_a_pair(step_size):
    adapted = isotropic("loha", 12, 20, rank=4, step_size=step_size)
    pairs = [(torch.randn(20, 3), torch.randn(3, 12)) for _ in range(2)]
    W = adapted.layer.dense()
    for terms in (forms.expanded(Terms(product=Product("hadamard", *pairs))), Terms(up=pairs[0][0], down=pairs[0][1])):
        adapted.adapter.start_from(terms, adapted.layer)
        close(adapted.adapter.weight(W), forms.applied(terms, adapted.layer, W), 1e-5)
        close(adapted(torch.eye(12)), (adapted.adapter.weight(W) + adapted.base.bias.unsqueeze(1)).mT, 1e-5)
    small = isotropic("loha", 12, 20, rank=2)
    with pytest.raises(ValueError, match="rank 3, but the run has rank 2; set adapter.rank 3"):
        small.adapter.start_from(Terms(up=pairs[0][0], down=pairs[0][1]), small.layer)
    with pytest.raises(ValueError, match="magnitudes, which loha cannot represent"):
        adapted.adapter.start_from(Terms(magnitude=torch.ones(20), axis="output"), adapted.layer)
