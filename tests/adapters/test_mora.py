"""What MoRA claims: as many numbers as a LoRA and a far higher rank. What its authors' code computes, and ignores."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from tests.adapters import test_contract, test_life
from tests.adapters.cases import Case, adapt, close, fast, inputs, randomise, through_weight
from tests.adapters.steps import adam_steps, isotropic
from tests.adapters.test_rotation import noise, relative_step

ROPE = {"rank": 2, "kind": "rope"}
NO_DOWNSIZING = [
    Case("wide", "linear", lambda: nn.Linear(12, 32), (3, 5, 12)),
    Case("wrapped", "linear", lambda: nn.Linear(21, 24, bias=False), (7, 21)),
    Case("nf4", "linear", lambda: nn.Linear(64, 96), (5, 64), packing="nf4"),
]
"""Layers that kind rope takes; most of those in cases.py have too many inputs for it."""

CHECKS = [
    test_contract.test_starts_as_the_identity,
    test_contract.test_weight_is_the_definition,
    test_contract.test_both_routes_and_their_gradients_agree_with_the_oracle,
    test_contract.test_both_routes_agree_in_single_precision,
    test_contract.test_derived_once_a_step_is_exact,
    test_contract.test_export_terms_are_exact,
    test_life.test_half_precision_keeps_the_adapter,
    test_life.test_merging_is_the_forward_and_can_be_undone,
]


@pytest.mark.parametrize("case", NO_DOWNSIZING, ids=lambda case: case.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_rope_keeps_the_contract(check, case):
    check("mora", ROPE, case)


def published(x, square, out_features, kind):
    """The authors' `_apply_mora` of types 1 and 6, as they describe it: wrap, compress, multiply, decompress."""
    n, inputs = len(square), x.shape[-1]
    groups = -(-inputs // n)
    x = x[..., torch.arange(groups * n) % inputs].view(*x.shape[:-1], groups, n)
    if kind == "sharing":
        y = x.sum(-2) @ square.t()
    else:
        angles = torch.outer(torch.arange(groups), 10000 ** (-torch.arange(0, n, 2) / n)).repeat(1, 2).to(x.dtype)
        half_turned = torch.cat([-x[..., n // 2 :], x[..., : n // 2]], -1)
        y = ((x * angles.cos() + half_turned * angles.sin()) @ square.t()).flatten(-2)
    return y[..., torch.arange(out_features) % y.shape[-1]]


@pytest.mark.parametrize("kind", ["sharing", "rope"])
@pytest.mark.parametrize("fan_in, out", [(64, 64), (48, 110), (52, 50)])
def test_it_is_the_published_one(kind, fan_in, out):
    adapted = isotropic("mora", fan_in, out, rank=3, kind=kind, step_size="raw")
    randomise(adapted.adapter, scale=1.0)
    assert adapted.adapter.factor == 1, "no alpha / rank"
    x = torch.randn(5, fan_in)
    close(fast(adapted, x) - adapted.base(x), published(x, adapted.adapter.square, out, kind), 1e-5)


@pytest.mark.parametrize("kind, size, rank", [("sharing", 202, 202), ("rope", 202, 1280)])
def test_numbers_of_a_lora_and_a_high_rank(kind, size, rank):
    adapted = isotropic("mora", 1280, 1280, rank=16, kind=kind)
    assert adapted.adapter.square.shape == (size, size)
    randomise(adapted.adapter, scale=1.0)
    W = adapted.base.weight
    with torch.no_grad():
        terms, changed = adapted.adapter.export_terms(W), adapted.adapter.weight(W)
    difference = terms.difference if kind == "rope" else terms.up @ terms.down
    close(W + difference, changed, 1e-6)
    assert torch.linalg.matrix_rank(difference) == rank
    if kind == "sharing":
        assert terms.up.shape == (1280, size) and terms.down.shape == (size, 1280) and terms.difference is None


@pytest.mark.parametrize("fan_in, out, taken", [(64, 64, True), (66, 65, True), (80, 32, False), (640, 80, False)])
def test_rope_refuses_layers_whose_inputs_it_would_ignore(fan_in, out, taken):
    """Methods.md 7.10: the authors' code ignores inputs beyond the number of outputs."""
    if not taken:
        with pytest.raises(ValueError, match=f"0: with kind rope a layer from {fan_in} to {out} would ignore"):
            isotropic("mora", fan_in, out, **ROPE)
        return
    adapted = isotropic("mora", fan_in, out, **ROPE)
    randomise(adapted.adapter)
    W = adapted.base.weight
    with torch.no_grad():
        assert (adapted.adapter.weight(W) != W).any(0).all()


def test_what_is_refused_would_be_ignored():
    x = torch.randn(1, 80, requires_grad=True)
    published(x, torch.randn(10, 10), 32, "rope").sum().backward()
    assert not x.grad[0, 40:].any() and x.grad[0, :40].all()


def test_the_square_is_no_wider_than_the_layer():
    assert isotropic("mora", 40, 24, rank=64).adapter.square.shape == (24, 24)


def test_there_is_no_alpha():
    with pytest.raises(ValueError, match="Extra inputs"):
        adapters.methods()["mora"].Config(alpha=1.0)


def test_rope_needs_a_pair():
    net = nn.ModuleDict({"odd_layer": nn.Linear(8, 1)})
    with pytest.raises(ValueError, match="odd_layer: kind rope needs two"):
        attach(net, "odd_layer", adapters.methods()["mora"].Config(kind="rope"), seed=0)


@pytest.mark.parametrize("kind", ["sharing", "rope"])
@pytest.mark.parametrize("fan_in, out, rank", [(320, 320, 1), (320, 1280, 64), (1280, 1280, 16)])
def test_one_step_changes_the_weight_by_lr(kind, fan_in, out, rank):
    adapted = isotropic("mora", fan_in, out, rank=rank, kind=kind)
    step, _ = relative_step(adapted, {adapted.adapter.square: noise(adapted.adapter.square)})
    assert 1 / 1.15 < step < 1.15, f"one step is {step:.3f} lr"


@pytest.mark.parametrize("kind", ["sharing", "rope"])
def test_all_steps_have_one_size(kind):
    steps = adam_steps(isotropic("mora", 320, 320, rank=4, kind=kind))
    assert max(abs(step / steps[0] - 1) for step in steps) < 1e-2


def test_both_routes_agree_on_a_layer_of_real_size():
    case = Case("", "linear", lambda: nn.Linear(320, 640), (9, 320))
    adapted, x = adapt("mora", {"rank": 16}, case), inputs(case)
    close(fast(adapted, x), through_weight(adapted, x), 1e-5)
