"""LoRA's first values: what they are, that they start as the identity, and what they become in half precision."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from modules import adapters, quant
from modules.adapters import linalg
from modules.adapters.base import attach
from modules.adapters.input_start import CORDA
from modules.preset import files
from tests.adapters.cases import CASES, close, inputs, network, probe

SUBTRACTED = ["pissa", "inilora", "inilora_alpha", "inilora_beta"]
RANDOM = ["kaiming", "gaussian", "orthogonal"]
LR = 1e-3


def config(**options):
    return adapters.methods()["lora"].Config(method="lora", **options)


def layer(out, fan_in, dtype=torch.float32, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(fan_in, out)).to(dtype).requires_grad_(False)
    adapted = attach(net, "0", config(**options), seed=1)
    return adapted.to(dtype)


@pytest.mark.parametrize("init", SUBTRACTED)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
def test_every_start_is_the_identity_bit_for_bit(init, case, step_size):
    net = network(case)
    base = quant.dense_weight(net[0]).float().clone()
    adapted = attach(net, "0", config(rank=20, init=init, step_size=step_size), seed=1)  # more than the layer has
    assert torch.equal(adapted.adapted_weight(), base)
    x = inputs(case)
    close(adapted(x), network(case)(x), 1e-6)
    grads = torch.autograd.grad(probe(adapted(x)), [adapted.adapter.up, adapted.adapter.down])
    assert all(grad.isfinite().all() for grad in grads) and grads[0].abs().sum() > 0


@pytest.mark.parametrize("init", SUBTRACTED)
def test_a_layer_of_zeros_learns_all_the_same(init):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6))
    nn.init.zeros_(net[0].weight)
    adapted = attach(net, "0", config(rank=2, init=init, step_size="calibrated"), seed=1)
    grads = torch.autograd.grad(probe(adapted(torch.randn(3, 8))), [adapted.adapter.up, adapted.adapter.down])
    assert all(grad.isfinite().all() for grad in grads) and grads[0].abs().sum() > 0


@pytest.mark.parametrize("init", [*RANDOM, "svd", "gradient", "eva", *SUBTRACTED])
def test_layers_without_values_take_it_too(init):
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(320, 640))
    adapted = attach(net, "0", config(init=init), seed=0)
    terms = adapted.adapter.export_terms(adapted.layer.dense())
    assert terms.up.is_meta and terms.up.shape == (640, 32 if init in SUBTRACTED else 16)


def test_pissa_is_pefts():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 20))
    fresh = attach(copy.deepcopy(net), "0", config(rank=4, alpha=6.0, init="pissa"), 0)
    options = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights="pissa")
    theirs = get_peft_model(nn.Sequential(net[0]), options).base_model.model[0]
    up, down = theirs.lora_B["default"].weight, theirs.lora_A["default"].weight
    close(fresh.adapter.up @ fresh.adapter.down, up @ down, 1e-5)
    signs = (fresh.adapter.up * up).sum(0).sign()
    close(fresh.adapter.up * signs, up, 1e-4)
    with torch.no_grad():  # the same steps from there, in both
        change = 0.1 * torch.randn(20, 4), 0.1 * torch.randn(4, 24)
        up += change[0]
        down += change[1]
        fresh.adapter.up += change[0] * signs
        fresh.adapter.down += change[1] * signs[:, None]
    x = torch.randn(5, 24)
    close(fresh(x), theirs(x), 1e-5)


def test_inilora_is_the_best_fit_that_its_training_could_find():
    adapted = layer(24, 20, torch.float64, rank=4, init="inilora")
    W = adapted.layer.dense()
    left, values, right = torch.linalg.svd(W)
    best = (left[:, :4] * values[:4]) @ right[:4]
    close(adapted.adapter.up @ adapted.adapter.down, best, 1e-6)
    assert adapted.adapter.up.norm().item() == pytest.approx(adapted.adapter.down.norm().item(), rel=1e-5)


@pytest.mark.parametrize("init, up, down", [("inilora_alpha", 0.5, 0.5), ("inilora_beta", (2 / 16) ** 0.5, 0.1)])
def test_inilora_at_random_has_its_codes_deviations(init, up, down):
    adapted = layer(400, 200, init=init)
    assert adapted.adapter.up.std().item() == pytest.approx(up, rel=0.05)
    assert adapted.adapter.down.std().item() == pytest.approx(down, rel=0.05)


def test_gaussian_is_pefts_and_orthogonal_has_rows_at_right_angles():
    assert layer(8, 2000, init="gaussian", rank=8).adapter.down.std().item() == pytest.approx(1 / 8, rel=0.05)
    down = layer(8, 64, torch.float64, init="orthogonal", rank=8).adapter.down
    close(down @ down.mT, torch.eye(8, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("init", SUBTRACTED)
def test_small_changes_survive_half_precision(init):
    """As published, `[up, -up0] [down; down0]` in bfloat16 would lose them: they are below its resolution there."""
    adapted = layer(64, 48, rank=8, init=init)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (adapted.adapter.up, adapted.adapter.down):
            parameter += 1e-4 * parameter.abs().mean() * torch.randn_like(parameter)
    x = torch.randn(32, 48)
    change = x @ (adapted.adapter.weight(adapted.layer.dense().double()) - adapted.layer.dense()).float().mT
    up, down = adapted.adapter.pair()
    half = (x.bfloat16() @ down.bfloat16().mT) @ up.bfloat16().mT
    close(half.float(), change, 0.02)
    first = torch.cat([adapted.adapter.up, -adapted.adapter.first_up], 1).bfloat16()
    second = torch.cat([adapted.adapter.down, adapted.adapter.first_down]).bfloat16()
    assert ((x.bfloat16() @ second.mT @ first.mT).float() - change).norm() > 0.2 * change.norm()


def steps(adapted, count):
    """Relative changes of the weight by each of `count` Adam steps on a fixed random linear loss."""
    torch.manual_seed(2)
    W = adapted.base.weight.detach()
    direction = torch.randn_like(W)
    optimizer = torch.optim.Adam([p for p in adapted.adapter.parameters() if p.requires_grad], lr=LR, eps=1e-30)
    before, found = adapted.adapter.weight(W).detach(), []
    for _ in range(count):
        optimizer.zero_grad()
        (adapted.adapter.weight(W) * direction).sum().backward()
        optimizer.step()
        after = adapted.adapter.weight(W).detach()
        found.append(((after - before).norm() / W.norm() / LR).item())
        before = after
    return found


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", *SUBTRACTED])
@pytest.mark.parametrize("rank, width", [(4, 320), (64, 320), (4, 1280)])
def test_one_calibrated_step_changes_the_weight_by_lr(init, rank, width):
    (first,) = steps(layer(width, width, rank=rank, init=init, step_size="calibrated"), 1)
    assert 1 / 1.15 < first < 1.15


@pytest.mark.parametrize("init", [*RANDOM, *SUBTRACTED])
def test_the_hundredth_step_is_like_the_first(init):
    found = steps(layer(320, 320, rank=8, init=init, step_size="calibrated"), 100)
    limit = 1.25 if init in SUBTRACTED else 1.35  # where up starts at zero, down begins to count as it grows
    assert 1 / limit < found[-1] / found[0] < limit


@pytest.mark.parametrize("init", ["gradient", "pissa"])
def test_a_start_that_a_file_would_overwrite_is_refused(init):
    with pytest.raises(files.PresetProblems, match=f"init {init} sets the initial values"):
        files.resolve("lora_demo", [("adapter.init", init), ("adapter.start_from", "other.safetensors")])


def test_every_choice_of_init_is_another_start():
    """For whatever method offers it."""
    for method, module in adapters.methods().items():
        field = module.Config.model_fields.get("init")
        if field is None:
            continue
        starts = []
        for init in field.annotation.__args__:
            adapted = attach(nn.Sequential(nn.Linear(16, 12)), "0", module.Config(method=method, rank=4, init=init), 0)
            pair = adapted.adapter.gradient_pair()
            assert (pair is not None) == (init == "gradient"), (method, init)
            if init not in ("gradient", "eva", *CORDA):  # which are set before the first step
                starts.append(torch.cat([tensor.flatten() for tensor in adapted.adapter.state_dict().values()]))
        assert len({tuple(start.tolist()) for start in starts}) == len(starts), method


@pytest.mark.parametrize("shape, rank, kept", [((12, 20), 5, 5), ((20, 12), 5, 5), ((6, 4), 9, 4)])
def test_principal_is_the_truncated_svd(shape, rank, kept):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    left, values, right = linalg.principal(matrix, rank)
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    assert len(values) == kept
    close(values, S[:kept], 1e-12)
    close((left * values) @ right, (U[:, :kept] * S[:kept]) @ V[:kept], 1e-10)
    close(left.mT @ left, torch.eye(kept, dtype=torch.float64), 1e-7)
    assert len(linalg.principal(matrix[:, :1] @ matrix[:1], rank)[1]) == 1


def test_leading_is_nearly_the_truncated_svd_of_a_large_matrix():
    torch.manual_seed(0)
    matrix = torch.randn(320, 480) * torch.linspace(1, 0.2, 480)  # far less decay than a trained weight has
    left, values, right = linalg.leading(matrix, 8)
    best = torch.linalg.svdvals(matrix)[:8]
    assert ((left.mT @ matrix @ right.mT).diag().norm() / best.norm()).item() == pytest.approx(1, abs=0.01)
    close((left * values) @ right, left @ (left.mT @ matrix), 0.1)
    for vectors in (left.mT, right):
        close(vectors @ vectors.mT, torch.eye(8), 1e-4)
