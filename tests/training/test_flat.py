"""Parameters side by side: the optimizer steps each as if it stood alone, and adapters notice nothing."""

import gc
import typing

import pytest
import torch
from bitsandbytes.optim import GlobalOptimManager
from torch import nn

from modules.training import flat, optimizers
from modules.training.flat import Flat
from modules.training.optimizers import OptimizerOptions

CLASSES = typing.get_args(typing.get_args(OptimizerOptions)[0])
ON_CPU = [options for options in CLASSES if not options().name.startswith("paged_")]
SHAPES = [(96, 64), (3, 5), (70, 65), (), (7,), (4096,), (1000,)]


def parameters() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]


def groups(found: list[nn.Parameter]) -> list[dict]:
    common = {"lr_scale": 1.0, "pairs": [], "calibrated": False}
    names = [f"{place}" for place in range(len(found))]
    return [
        {**common, "params": found[:4], "names": names[:4], "decay": True},
        {**common, "params": found[4:], "names": names[4:], "decay": False},
    ]


def gradients(found: list[nn.Parameter], step: int) -> None:
    draw = torch.Generator().manual_seed(100 + step)
    for place, parameter in enumerate(found):
        parameter.grad = torch.randn(parameter.shape, generator=draw) if place != 2 or step % 2 else None


def zeros_for_none(found: list[nn.Parameter]) -> None:
    for parameter in found:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("options", ON_CPU, ids=lambda options: options().name)
def test_each_is_stepped_as_if_it_stood_alone(options):
    rate = 1.0 if options().name == "prodigy" else 1e-2
    alone, together = parameters(), parameters()
    one = options().build(groups(alone), rate)
    buffer, other = flat.build(options(), groups(together), rate)
    for step in range(5):
        gradients(alone, step)
        zeros_for_none(alone)
        one.step()
        buffer.clear()
        gradients(together, step)
        buffer.collect()
        other.step()
    for expected, parameter in zip(alone, together, strict=True):
        assert torch.allclose(parameter, expected, rtol=1e-6, atol=1e-7)


def test_a_joined_optimizer_has_a_handful_of_tensors():
    counts = {}
    for options in ON_CPU:
        _, optimizer = flat.build(options(), groups(parameters()), 1.0)
        counts[options().name] = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counts["adamw"] == counts["schedulefree_adamw"] == 2
    assert counts["adamw8bit"] == counts["lion8bit"] == counts["ademamix8bit"] == 4
    assert counts["adafactor"] == len(SHAPES)


def test_small_tensors_keep_their_state_in_32_bits():
    found = [nn.Parameter(torch.randn(100)) for _ in range(50)] + [nn.Parameter(torch.randn(64, 64))]
    buffer, optimizer = flat.build(optimizers.AdamW8bit(), [{"params": found, "lr_scale": 1.0, "decay": True}], 1e-3)
    gradients(found, 1)
    buffer.collect()
    optimizer.step()
    large, small = optimizer.param_groups[0]["params"]
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert small.numel() >= 4096 and optimizer.state[small]["state1"].dtype == torch.float32


def test_what_was_told_to_bitsandbytes_goes_with_the_parameter():
    known = GlobalOptimManager.get_instance().pid2config
    before = set(known)
    buffer, optimizer = flat.build(optimizers.AdamW8bit(), groups(parameters()), 1e-3)
    assert len(set(known) - before) == len(buffer.exact) == 2
    del buffer, optimizer
    gc.collect()
    assert set(known) == before


@pytest.mark.parametrize("block", [0, 1, 256])
def test_parameters_stay_what_they_are(block):
    found, copies = parameters(), parameters()
    buffer = Flat(groups(found), block)
    for parameter, copy in zip(found, copies, strict=True):
        assert torch.equal(parameter, copy) and parameter.is_leaf and parameter.is_contiguous()
        assert parameter.data_ptr() % 64 == 0
    (sum(p.square().sum() for p in found) / 2).backward()
    buffer.collect()
    for parameter, copy in zip(found, copies, strict=True):
        assert torch.equal(parameter.grad, copy)
    norm = torch.stack([copy.norm() for copy in copies]).norm()
    assert torch.isclose(buffer.clip(1.0), norm)
    assert torch.isclose(torch.stack([p.grad.norm() for p in found]).norm(), torch.tensor(1.0))
    buffer.clear()
    assert all(p.grad is None for group in buffer.groups for p in group["params"])


def test_forgetting_a_part_of_what_is_joined_is_refused():
    found = parameters()
    buffer = Flat(groups(found), 1)
    assert buffer.seen(found[:4]) == buffer.groups[0]["params"]
    with pytest.raises(AssertionError, match="only be reset together"):
        buffer.seen(found[:2])
    assert Flat(groups(parameters()), 0).seen(found[:2]) == found[:2]
