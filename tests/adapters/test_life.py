"""What an adapted layer goes through besides training: saving, merging, other dtypes, copies, checkpointing."""

import copy

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modules import adapters, quant
from modules.adapters.base import adapted_layers, adapter_state, attach, detach, load_adapter_state, merge_and_detach
from modules.adapters.derived import Derived
from tests.adapters.cases import (
    CASES,
    DOUBLE,
    HALF,
    SINGLE,
    adapt,
    adapter_class,
    all_close,
    by_oracle,
    close,
    every_pair,
    every_variant,
    fast,
    gradients,
    inputs,
    network,
    probe,
    randomise,
    through_weight,
    trained,
)


@pytest.mark.once
@every_pair
def test_a_saved_adapter_is_the_loaded_one(method, options, case, tmp_path):
    config = adapters.methods()[method].Config(method=method, **options)
    nets = [network(case), network(case)]
    for seed, net in enumerate(nets):
        attach(net, "0", config, seed)
        randomise(net[0].adapter, seed)
    x = inputs(case)
    assert not torch.equal(nets[0](x), nets[1](x))
    safetensors.torch.save_file(adapter_state(dict(adapted_layers(nets[0]))), tmp_path / "state.safetensors")
    load_adapter_state(dict(adapted_layers(nets[1])), safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert torch.equal(nets[0](x), nets[1](x))


@every_variant
def test_a_saved_adapter_of_other_options_is_refused(method, options):
    net = network(CASES[0])
    attach(net, "0", adapters.methods()[method].Config(method=method, **options), 0)
    state = adapter_state(dict(adapted_layers(net)))
    for wrong in ({}, {**state, "0.extra": torch.zeros(1)}, {k: torch.zeros(99, 99) for k in state}):
        with pytest.raises(ValueError, match="other layers or options"):
            load_adapter_state(dict(adapted_layers(net)), wrong)


@pytest.mark.once
@every_pair
def test_merging_is_the_forward_and_can_be_undone(method, options, case):
    adapted, x = adapt(method, options, case), inputs(case)
    before, weight = adapted(x), quant.dense_weight(adapted.base).clone()
    parameters = set(adapter_state({"layer": adapted}))
    adapted.merge()
    close(adapted(x), before, 3e-6)
    assert set(adapter_state({"layer": adapted})) == parameters
    assert torch.equal(quant.dense_weight(adapted.base), weight)
    adapted.unmerge()
    assert torch.equal(adapted(x), before)
    adapted.enabled = False
    close(adapted(x), network(case)(x), 1e-6)


@pytest.mark.once
@every_pair
def test_half_precision_keeps_the_adapter(method, options, case):
    adapted, x = adapt(method, options, case), inputs(case)
    expected = adapted(x)
    before = copy.deepcopy(adapted.adapter.state_dict())
    adapted.to(HALF)
    after = adapted.adapter.state_dict()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())
    assert all(value.dtype == SINGLE for value in after.values() if value.is_floating_point())
    x = x.detach().to(HALF).requires_grad_() if x.is_floating_point() else x
    base_dtype = adapted.layer(x).dtype
    for route in (fast, through_weight):
        y = route(adapted, x)
        assert y.dtype == base_dtype, f"{route.__name__} gives {y.dtype}, the base layer {base_dtype}"
        close(y, expected, 3e-2, route.__name__)
        found = gradients(probe(y), trained(adapted.adapter), x)
        assert all(g.isfinite().all() and g.dtype == SINGLE for name, g in found.items() if name != "x")
    adapted.merge()
    assert adapted(x).dtype == base_dtype
    close(adapted(x), expected, 3e-2)


@pytest.mark.once
@every_pair
def test_a_rounded_base_is_measured_anew(method, options, case):
    """Norms of the base are kept; after `.to` has rounded the base they are out of date."""
    adapted, x = adapt(method, options, case), inputs(case)
    adapted(x)
    adapted.to(HALF).to(SINGLE)
    close(adapted(x), by_oracle(method, options, adapted, x)[0], 3e-6)


@pytest.mark.once
@every_pair
def test_double_precision_takes_the_adapter_along(method, options, case):
    adapted, x = adapt(method, options, case), inputs(case)
    expected = adapted(x)
    adapted.to(DOUBLE)
    state = adapted.adapter.state_dict().values()
    assert all(value.dtype == DOUBLE for value in state if value.is_floating_point())
    close(adapted(x.detach().double() if x.is_floating_point() else x), expected, 3e-6)


@pytest.mark.once
@every_pair
def test_a_deep_copy_is_independent(method, options, case):
    net = network(case)
    adapted = attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=0)
    randomise(adapted.adapter)
    x = inputs(case)
    before = net(x)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), before)
    randomise(twin[0].adapter, seed=5)
    assert torch.equal(net(x), before) and not torch.equal(twin(x), before)
    assert twin[0].layer.base is twin[0].base, "the copy still computes with the original's base"


@pytest.mark.once
@every_pair
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_gradient_checkpointing_changes_nothing(method, options, case, reentrant):
    adapted, x = adapt(method, options, case, DOUBLE), inputs(case, DOUBLE)
    hook = torch.zeros((), dtype=DOUBLE, requires_grad=True)  # reentrant checkpointing wants an input with gradient

    def run(x, hook):
        return adapted(x) * (1 + hook)

    def learned(outputs):
        adapted.zero_grad(set_to_none=True)
        probe(outputs).backward()
        derived.pull_back()
        return {name: p.grad.clone() for name, p in trained(adapted.adapter).items()}

    derived = Derived([adapted])
    expected = learned(run(x, hook))
    all_close(learned(checkpoint(run, x, hook, use_reentrant=reentrant)), expected, 1e-13)
    derived.begin()
    all_close(learned(checkpoint(run, x, hook, use_reentrant=reentrant)), expected, 3e-6 if case.packing else 1e-10)


# -- whole networks ---------------------------------------------------------------------------------------------------


def small_network(method: str) -> tuple[nn.Module, torch.Tensor]:
    """Two convolutions and two linear layers, or two embeddings behind each other; and its input."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 6))
    return nn.Sequential(body, nn.Linear(6, 4)).requires_grad_(False), torch.randn(2, 4, 4, 4)


def layers_for(method: str) -> tuple[str, ...]:
    """The layers of the small network that the method can adapt."""
    return ("0.0", "0.2", "0.4", "1") if "conv" in adapter_class(method).kinds else ("0.4", "1")


@every_variant
def test_attach_merge_and_detach_on_a_network(method, options):
    net, x = small_network(method)
    start, keys = net(x), list(net.state_dict())
    config = adapters.methods()[method].Config(method=method, **options)
    names = layers_for(method)
    for name in names:
        attach(net, name, config, seed=0)
    assert [name for name, _ in adapted_layers(net)] == list(names)
    for i, (_, adapted) in enumerate(adapted_layers(net)):
        randomise(adapted.adapter, seed=i)
    assert net[1].in_features == 6 and net[1].weight.dtype == SINGLE, "an adapted layer answers for its base"
    changed = net(x)
    assert (changed - start).norm() > 1e-2 * start.norm()
    merged = copy.deepcopy(net)
    merge_and_detach(merged)
    close(merged(x), changed, 1e-5)
    assert list(merged.state_dict()) == keys and not list(adapted_layers(merged))
    detach(net)
    assert torch.equal(net(x), start) and list(net.state_dict()) == keys


@every_variant
def test_initial_values_depend_on_seed_and_name_alone(method, options):
    config = adapters.methods()[method].Config(method=method, **options)

    def initial(seed: int, names: tuple[str, ...], global_seed: int):
        net, _ = small_network(method)
        torch.manual_seed(global_seed)
        for name in names:
            attach(net, name, config, seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(global_seed)))
        return adapter_state(dict(adapted_layers(net)))

    layers = layers_for(method)
    one = initial(7, layers, 0)
    other = initial(7, layers[::-1][:2], 1)
    assert other and all(torch.equal(one[key], value) for key, value in other.items())
    reseeded = initial(8, layers, 0)
    drawn = [key for key, value in one.items() if value.numel() > 1 and value.unique().numel() > 1]
    assert all(not torch.equal(one[key], reseeded[key]) for key in drawn)


@every_variant
def test_undecayed_names_are_parameters(method, options):
    adapted = adapt(method, options, CASES[0])
    assert set(adapted.adapter.undecayed) <= {name for name, _ in adapted.adapter.named_parameters()}


@pytest.mark.once
@every_pair
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_untrained_it_is_the_base_bit_for_bit_in_half_precision(method, options, case, many):
    """The bias is added where the layer itself adds it, in sums that are not rounded before; `many`: positions, so that
    it pays to scale weights."""
    x = torch.cat([inputs(case).detach()] * (8 if many else 1))
    for dtype in (HALF, SINGLE):  # weights in half precision, and under autocast
        net, given = network(case, dtype), x.to(dtype) if x.is_floating_point() else x
        with torch.autocast("cpu", HALF, enabled=dtype == SINGLE):
            expected = net(given)
        adapted = attach(net, "0", adapters.methods()[method].Config(method=method, **options), 0)
        derived = adapted.adapter.derive(adapted.layer)
        with torch.autocast("cpu", HALF, enabled=dtype == SINGLE):
            assert torch.equal(adapted.adapter(given, adapted.layer, derived), expected), dtype
