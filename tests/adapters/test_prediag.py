"""What Pre-Diag claims: outputs scaled without a norm, held exactly by files with magnitudes, which it can go on from.

Also of the shared part of such methods.
"""

import pytest
import torch

from modules.adapters.base import Terms
from tests.adapters.cases import CASES, adapt, close, fast, inputs
from tests.adapters.steps import adam_steps, isotropic

scaled_methods = pytest.mark.parametrize("method", ["prediag", "sora"])
KINDS = [case for case in CASES if case.name in ("linear", "conv2d", "embedding")]
on_each_kind = pytest.mark.parametrize("case", KINDS, ids=[case.name for case in KINDS])


@scaled_methods
@on_each_kind
@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
@pytest.mark.parametrize("scaled", [False, True], ids=["low rank", "magnitudes"])
def test_it_goes_on_from_files_of_others(method, case, step_size, scaled):
    source = adapt("dora" if scaled else "lora", {"rank": 3, **({"axis": "output"} if scaled else {})}, case)
    adapted = adapt(method, {"rank": 4, "step_size": step_size}, case, start=True)
    W = source.layer.dense()
    with torch.no_grad():
        adapted.adapter.start_from(source.adapter.export_terms(W), adapted.layer)
        close(adapted.adapter.weight(W), source.adapter.weight(W), 1e-6)


@scaled_methods
def test_it_goes_on_from_its_own_files(method):
    ours, next_one = adapt(method, {"rank": 3}, CASES[0]), adapt(method, {"rank": 16}, CASES[0], start=True)
    W = ours.layer.dense()
    with torch.no_grad():
        next_one.adapter.start_from(ours.adapter.export_terms(W), next_one.layer)
        close(next_one.adapter.weight(W), ours.adapter.weight(W), 1e-6)


@scaled_methods
@pytest.mark.parametrize("terms, words", [
    (Terms(magnitude=torch.ones(16), axis="input"), "along the input"),
    (Terms(magnitude=-torch.ones(12), axis="output"), "not positive"),
    (Terms(difference=torch.ones(12, 16)), "a full difference"),
    (Terms(up=torch.ones(12, 9), down=torch.ones(9, 16)), "set adapter.rank 9"),
    (Terms(up=torch.ones(12, 9), down=torch.ones(9, 16), magnitude=torch.ones(12), axis="output"), "adapter.rank 9"),
])  # fmt: skip
def test_what_it_cannot_hold_is_a_sentence(method, terms, words):
    adapted = adapt(method, {"rank": 4}, CASES[0], start=True)
    with pytest.raises(ValueError, match=words):
        adapted.adapter.start_from(terms, adapted.layer)
    assert not adapted.adapter.magnitude.any() and not adapted.adapter.up.any()


@scaled_methods
@pytest.mark.parametrize("ratio", [-12.0, 5.0], ids=["nearly deleted", "large"])
def test_every_state_has_a_file(method, ratio):
    """d is positive by construction: divided by zero, or by a sign, nothing ever is."""
    adapted = adapt(method, {"rank": 4}, CASES[0], torch.float64)
    with torch.no_grad():
        adapted.adapter.magnitude[3] = ratio / adapted.adapter.unit
        W = adapted.layer.dense()
        terms, expected = adapted.adapter.export_terms(W), adapted.adapter.weight(W)
    V = W + terms.up @ terms.down
    close(V / V.norm(dim=1, keepdim=True) * terms.magnitude.unsqueeze(1), expected, 1e-10)
    assert (terms.magnitude > 0).all() and terms.axis == "output"


@scaled_methods
def test_the_bias_is_left_alone(method):
    adapted = adapt(method, {"rank": 4}, CASES[0])
    zero = torch.zeros_like(inputs(CASES[0]))
    close(fast(adapted, zero), adapted.base(zero), 1e-7)


@pytest.mark.parametrize("rank", [2, 64])
@pytest.mark.parametrize("width", [320, 1280])
def test_one_step_changes_the_weight_by_lr(rank, width):
    step = adam_steps(isotropic("prediag", width, width, rank=rank), 1)[0]
    assert 1 / 1.15 < step < 1.15, f"one step is {step:.3f} lr"


@pytest.mark.parametrize("rank", [2, 64])
def test_later_steps_are_as_large(rank):
    first, *_, last = adam_steps(isotropic("prediag", 320, 320, rank=rank))
    assert 1 / 1.25 < last / first < 1.25, f"the steps grow from {first:.3f} to {last:.3f} lr"
