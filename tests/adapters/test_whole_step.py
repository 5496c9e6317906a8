"""Whole optimizer steps by the derived route are those by the dense definition, and keep no more than is said."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from modules.adapters.derived import Derived
from modules.training import flat
from modules.training.optimizers import AdamW
from tests.adapters.cases import (
    CASES,
    DOUBLE,
    SINGLE,
    adapt,
    close,
    every_pair,
    exact,
    inputs,
    label,
    probe,
    through_weight,
    trained,
    variants,
)

STEPS, MICRO_BATCHES = 2, 3


def optimizer_of(adapted):
    found = list(trained(adapted.adapter).values())
    # A large eps: Adam's sign would make a whole step of a gradient that is rounding.
    return flat.build(AdamW(eps=1e-3), [{"params": found, "lr_scale": 1.0, "decay": True}], 1e-2)


@every_pair
def test_whole_steps_are_those_of_the_dense_definition(method, options, case):
    dtype, tolerance = exact(case)
    quick = adapt(method, options, case, dtype)
    dense = copy.deepcopy(quick)
    derived = Derived([quick])
    gradients, optimizer = optimizer_of(quick)
    other_gradients, other = optimizer_of(dense)
    for step in range(STEPS):
        batches = [inputs(case, dtype, seed=10 * step + n) for n in range(MICRO_BATCHES)]
        gradients.clear()
        other_gradients.clear()
        derived.begin()
        for seed, x in enumerate(batches):
            probe(quick(x), seed).backward()
            probe(through_weight(dense, x), seed).backward()
        derived.pull_back()
        for buffer, stepped in ((gradients, optimizer), (other_gradients, other)):
            buffer.collect()
            buffer.clip(1.0)
            stepped.step()
    for (name, parameter), expected in zip(
        trained(quick.adapter).items(), trained(dense.adapter).values(), strict=True
    ):
        close(parameter, expected, 100 * tolerance if case.packing else tolerance, name)


def kept_bytes(adapted, x, again: bool) -> int:
    """What a forward pass keeps besides parameters, buffers, leaves and `x` itself; recomputed later if `again`."""
    known = [*adapted.parameters(), *adapted.buffers(), *adapted.leaves.values(), x]
    own, kept = {tensor.untyped_storage().data_ptr() for tensor in known}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = checkpoint(adapted, x, use_reentrant=False) if again else adapted(x)
    assert y is not None
    return sum(kept.values())


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.packing and case.kind != "embedding"],
                         ids=lambda case: case.name)
@pytest.mark.parametrize("method, options", [v for v in variants() if "axis" in v[1]],
                         ids=[label(*v) for v in variants() if "axis" in v[1]])
def test_a_magnitude_keeps_at_most_one_output_more_than_a_plain_pair(method, options, case, again):
    found = {}
    for name, given in ((method, options), ("lora", {"rank": options["rank"]})):
        adapted, x = adapt(name, given, case, SINGLE), inputs(case, SINGLE)
        derived = Derived([adapted])
        derived.begin()
        found[name] = kept_bytes(adapted, x, again)
        output = adapted(x).untyped_storage().nbytes()
    along_output = options["axis"] == "output"
    assert found[method] <= found["lora"] + (output if along_output and not again else 0)


def test_double_is_what_is_compared():
    assert exact(CASES[0]) == (DOUBLE, 1e-10)
