"""What NEAT claims: it equals a LoRA whose down projection follows from the base, and peft's PEANuT."""

import pytest
import torch
from peft.tuners.peanut.config import PeanutConfig
from peft.tuners.peanut.layer import Linear as Peanut
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from tests.adapters.cases import all_close, close, fast, randomise, through_weight
from tests.adapters.steps import adam_steps, isotropic


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_it_is_pefts_peanut(depth):
    """Output and gradients, on the same tensors."""
    adapted = isotropic("neat", 40, 24, rank=6, depth=depth, step_size="raw")
    randomise(adapted.adapter)
    ours = adapted.adapter
    theirs = Peanut(adapted.base, "default", 6, PeanutConfig(r=6, depth=depth))
    encoders, decoders = theirs.peanut_encoders["default"], theirs.peanut_decoders["default"]
    places = {"mixing": theirs.peanut_A["default"].weight, "up": theirs.peanut_B["default"].weight}
    places |= {f"encoders.{n}": encoders[n].weight for n in range(depth)}
    places |= {f"decoders.{n}": decoders[n].weight for n in range(depth)}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            places[name].copy_(parameter.mT if name == "mixing" else parameter)
    x, wanted = torch.randn(5, 40), torch.randn(5, 24)
    close(fast(adapted, x), theirs(x), 1e-5)
    found = dict(zip(places, torch.autograd.grad((theirs(x) * wanted).sum(), list(places.values())), strict=True))
    found["mixing"] = found["mixing"].mT
    for route in (fast, through_weight):
        mine = torch.autograd.grad((route(adapted, x) * wanted).sum(), list(ours.parameters()))
        names = [name for name, _ in ours.named_parameters()]
        all_close(dict(zip(names, mine, strict=True)), {name: found[name] for name in names}, 1e-5)


@pytest.mark.parametrize("depth", [0, 2])
def test_it_equals_its_lora(depth):
    adapted = isotropic("neat", 40, 24, torch.float64, rank=6, depth=depth)
    randomise(adapted.adapter)
    W = adapted.base.weight
    with torch.no_grad():
        terms = adapted.adapter.export_terms(W)
        assert terms.up.shape == (24, 6) and terms.down.shape == (6, 40) and (terms.down >= 0).all()
        close(W + terms.up @ terms.down, adapted.adapter.weight(W), 1e-14)


def test_calibrated_starts_as_the_published_network():
    raw, ours = (isotropic("neat", 40, 24, rank=6, depth=2, step_size=s).adapter for s in ("raw", "calibrated"))
    W = isotropic("neat", 40, 24).base.weight
    close(ours.down(W), raw.down(W), 1e-6)


def test_a_zero_weight_is_refused_by_name():
    net = nn.ModuleDict({"odd_layer": nn.Linear(16, 8)}).requires_grad_(False)
    net["odd_layer"].weight.zero_()
    with pytest.raises(ValueError, match="odd_layer: its weight is zero"):
        attach(net, "odd_layer", adapters.methods()["neat"].Config(), seed=0)


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("rank, depth", [(4, 0), (64, 0), (16, 2)])
def test_one_step_changes_the_weight_by_lr(width, rank, depth):
    (step,) = adam_steps(isotropic("neat", width, width, rank=rank, depth=depth), count=1)
    assert 1 / 1.15 < step < 1.15, f"one step is {step:.3f} lr"


@pytest.mark.parametrize("rank, depth", [(4, 0), (16, 0), (16, 1), (16, 2)])
def test_steps_keep_their_size(rank, depth):
    steps = adam_steps(isotropic("neat", 320, 320, rank=rank, depth=depth))
    assert 0.9 < steps[99] / steps[0] < 1.25
