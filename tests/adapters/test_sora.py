"""What SORA claims: the authors' layer without its bias, turned outputs that a low-rank file holds, true rotations."""

import pytest
import torch

from tests.adapters.cases import CASES, adapt, close, fast, gradients, inputs, probe, randomise, through_weight, trained
from tests.adapters.oracles.sora import turn
from tests.adapters.steps import adam_steps, isotropic

NO_BIAS = next(case for case in CASES if case.name == "linear without bias")
both_turns = pytest.mark.parametrize("exact", [False, True], ids=["first order", "exact"])


def doubles(adapted) -> dict[str, torch.Tensor]:
    """The adapter's state in float64."""
    return {name: value.double() for name, value in adapted.adapter.state_dict().items()}


def test_it_is_the_authors_forward():
    """`z = d (x W^T) + s lora(x)`, `y = z + sp (z C D^T - z D C^T)`, as their layer computes it."""
    adapted = adapt("sora", {"rank": 3, "alpha": 6.0, "planes": 2, "step_size": "raw"}, NO_BIAS, torch.float64)
    x, p = inputs(NO_BIAS, torch.float64), doubles(adapted)
    C, D = p["source"], p["target"]
    z = p["magnitude"].exp() * adapted.base(x) + 2.0 * (x @ p["down"].t()) @ p["up"].t()
    scale = min(1.0, 1 / (C.norm() + D.norm() + 1e-6).item())
    close(fast(adapted, x), z + scale * (z @ C @ D.t() - z @ D @ C.t()), 1e-10)


@both_turns
def test_merging_keeps_the_identity(exact):
    """The authors' merge leaves it out, and an untrained adapter deletes the layer."""
    case = CASES[0]
    adapted, x = adapt("sora", {"rank": 4, "exact": exact}, case, start=True), inputs(case)
    W, p = adapted.layer.dense(), doubles(adapted)
    mistaken = (turn(p, exact) - torch.eye(12)) @ W.double()
    assert mistaken.norm() < 1e-6 * W.norm()
    assert torch.equal(adapted.adapted_weight(), W)
    adapted.merge()
    assert torch.equal(adapted(x), adapted.base(x))


@both_turns
def test_the_start_is_the_base_bit_for_bit(exact):
    for dtype in (torch.float32, torch.bfloat16):
        adapted = adapt("sora", {"rank": 4, "exact": exact}, CASES[0], start=True).to(dtype)
        x = inputs(CASES[0], dtype)
        assert torch.equal(fast(adapted, x), adapted.layer(x))


def test_the_exact_turn_keeps_lengths_and_the_first_order_one_does_not():
    found = {}
    for exact in (False, True):
        adapted = adapt("sora", {"rank": 4, "exact": exact}, CASES[0], torch.float64, start=True)
        randomise(adapted.adapter, scale=1.0)
        first, second = adapted.adapter.turn()
        found[exact] = torch.linalg.svdvals(torch.eye(12) + (first @ second).detach())
    assert (found[True] - 1).abs().max() < 1e-12
    assert found[False].max() > 1.01 and found[False].min() > 1 - 1e-12


def test_both_turns_are_one_to_first_order():
    changes = []
    for step in (1e-3, 1e-4):
        turned = []
        for exact in (False, True):
            adapted = adapt("sora", {"rank": 4, "exact": exact}, CASES[0], torch.float64, start=True)
            with torch.no_grad():
                adapted.adapter.target += step * torch.randn(
                    adapted.adapter.target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                turned.append(adapted.adapted_weight())
        changes.append(((turned[0] - turned[1]).norm() / (turned[0] - adapted.layer.dense()).norm()).item())
    assert changes[1] < 0.2 * changes[0] < 1e-3


@both_turns
def test_the_file_has_two_ranks_for_each_plane(exact):
    adapted = adapt("sora", {"rank": 3, "planes": 2, "exact": exact}, CASES[0])
    terms = adapted.adapter.export_terms(adapted.layer.dense())
    assert terms.up is not None and terms.up.shape == (12, 3 + 2 * 2) and terms.axis == "output"


def test_planes_are_at_most_half_of_the_outputs():
    assert adapt("sora", {"planes": 100}, CASES[0]).adapter.source.shape == (12, 6)


def test_raw_starts_as_published():
    adapter = adapt("sora", {"step_size": "raw"}, CASES[0], start=True).adapter
    assert adapter.turn_unit == 1 and torch.equal(adapter.source, adapter.target)
    assert 0.5 / 12**0.5 < adapter.source.abs().max() <= 1 / 12**0.5


@both_turns
def test_the_two_ends_of_a_turn_start_with_opposite_gradients(exact):
    adapted, x = adapt("sora", {"exact": exact}, CASES[0], torch.float64, start=True), inputs(CASES[0], torch.float64)
    for route in (fast, through_weight):
        found = gradients(probe(route(adapted, x)), trained(adapted.adapter), x)
        close(found["source"], -found["target"], 1e-10)
        assert found["source"].norm() > 1e-3


SIZES = [{"rank": 2, "planes": 1}, {"rank": 64, "planes": 16}, {"rank": 16, "planes": 4, "exact": True}]


@pytest.mark.parametrize("options", SIZES, ids=str)
@pytest.mark.parametrize("width", [320, 1280])
def test_one_step_changes_the_weight_by_lr(options, width):
    step = adam_steps(isotropic("sora", width, width, **options), 1)[0]
    assert 1 / 1.15 < step < 1.15, f"one step is {step:.3f} lr"


@pytest.mark.parametrize("options", SIZES, ids=str)
def test_later_steps_are_as_large(options):
    first, *_, last = adam_steps(isotropic("sora", 320, 320, **options))
    assert 1 / 1.25 < last / first < 1.25, f"the steps grow from {first:.3f} to {last:.3f} lr"
