"""What DeLoRA claims: an update of bounded size that leaves the base smoothly, and peft's numbers in peft's form."""

import peft
import pytest
import torch
from torch import nn

from modules import adapters
from tests.adapters import dense
from tests.adapters.cases import CASES, adapt, all_close, close, fast, gradients, inputs, probe, randomise, trained
from tests.adapters.steps import adam_steps, isotropic

PEFT = {"form": "peft", "step_size": "raw"}
KINDS = [case for case in CASES if case.name in ("linear", "conv2d", "embedding")]
on_each_kind = pytest.mark.parametrize("case", KINDS, ids=[case.name for case in KINDS])
both_forms = pytest.mark.parametrize("form", [{"form": "original"}, PEFT], ids=lambda form: form["form"])


@on_each_kind
@both_forms
@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_the_update_is_bounded(case, form, scale):
    adapted = adapt("delora", {"rank": 3, "bound": 2.0, **form}, case, torch.float64)
    randomise(adapted.adapter, scale=scale)
    with torch.no_grad():
        adapted.adapter.strength.fill_(2.0 / adapted.adapter.unit)
        W = adapted.layer.dense()
        change = (adapted.adapter.weight(W) - W) / dense.norm(W, adapted.layer.kernel, "input")
    assert 0.1 < change.norm() <= (2.0 if form == PEFT else 4.0) + 1e-9


@pytest.mark.parametrize("form", [{"form": "original"}, {"form": "original", "step_size": "raw"}, PEFT], ids=str)
def test_the_start_is_the_base_bit_for_bit(form):
    case = CASES[0]
    for dtype in (torch.float32, torch.bfloat16):
        adapted = adapt("delora", form, case, start=True).to(dtype)
        x = inputs(case, dtype)
        assert torch.equal(fast(adapted, x), adapted.base(x))
        assert torch.equal(adapted.adapted_weight(), adapted.layer.dense())


@pytest.mark.parametrize("lr", [1e-5, 1e-4, 1e-3])
def test_only_the_original_form_leaves_the_base_smoothly(lr):
    raw = adam_steps(isotropic("delora", 320, 320, step_size="raw"), 1, lr)[0]
    assert 0.1 < raw < 30, "a step in the authors' units"
    jump = lr * adam_steps(isotropic("delora", 320, 320, **PEFT), 1, lr)[0]
    assert jump == pytest.approx(15 / (16 * 320) ** 0.5, rel=0.1), "a first step that no learning rate makes shorter"


def test_frozen_copies_are_copies():
    """The authors' share the trained tensors' memory, and then nothing is ever learned."""
    adapted = adapt("delora", {"rank": 4}, CASES[0], start=True)
    adapter, W = adapted.adapter, adapted.layer.dense()
    start = adapter.down_start.clone()
    randomise(adapter)
    assert torch.equal(adapter.down_start, start) and not torch.equal(adapter.down, start)
    assert (adapter.weight(W) - W).norm() > 0.01 * W.norm()
    assert not {"up_start", "down_start"} & trained(adapter).keys()


@pytest.mark.parametrize("shrunk", [1.0, 1e-6], ids=["ordinary", "clamped"])
def test_it_is_peft(shrunk):
    torch.manual_seed(0)
    case = CASES[0]
    adapted = adapt("delora", {"rank": 4, "bound": 3.0, **PEFT}, case, torch.float64)
    ours = adapted.adapter
    with torch.no_grad():
        ours.up[:, 1] *= shrunk
    network = nn.Sequential(nn.Linear(16, 12)).double()
    network.load_state_dict({"0.weight": adapted.base.weight, "0.bias": adapted.base.bias})
    config = peft.DeloraConfig(r=4, target_modules=["0"])
    layer = peft.get_peft_model(network, config).base_model.model[0]  # pyright: ignore
    theirs = {"up": layer.delora_B["default"], "down": layer.delora_A["default"],
              "strength": layer.delora_lambda["default"]}
    with torch.no_grad():
        theirs["up"].copy_(ours.up), theirs["down"].copy_(ours.down), theirs["strength"].fill_(ours.strength.item())
    x = inputs(case, torch.float64)
    close(fast(adapted, x), layer(x), 1e-5)
    expected = gradients(probe(layer(x)), theirs, x)
    expected["strength"] = expected["strength"][0]
    all_close(gradients(probe(fast(adapted, x)), trained(ours), x), expected, 1e-5)
    close(ours.weight(adapted.base.weight) - adapted.base.weight, layer.get_delta_weight("default"), 1e-5)


@on_each_kind
@both_forms
def test_files_have_the_rank_once_or_twice(case, form):
    terms = adapt("delora", {"rank": 3, **form}, case).adapter.export_terms(adapt("lora", {}, case).layer.dense())
    assert terms.up is not None and terms.magnitude is None and terms.difference is None
    assert terms.up.shape[1] == (3 if form == PEFT else 6)


def test_small_changes_survive_half_precision():
    """Update and frozen start differ by less than half precision can tell; their difference is what is written."""
    adapted = isotropic("delora", 64, 64)
    randomise(adapted.adapter, scale=1e-4)
    with torch.no_grad():
        W = adapted.layer.dense()
        terms = adapted.adapter.export_terms(W)
        written = terms.up.bfloat16().double() @ terms.down.bfloat16().double()
        close(written, adapted.adapter.weight(W.double()) - W, 0.01)


def test_weight_decay_shortens_the_change_and_nothing_else():
    adapted = adapt("delora", {"rank": 3}, CASES[0], torch.float64)
    adapter, W = adapted.adapter, adapted.layer.dense()
    with torch.no_grad():
        change = adapter.weight(W) - W
        for name, parameter in trained(adapter).items():
            parameter *= 1.0 if name in adapter.undecayed else 0.9
        close(adapter.weight(W) - W, 0.9 * change, 1e-12)
        adapter.up *= 0.9
        adapter.down *= 0.9
        close(adapter.weight(W) - W, 0.9 * change, 1e-12)


@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 64}, {"rank": 16, "bound": 4.0}], ids=str)
@pytest.mark.parametrize("width", [320, 1280])
def test_one_step_changes_the_weight_by_lr(options, width):
    step = adam_steps(isotropic("delora", width, width, **options), 1)[0]
    assert 1 / 1.15 < step < 1.15, f"one step is {step:.3f} lr"


def test_later_steps_are_as_large():
    """At lr 1e-3 the hundredth is 1.35 times the first: `up`, `down` and `strength` then all move one way, and near the
    bound it is less."""
    first, *_, last = adam_steps(isotropic("delora", 320, 320, rank=4), lr=3e-4)
    assert 1 / 1.25 < last / first < 1.25, f"the steps grow from {first:.3f} to {last:.3f} lr"


def test_the_form_that_jumps_cannot_be_calibrated():
    with pytest.raises(ValueError, match="form peft cannot be calibrated.*step_size raw"):
        adapters.methods()["delora"].Config(form="peft")
