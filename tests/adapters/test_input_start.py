"""Starts from a layer's weight and inputs, against peft's EVA and CorDA on small networks."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from modules.adapters.input_start import CORDA, distributed, largest, moments, rows
from modules.adapters.layers import as_layer
from modules.adapters.low_rank import root_mean_square
from tests.adapters.cases import CASES, DOUBLE, adapt, inputs

CPU = torch.device("cpu")
RANK = 4
LINEAR = next(case for case in CASES if case.name == "linear")


class Net(nn.Module):
    """Three layers whose inputs have few directions of clearly different sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Linear(24, 20), nn.Linear(20, 24), nn.Linear(20, 8)
        with torch.no_grad():
            self.one.weight.copy_(torch.linalg.svd(self.one.weight).Vh[:20] * 0.5 ** torch.arange(20.0)[:, None])

    def forward(self, x):
        h = self.one(x)
        return self.two(h), self.three(h.tanh())


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    sizes, found = 0.7 ** torch.arange(24.0), []
    for _ in range(count):
        found.append(sizes * torch.randn(1, 400, 24, generator=generator) + 0.3)
        found[-1][0, 0, 0] = 5.0  # the largest magnitude, by which peft divides only where it is positive
    return found


def collected(net, init):
    """The moments of each layer's inputs."""
    found, hooks = {}, []
    for name, base in net.named_children():
        layer = as_layer(base, name)
        found[name] = moments(layer, init, CPU)
        hooks.append(base.register_forward_pre_hook(
            lambda module, given, name=name, layer=layer: found[name].add(rows(layer, given[0]))))
    with torch.no_grad():
        for batch in batches():
            net(batch)
    for hook in hooks:
        hook.remove()
    return found


def test_components_and_ranks_are_those_of_pefts_eva():
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    net = Net()
    config = LoraConfig(r=RANK, target_modules=["one", "two", "three"], init_lora_weights="eva",
                        eva_config=EvaConfig(rho=2.0, tau=0.9))
    theirs = get_eva_state_dict(net, [{"x": batch} for batch in batches()], config, prepare_model_inputs_fn=None,
                                prepare_layer_inputs_fn=None, show_progress_bar=False)
    found = {name: one.components(2 * RANK) for name, one in collected(net, "eva").items()}
    counts = distributed([parts for parts, _ in found.values()], [RANK] * 3)
    assert counts == [len(theirs[name]) for name in found] and len(set(counts)) > 1 and sum(counts) == 3 * RANK
    for count, (name, (_, vectors)) in zip(counts, found.items(), strict=True):
        assert (vectors @ vectors.mT - torch.eye(2 * RANK)).abs().max() < 1e-9
        alike = (vectors[:count].float() * theirs[name]).sum(1).abs()
        assert alike.min() > 0.95, (name, alike)


def test_components_are_those_of_the_centred_inputs():
    net, seen = Net(), torch.cat(batches(), 1)[0].double()
    parts, vectors = collected(net, "eva")["one"].components(RANK)
    _, values, right = torch.linalg.svd(seen - seen.mean(0))
    torch.testing.assert_close(parts, values[:RANK].square() / values.square().sum(), rtol=1e-4, atol=1e-6)
    assert ((vectors @ right[:RANK].mT).abs() - torch.eye(RANK)).abs().max() < 1e-3


@pytest.mark.parametrize("init", CORDA)
def test_pairs_are_the_best_or_the_last_for_the_inputs(init):
    """By CorDA's formula, from all inputs at once; all components together are the weight."""
    net, W = Net(), Net().one.weight.detach().double()
    moments = collected(net, init)["one"]
    up, down = moments.pair(W, 20, CORDA[init])
    torch.testing.assert_close(up @ down, W, rtol=0, atol=1e-3 * float(W.abs().max()))
    up, down = moments.pair(W, RANK, CORDA[init])
    C = sum(x.mT @ x for x in (batch[0].double() / batch.abs().max() for batch in batches())) / 3
    C = C + 0.01 * C.diagonal().mean() * torch.eye(24)
    left, values, right = torch.linalg.svd(W @ C, full_matrices=False)
    some = slice(-RANK, None) if CORDA[init] else slice(RANK)
    expected = left[:, some] * values[some] @ right[some] @ torch.linalg.inv(C)
    torch.testing.assert_close(up @ down, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("init", CORDA)
@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
def test_a_weight_of_a_lower_rank_leaves_random_components(init, step_size):
    net = Net()
    with torch.no_grad():
        net.one.weight[2:] = 0
    W = net.one.weight.detach().clone()
    adapted = attach(net, "one", adapters.methods()["lora"].Config(rank=RANK, init=init, step_size=step_size), seed=0)
    found = moments(adapted.layer, init, CPU)
    for batch in batches():
        found.add(rows(adapted.layer, batch))
    adapted.adapter.begin_with_pair(*found.pair(W, RANK, CORDA[init]))
    assert torch.equal(adapted.adapted_weight(), W) and adapted.adapter.down.isfinite().all()
    adapted(batches()[0]).square().sum().backward()
    assert (adapted.adapter.up.grad != 0).any(0).all() and adapted.adapter.down.any(1).all()


@pytest.mark.parametrize("init", CORDA)
@pytest.mark.parametrize("alpha", [None, 8.0])
def test_pairs_are_those_of_pefts_corda(init, alpha, monkeypatch):
    monkeypatch.setitem(sys.modules, "attr", SimpleNamespace(dataclass=dataclass))  # which peft does not ask for
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    net, theirs = Net(), Net()
    config = LoraConfig(r=RANK, lora_alpha=alpha or RANK, target_modules=["one"], init_lora_weights="corda",
                        corda_config=CordaConfig(corda_method=init.removeprefix("corda_")))
    preprocess_corda(theirs, config, run_model=lambda: [theirs(batch) for batch in batches()])
    model = get_peft_model(theirs, config)
    found = collected(net, init)
    W = net.one.weight.detach().clone()
    options = {"method": "lora", "rank": RANK, "alpha": alpha, "init": init}
    adapted = attach(net, "one", adapters.methods()["lora"].Config(**options), seed=0)
    adapted.adapter.begin_with_pair(*found["one"].pair(W, RANK, CORDA[init]))
    their = model.base_model.model.one
    up, down = their.lora_B["default"].weight.data, their.lora_A["default"].weight.data
    signs = (adapted.adapter.up * up).sum(0).sign()
    torch.testing.assert_close(adapted.adapter.up * signs, up, rtol=1e-2, atol=1e-3 * float(up.abs().max()))
    torch.testing.assert_close(adapted.adapter.down * signs[:, None], down, rtol=1e-2,
                               atol=1e-3 * float(down.abs().max()))
    assert torch.equal(adapted.adapted_weight(), W), "the start is the base, bit for bit"
    with torch.no_grad():
        adapted.adapter.up += 0.1
    terms = adapted.adapter.export_terms(W)
    torch.testing.assert_close(W + terms.up @ terms.down, adapted.adapted_weight())


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv1d", "conv3d"])
def test_rows_are_what_the_weight_is_multiplied_with(kind):
    case = next(one for one in CASES if one.name == kind)
    layer = adapt("lora", {"rank": 2}, case, DOUBLE).layer
    x = inputs(case, DOUBLE).detach()
    y = layer.without_bias(layer(x))
    expected = y.flatten(2).mT if layer.kind == "conv" else y.reshape(len(x), -1, layer.out_features)
    torch.testing.assert_close(rows(layer, x) @ layer.dense().mT, expected)


def test_a_few_directions_of_a_large_matrix_are_its_own():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(120, 120, dtype=DOUBLE)).Q
    values = 0.8 ** torch.arange(120, dtype=DOUBLE)
    found, vectors = largest(basis * values @ basis.mT, 6)
    torch.testing.assert_close(found, values[:6])
    assert ((vectors @ basis[:, :6]).abs() - torch.eye(6)).abs().max() < 1e-6


def test_what_the_inputs_do_not_explain_goes_to_the_layers_own_ranks():
    parts = [torch.tensor([0.9, 0.05]), torch.tensor([0.5]), torch.empty(0)]
    assert distributed(parts, [1, 2, 2]) == [2, 2, 1] and distributed([parts[0]], [1]) == [1]


@pytest.mark.parametrize("method", ["lora", "dora", "wora"])
@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
def test_components_that_a_layer_does_not_get_never_move_and_are_left_out_of_files(method, step_size):
    case = LINEAR
    config = {"rank": RANK, "init": "eva", "step_size": step_size}
    adapted = adapt(method, adapters.methods()[method].Config(method=method, **config).widened().model_dump(
        exclude={"method"}), case, DOUBLE, start=True)
    adapter, W = adapted.adapter, adapted.layer.dense()
    assert adapter.down.shape[0] == 2 * RANK
    vectors = torch.linalg.qr(torch.randn(16, 3, dtype=DOUBLE)).Q.mT
    adapter.begin_with_components(adapted.layer, vectors, 5)
    torch.testing.assert_close(adapted.adapted_weight(), W, rtol=1e-6, atol=1e-7)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.01)
    for number in range(3):
        optimizer.zero_grad()
        adapted(inputs(case, DOUBLE, seed=number).detach()).square().sum().backward()
        optimizer.step()
    assert not adapter.up[:, 5:].any() and not adapter.down[5:].any() and adapter.up[:, :5].all()
    with torch.no_grad():
        for parameter in (adapter.up, adapter.down):
            parameter += 0.1  # as some optimizers do
        type(adapter).after_step([adapter], 4, 9)
    assert not adapter.up[:, 5:].any() and not adapter.down[5:].any() and adapter.up[:, :5].all()
    terms = adapter.export_terms(W)
    assert terms.up.shape[1] == terms.down.shape[0] == 5
    adapter.begin_with_components(adapted.layer, vectors, 0)
    assert adapter.export_terms(W).down.shape[0] == 1


def test_a_calibrated_step_is_as_large_with_any_number_of_components():
    case, options = LINEAR, {"rank": 8, "init": "eva", "rho": 1, "step_size": "calibrated"}
    for count in (1, 3, 8):
        adapted = adapt("lora", options, case, DOUBLE, start=True)
        W = adapted.layer.dense()
        vectors = torch.linalg.qr(torch.randn(16, 3, dtype=DOUBLE)).Q.mT
        adapted.adapter.begin_with_components(adapted.layer, vectors, count)
        signs = torch.randn(adapted.adapter.up[:, :count].shape, dtype=DOUBLE).sign()
        with torch.no_grad():
            adapted.adapter.up[:, :count] = signs
        changed = (adapted.adapted_weight() - W).norm() / W.norm()
        assert 0.5 < changed < 2, count


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_svd_starts_along_the_weights_own_directions(method):
    case = LINEAR
    for step_size in ("raw", "calibrated"):
        adapted = adapt(method, {"rank": RANK, "init": "svd", "step_size": step_size}, case, DOUBLE, start=True)
        down, W = adapted.adapter.down, adapted.layer.dense()
        assert not adapted.adapter.up.any()
        alike = (down / down.norm(dim=1, keepdim=True)) @ torch.linalg.svd(W).Vh[:RANK].mT
        assert (alike.abs() - torch.eye(RANK)).abs().max() < 1e-5
    assert root_mean_square(down) > 1, "calibrated"


def test_noise_levels_and_unequal_ranks_do_not_go_together():
    Config = adapters.methods()["lora"].Config
    with pytest.raises(ValueError, match="set rho 1"):
        Config(method="lora", init="eva", min_rank=2)
    assert Config(method="lora", init="eva", min_rank=2, rho=1).widened().rank == 16
    wide = Config(method="lora", init="eva", rank=8, alpha=4, rho=1.5).widened()
    assert (wide.rank, wide.scale) == (12, 0.5)
