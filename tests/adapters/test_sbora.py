"""What SBoRA claims: it changes rank columns or rows of the weight and nothing else, and is a LoRA all the same."""

import pytest
import torch

from modules.adapters.base import Terms
from tests.adapters.cases import CASES, adapt, close, fast, oracle, randomise, through_weight
from tests.adapters.steps import adam_steps, isotropic
from tests.adapters.test_rotation import noise, relative_step

RANK = 3
both_sides = pytest.mark.parametrize("side", ["input", "output"])


@both_sides
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_changes_rank_columns_or_rows_and_no_others(side, case):
    adapted = adapt("sbora", {"rank": RANK, "side": side}, case)
    randomise(adapted.adapter, scale=1.0)
    W = adapted.layer.dense()
    with torch.no_grad():
        changed = adapted.adapter.weight(W) != W
    touched = changed.any(0 if side == "input" else 1)
    assert touched.nonzero().flatten().tolist() == sorted(adapted.adapter.places.tolist())
    assert len(adapted.adapter.places.unique()) == RANK
    assert changed.sum() == RANK * W.shape[0 if side == "input" else 1]


@both_sides
def test_its_lora_is_exact(side):
    adapted = isotropic("sbora", 40, 24, rank=5, side=side)
    randomise(adapted.adapter)
    W = adapted.base.weight
    with torch.no_grad():
        terms = adapted.adapter.export_terms(W)
        assert terms.up.shape == (24, 5) and terms.down.shape == (5, 40)
        assert torch.equal(W + terms.up @ terms.down, adapted.adapter.weight(W))
    units = terms.down if side == "input" else terms.up.mT
    assert set(units.unique().tolist()) == {0, 1} and (units.sum(1) == 1).all()


def test_only_the_learning_inputs_are_kept_for_the_backward_pass():
    adapted = isotropic("sbora", 320, 16, rank=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        adapted(torch.randn(7, 5, 320))
    assert kept and all(tensor.numel() < 7 * 5 * 320 or tensor.shape == (16, 320) for tensor in kept)


@pytest.mark.parametrize("shape", [(320,), (7, 320), (2, 3, 7, 320)], ids=str)
@both_sides
def test_inputs_of_any_dimension(shape, side):
    """The authors' code takes three dimensions only."""
    adapted = isotropic("sbora", 320, 16, torch.float64, rank=4, side=side)
    randomise(adapted.adapter)
    x = torch.randn(shape, dtype=torch.float64)
    close(fast(adapted, x), through_weight(adapted, x), 1e-13)


@both_sides
def test_it_goes_on_from_its_own_file(side):
    given, fresh = (isotropic("sbora", 40, 24, rank=rank, side=side) for rank in (4, 6))
    randomise(given.adapter)
    W = given.base.weight
    with torch.no_grad():
        fresh.adapter.start_from(given.adapter.export_terms(W), fresh.layer)
        close(fresh.adapter.weight(W), given.adapter.weight(W), 1e-6)
    assert len(fresh.adapter.places.unique()) == 6, "the two that the file does not have go on as they were"


@both_sides
def test_other_files_are_refused(side):
    fresh, words = isotropic("sbora", 40, 24, rank=4, side=side), "40 columns" if side == "input" else "24 rows"
    with pytest.raises(ValueError, match=f"changes {words} of the weight, but the run 4; set adapter.rank"):
        fresh.adapter.start_from(Terms(up=torch.randn(24, 2), down=torch.randn(2, 40)), fresh.layer)
    with pytest.raises(ValueError, match="a full difference"):
        fresh.adapter.start_from(Terms(difference=torch.randn(24, 40)), fresh.layer)


@both_sides
def test_a_rank_wider_than_the_layer_is_lowered(side):
    assert len(isotropic("sbora", 12, 5, rank=16, side=side).adapter.places) == (12 if side == "input" else 5)


@both_sides
@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("rank", [1, 16, 128])
def test_one_step_changes_the_weight_by_lr(side, width, rank):
    adapted = isotropic("sbora", width, 320, rank=rank, side=side)
    step, _ = relative_step(adapted, {adapted.adapter.change: noise(adapted.adapter.change)})
    assert abs(step - 1) < 1e-3, f"one step is {step:.3f} lr"


@both_sides
def test_all_steps_have_one_size(side):
    steps = adam_steps(isotropic("sbora", 320, 320, rank=8, side=side))
    assert max(abs(step - 1) for step in steps) < 1e-3


def test_the_oracle_walks_both_sides():
    assert {v["side"] for v in oracle("sbora").VARIANTS} == {"input", "output"}
