"""Every optimizer: it builds from its options, learns, keeps its groups, and refuses what cannot work in words."""

import typing

import pytest
import torch
from pydantic import TypeAdapter

from modules.training import optimizers
from modules.training.optimizers import DEFAULT, OptimizerOptions, averaged, forget

CLASSES = typing.get_args(typing.get_args(OptimizerOptions)[0])
ON_CPU = [options for options in CLASSES if not options().name.startswith("paged_")]
PAGED = [options for options in CLASSES if options().name.startswith("paged_")]
# Prodigy's rate is a factor. Lion's steps have a fixed length, so they have to be shorter to settle.
UNPAIRED = {"pairs": [], "calibrated": False}
RATES = {"prodigy": 1.0, "lion8bit": 0.01, "adafactor": 0.05}


pytestmark = pytest.mark.usefixtures("forget_accelerate")


def name_of(options) -> str:
    return options().name


def parameters() -> list[torch.nn.Parameter]:
    """A tensor large enough for 8-bit states, one of transposed memory, one at zero, one number, a pair of factors."""
    draw = torch.Generator().manual_seed(1)
    values = [torch.randn(96, 64, generator=draw), torch.randn(8, 20, generator=draw).T]
    values += [torch.zeros(12), torch.tensor(1.0), torch.randn(6, 2, generator=draw), torch.randn(2, 9, generator=draw)]
    return [torch.nn.Parameter(value) for value in values]


def groups(params, lr_scale: float = 1.0) -> list[dict]:
    pair = {"pairs": [(1, 3)], "calibrated": False}
    return [
        {"params": [params[0], params[4], params[1], params[5]], "names": ["a", "up", "b", "down"], "lr_scale": 1.0,
         "decay": True, **pair},
        {"params": params[2:4], "names": ["c", "d"], "lr_scale": lr_scale, "decay": False, **UNPAIRED},
    ]


@pytest.mark.parametrize("options", CLASSES, ids=name_of)
def test_round_trip_through_json(options):
    union = TypeAdapter(OptimizerOptions)
    assert union.validate_json(union.dump_json(options())) == options()


def test_the_first_is_the_default():
    assert CLASSES[0]() == DEFAULT


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="momentum"):
        TypeAdapter(OptimizerOptions).validate_python({"name": "adamw", "momentum": 1})


@pytest.mark.parametrize("options", CLASSES, ids=name_of)
def test_every_option_says_what(options):
    assert all(field.description for field in options.model_fields.values())


@pytest.mark.full
@pytest.mark.parametrize("options", ON_CPU, ids=name_of)
def test_it_learns(options):
    params = parameters()
    rate = RATES.get(options().name, 0.05)
    optimizer = options(weight_decay=0.0).build(groups(params), rate)
    goals = [torch.full_like(p, 0.5) for p in params]

    def distance() -> float:
        return sum((p - goal).square().sum().item() for p, goal in zip(params, goals, strict=True))

    before = distance()
    for _ in range(200):
        for p, goal in zip(params, goals, strict=True):
            p.grad = (p - goal).detach()
        optimizer.step()
    with averaged(optimizer):
        assert distance() < 0.2 * before


@pytest.mark.parametrize("options", [o for o in ON_CPU if name_of(o) != "prodigy"], ids=name_of)
def test_groups_keep_rate_and_decay(options):
    first, second = options(weight_decay=0.02).build(groups(parameters(), lr_scale=0.5), 1e-3).param_groups
    assert (first["lr"], first["initial_lr"], first["weight_decay"]) == (1e-3, 1e-3, 0.02)
    assert (second["lr"], second["initial_lr"], second["weight_decay"]) == (5e-4, 5e-4, 0.0)


@pytest.mark.parametrize("options", ON_CPU, ids=name_of)
def test_decay_shrinks_only_what_may_decay(options):
    params = [torch.nn.Parameter(torch.ones(8)), torch.nn.Parameter(torch.ones(8))]
    split = [
        {"params": [p], "names": ["gain"], "lr_scale": 1.0, "decay": decay, **UNPAIRED}
        for p, decay in zip(params, (True, False), strict=True)
    ]
    optimizer = options(weight_decay=0.1).build(split, 1.0 if options().name == "prodigy" else 0.005)
    for _ in range(60):  # Prodigy begins with tiny steps
        for p in params:
            p.grad = torch.full_like(p, 1e-3)
        optimizer.step()
    assert params[0].mean() < params[1].mean()


def test_8_bit_states_are_used_for_large_tensors_only():
    params = parameters()
    optimizer = DEFAULT.build(groups(params), 1e-3)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [optimizer.state[p]["state1"].dtype for p in params] == [torch.uint8] + 5 * [torch.float32]


def test_adafactor_moves_an_adapter_that_starts_at_zero():
    p = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = optimizers.Adafactor().build([{"params": [p], "lr_scale": 1.0, "decay": True}], 1e-3)
    p.grad = torch.full_like(p, 1e-6)
    optimizer.step()
    assert torch.allclose(p, torch.tensor(-1e-3), rtol=1e-3)


@pytest.mark.parametrize("options", PAGED, ids=name_of)
def test_paged_optimizers_refuse_the_cpu_and_name_the_other(options):
    other = options().name.removeprefix("paged_")
    with pytest.raises(ValueError, match=f"use {other}"):
        options().build(groups(parameters()), 1e-3)
    assert options().problems(1e-3, "cuda") == []
    assert len(options().problems(1e-3, "cpu")) == 1


@pytest.mark.parametrize("options", [o for o in CLASSES if o.highest_lr < 1], ids=name_of)
def test_a_rate_meant_for_prodigy_is_a_problem(options):
    assert "training.learning_rate is 1" in options().problems(1.0, "cuda")[0]
    assert options().problems(1e-4, "cuda") == []


def test_prodigy_wants_a_rate_of_one_for_all_layers():
    prodigy = optimizers.Prodigy()
    assert prodigy.problems(1.0, "cpu") == []
    assert "set training.learning_rate to 1.0" in prodigy.problems(1e-4, "cpu")[0]
    (problem,) = prodigy.problems(1.0, "cpu", (("targets.text_encoder_lr_scale", 0.5),))
    assert problem.startswith("targets.text_encoder_lr_scale gives some layers 0.5 times")
    assert len(prodigy.problems(1.0, "cpu", (("one", 2.0), ("other", 0.5)))) == 2
    with pytest.raises(ValueError, match="different learning rates"):
        prodigy.build(groups(parameters(), lr_scale=0.5), 1.0)


def test_prodigy_prints_nothing(capsys):
    optimizers.Prodigy().build(groups(parameters()), 1.0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("options", ON_CPU, ids=name_of)
@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "accelerate"])
def test_averaged_gives_the_training_weights_back(options, prepared):
    params = parameters()
    optimizer = options().build(groups(params), 0.01)
    if prepared:
        from accelerate import Accelerator

        optimizer = Accelerator(cpu=True).prepare(optimizer)
    for step in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) + p.detach()
        optimizer.step()
    before = [p.detach().clone() for p in params]
    with averaged(optimizer):
        changed = any(not torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert changed == options().averages
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    optimizer.step()
    with pytest.raises(RuntimeError, match="inside"), averaged(optimizer):
        raise RuntimeError("inside")
    optimizer.step()  # an error inside leaves it ready for training


@pytest.mark.parametrize("options", [o for o in ON_CPU if o.keeps_gradients and not o().averages], ids=name_of)
def test_gradients_are_still_there_after_a_step(options):
    """Methods may look at them. Only optimizers that average weights use the memory for something else."""
    params = parameters()
    optimizer = options().build(groups(params), 0.01)
    for step in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        before = [p.grad.clone() for p in params if p.grad is not None]
        optimizer.step()
        assert all(torch.equal(p.grad, old) for p, old in zip(params, before, strict=True) if p.grad is not None)


@pytest.mark.parametrize("options", [o for o in ON_CPU if o().name != "prodigy"], ids=name_of)
def test_a_forgotten_parameter_is_as_new(options):
    """Prodigy's estimate of the step is of all parameters together, and goes on."""

    def steps(params, optimizer, count):
        for step in range(count):
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) + 1
            optimizer.step()

    used, fresh = parameters(), parameters()
    optimizer = options().build(groups(used), 0.01)
    steps(used, optimizer, 3)
    forget(optimizer, used[:2])
    with torch.no_grad():
        for p, new in zip(used, fresh, strict=True):
            p.copy_(new)
    steps(used, optimizer, 2)
    steps(fresh, options().build(groups(fresh), 0.01), 2)
    if not options.averages:  # theirs is of all steps
        assert all(torch.equal(p, new) for p, new in zip(used[:2], fresh[:2], strict=True))
    assert not torch.equal(used[2], fresh[2])
