"""Weight decay without gradients leaves every adapter what it starts as, the identity: whatever the method, the start
and the optimizer."""

import typing
from types import SimpleNamespace

import pytest
import torch

from modules import adapters
from modules.adapters.base import Adapted
from modules.preset.schema import Targets
from modules.training import flat, optimizers, setup
from tests.adapters.cases import CASES, adapt, label, trained, variants

LINEAR, CONV = CASES[0], CASES[3]
OPTIMIZERS = [o for o in typing.get_args(typing.get_args(optimizers.OptimizerOptions)[0])
              if not o().name.startswith("paged_")]  # which need a GPU


def starts() -> list[tuple[str, dict]]:
    """All variants of all methods, and of methods that offer several starts each of them, with both units of steps."""
    found = variants()
    for method, module in adapters.methods().items():
        field = module.Config.model_fields.get("init")
        inits = () if field is None else typing.get_args(field.annotation)
        found += [(method, {"rank": 2, "init": init, "step_size": unit}) for init in inits
                  for unit in ("raw", "calibrated")]
    return found


STARTS = starts()
SUBTRACTED = [("lora", {"rank": 2, "init": init}) for init in ("pissa", "inilora", "inilora_alpha", "inilora_beta")]


def decay(adapted: Adapted, options: typing.Any, steps: int = 60) -> None:
    """Optimizer steps as a training makes them, with gradients of zero."""
    layers = {"net.0": adapted}
    groups = setup.parameter_groups(layers, SimpleNamespace(networks={"net": adapted}), Targets())
    gradients, optimizer = flat.build(options(weight_decay=1.0), groups, 0.02)
    for step in range(1, steps + 1):
        gradients.clear()
        gradients.collect()
        optimizer.step()
        with torch.no_grad():
            type(adapted.adapter).after_step([adapted.adapter], step, steps)


def moved(adapted: Adapted) -> float:
    """`|W' - W| / |W|`."""
    W = adapted.layer.native(adapted.layer.dense())
    return ((adapted.adapted_weight() - W).norm() / W.norm()).item()


@pytest.mark.once
@pytest.mark.parametrize("case", [LINEAR, CONV], ids=lambda case: case.name)
@pytest.mark.parametrize("method, options", STARTS, ids=[label(*start) for start in STARTS])
def test_decay_alone_never_changes_the_weight(method, options, case):
    if case.kind not in adapters.methods()[method].Adapter.kinds:
        pytest.skip(f"{method} does not adapt {case.kind} layers")
    adapted = adapt(method, options, case, start=True)
    decay(adapted, optimizers.AdamW)
    assert moved(adapted) < 1e-6


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda options: options().name)
@pytest.mark.parametrize("method, options", SUBTRACTED, ids=[label(*start) for start in SUBTRACTED])
def test_nor_with_any_optimizer_where_the_start_is_subtracted(method, options, optimizer):
    adapted = adapt(method, options, LINEAR, start=True)
    before = {name: p.detach().clone() for name, p in trained(adapted.adapter).items()}
    decay(adapted, optimizer)
    assert moved(adapted) < 1e-6
    assert all(torch.equal(p, before[name]) for name, p in trained(adapted.adapter).items())


@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if o().name != "prodigy"], ids=lambda o: o().name)
def test_other_pairs_decay_with_every_optimizer(optimizer):
    """What the tests above rely on; Prodigy does not step at all without gradients."""
    adapted = adapt("lora", {"rank": 2}, LINEAR)
    update = moved(adapted)
    decay(adapted, optimizer)
    assert moved(adapted) < 0.5 * update
