"""What AdaLoRA claims: its maths and its choices are peft's, its budget is reached exactly, and what is gone stays."""

import math

import pytest
import torch
from torch import Tensor, nn

from modules import adapters
from modules.adapters.adalora import SLOWER, Adapter, budget
from modules.adapters.base import Adapted, Terms, attach
from tests.adapters.cases import CASES, adapt, close, fast, gradients, inputs, probe, randomise, trained

METHOD = adapters.methods()["adalora"]
SIZES = [(16, 12), (12, 20), (20, 8)]


def network(dtype: torch.dtype = torch.float64, **options) -> nn.Sequential:
    """Three adapted layers on top of each other."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(*size) for size in SIZES)).to(dtype).requires_grad_(False)
    config = METHOD.Config(**options)
    for number in range(len(SIZES)):
        attach(net, str(number), config, seed=3)
    return net


def adapters_of(net: nn.Sequential) -> list[Adapter]:
    return [layer.adapter for layer in net if isinstance(layer, Adapted)]


def train(net: nn.Sequential, steps: int, after=None, lr: float = 0.01) -> list[int]:
    """Fit a random target as the loop does; how many components act after each step. `after` is called as well."""
    ours = adapters_of(net)
    optimizer = torch.optim.Adam([p for adapter in ours for p in adapter.parameters()], lr=lr)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(ours[0].up.dtype)
    wanted = x @ torch.randn(16, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x)
    counts = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = (net(x) - wanted).square().mean()
        if (penalty := Adapter.penalty(ours)) is not None:
            loss = loss + penalty
        loss.backward()
        optimizer.step()
        if after is not None:
            after(step)
        with torch.no_grad():
            assert Adapter.after_step(ours, step, steps) == []
        counts.append(sum(int(adapter.gains().count_nonzero()) for adapter in ours))
    return counts


# -- the budget -------------------------------------------------------------------------------------------------------


def test_the_budget_falls_to_its_target_and_is_reached_exactly():
    net = network(rank=12, target_rank=5, warmup=0.2, final=0.3, interval=1)
    counts = train(net, 50)
    assert counts[:10] == [36] * 10
    assert counts[9:35] == sorted(counts[9:35], reverse=True) and counts[20] < 36
    assert counts[34:] == [15] * 16
    assert sum(a.export_terms(torch.zeros(1)).up.shape[1] for a in adapters_of(net)) == 15
    assert [int(a.kept.sum()) for a in adapters_of(net)] != [5, 5, 5], "the ranks did not move"


def test_the_target_is_two_thirds_of_the_rank_and_a_layers_own_rank_bounds_it():
    assert [METHOD.Config(rank=rank).target for rank in (12, 16, 3, 1)] == [8, 11, 2, 1]
    config = METHOD.Config(rank=12, target_rank=8)
    assert config.target == 8 and config.model_copy(update={"rank": 4}).target == 4


def test_with_nothing_to_drop_all_is_kept():
    """peft fails there: it asks for the zeroth smallest score."""
    assert train(network(rank=4, target_rank=4, interval=1), 10) == [12] * 10


def test_what_is_dropped_may_grow_back_until_the_last_phase():
    net = network(rank=6, target_rank=2, warmup=0.1, final=0.5, interval=5)
    counts = train(net, 40)
    assert counts[9] < counts[10], "a component did not grow back between two choices"
    assert counts[19:] == [6] * 21, "a component grew back in the last phase"
    assert all((adapter.gain != 0).all() for adapter in adapters_of(net)), "the optimizer did not move what is dropped"


def test_a_skipped_step_is_made_up_for():
    """Overflows of float16: the method is not told of steps that the optimizer did not take."""
    net = network(rank=6, target_rank=2, warmup=0, final=0.5, interval=1)
    train(net, 10, lr=0.01)
    again = network(rank=6, target_rank=2, warmup=0, final=0.5, interval=1)
    ours = adapters_of(again)
    for adapter in ours:
        randomise(adapter)
        for parameter in adapter.parameters():
            parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        for step in (1, 2, 7, 8):
            Adapter.after_step(ours, step, 10)
            randomise(ours[0])
    for layers in (adapters_of(net), ours):
        assert sum(int(adapter.kept.sum()) for adapter in layers) == 6


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trainings_reach_the_budget(steps):
    assert train(network(rank=6), steps)[-1] == 12


@pytest.mark.parametrize("options, words", [
    ({"rank": 4, "target_rank": 5}, "target_rank 5 is more than rank 4"),
    ({"warmup": 0.6, "final": 0.5}, "more than the whole training"),
])
def test_budgets_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        METHOD.Config(**options)


# -- peft -------------------------------------------------------------------------------------------------------------


def peft_network(net: nn.Sequential, steps: int, config) -> nn.Module:
    """peft's AdaLoRA with the same tensors."""
    from peft import AdaLoraConfig, get_peft_model

    begin, end = config.phases(steps)
    torch.manual_seed(0)
    theirs = get_peft_model(
        nn.Sequential(*(nn.Linear(*size) for size in SIZES)).double(),
        AdaLoraConfig(
            target_modules=[str(n) for n in range(len(SIZES))], init_r=config.rank, target_r=config.target,
            tinit=begin, tfinal=steps - end, deltaT=config.interval, total_step=steps, lora_alpha=6,
            orth_reg_weight=config.orthogonality,
        ),
    ).double()
    copy_over(net, theirs)
    return theirs


def parts(theirs: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
    layers = [theirs.base_model.model[n] for n in range(len(SIZES))]
    return [(layer.lora_B["default"], layer.lora_A["default"], layer.lora_E["default"]) for layer in layers]


def copy_over(net: nn.Sequential, theirs: nn.Module) -> None:
    with torch.no_grad():
        for adapter, (up, down, gain) in zip(adapters_of(net), parts(theirs), strict=True):
            for own, other in ((adapter.up, up), (adapter.down, down), (adapter.gain.unsqueeze(1), gain)):
                other.copy_(own)


RAW = {"rank": 6, "alpha": 6.0, "step_size": "raw", "orthogonality": 0.5}


def test_forward_and_gradients_are_pefts():
    net = network(**RAW)
    for number, adapter in enumerate(adapters_of(net)):
        randomise(adapter, seed=number)
    theirs = peft_network(net, 10, METHOD.Config(**RAW))
    x = torch.randn(5, 16, dtype=torch.float64)
    ours, other = net(x), theirs(x)
    close(ours, other, 1e-5)  # they divide by rank + 1e-5
    probe(ours).backward()
    probe(other).backward()
    for adapter, (up, down, gain) in zip(adapters_of(net), parts(theirs), strict=True):
        for own, tensor in ((adapter.up, up), (adapter.down, down), (adapter.gain, gain)):
            close(own.grad, tensor.grad.view_as(own), 1e-5)


def test_a_convolution_is_pefts():
    from peft import AdaLoraConfig, get_peft_model

    case = next(c for c in CASES if c.name == "conv2d")
    adapted, x = adapt("adalora", {**RAW, "rank": 4, "alpha": 4.0}, case, torch.float64), inputs(case, torch.float64)
    torch.manual_seed(0)
    config = AdaLoraConfig(target_modules=["0"], init_r=4, target_r=2, lora_alpha=4, total_step=9)
    theirs: nn.Module = get_peft_model(nn.Sequential(case.make()), config).double().base_model.model[0]
    theirs.base_layer.load_state_dict(adapted.base.state_dict())
    tensors = {"up": theirs.lora_B["default"], "down": theirs.lora_A["default"], "gain": theirs.lora_E["default"]}
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(adapted.adapter.get_parameter(name).view_as(tensor))
    ours, other = fast(adapted, x), theirs(x)
    close(ours, other, 1e-5)
    found, expected = gradients(probe(ours), trained(adapted.adapter), x), gradients(probe(other), tensors, x)
    for name, gradient in found.items():
        close(gradient, expected[name].view_as(gradient), 1e-5, name)


def test_components_are_chosen_as_by_peft():
    """On the same parameters and gradients at every step. Their last choice comes when ours does."""
    steps, options = 30, {**RAW, "target_rank": 3, "warmup": 0.1, "final": 0.3, "interval": 2}
    net, config = network(**options), METHOD.Config(**options)
    theirs, seen = peft_network(net, steps, config), []

    def after(step: int) -> None:
        copy_over(net, theirs)
        for adapter, tensors in zip(adapters_of(net), parts(theirs), strict=True):
            for own, other in zip((adapter.up, adapter.down, adapter.gain), tensors, strict=True):
                other.grad = own.grad.clone().view_as(other)
        theirs.base_model.update_and_allocate(step)
        seen.append([gain.flatten() != 0 for *_, gain in parts(theirs)])

    def ours(step: int) -> list[Tensor]:
        return [adapter.gains() != 0 for adapter in adapters_of(net)]

    found = []
    counts = train(net, steps, lambda step: (found.append(ours(step)), after(step)))
    found = [*found[1:], ours(steps)]
    # found[n] was taken before choice n + 1: after the optimizer's step, when dropped gains have moved
    assert counts[-1] == sum(int(mask.sum()) for mask in seen[-1]) == 9
    assert all(torch.equal(one, other) for one, other in zip(found[-1], seen[-1], strict=True))
    assert counts == [sum(int(mask.sum()) for mask in masks) for masks in seen]


def test_the_schedule_is_the_published_one():
    found = [budget(step, 10, 60, 100, 40) for step in range(1, 101)]
    cubic = [int(40 + 60 * (1 - (step - 10) / 50) ** 3) for step in range(10, 60)]
    assert found == [100] * 9 + cubic + [40] * 41


# -- the penalty ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", ["calibrated", "raw"])
def test_the_penalty_is_the_dense_formula(step_size):
    net = network(rank=4, step_size=step_size, orthogonality=0.3)
    expected = []
    for adapter in adapters_of(net):
        randomise(adapter)
        for rows in (adapter.up.t(), adapter.down):
            rows = rows / (SLOWER * math.sqrt(rows.shape[1])) if step_size == "calibrated" else rows
            expected.append((rows @ rows.t() - torch.eye(4)).square().sum().sqrt())
    wanted = [adapter.up for adapter in adapters_of(net)] + [adapter.down for adapter in adapters_of(net)]
    close(Adapter.penalty(adapters_of(net)), 0.3 * sum(expected) / 6, 1e-12)
    found = torch.autograd.grad(Adapter.penalty(adapters_of(net)), wanted)
    for gradient, dense in zip(found, torch.autograd.grad(0.3 * sum(expected) / 6, wanted), strict=True):
        close(gradient, dense, 1e-10)


def test_raw_steps_have_pefts_penalty():
    net = network(**RAW)
    theirs = peft_network(net, 10, METHOD.Config(**RAW))
    x = torch.randn(5, 16, dtype=torch.float64)
    theirs.base_model.model.forward = lambda x: type("Output", (), {"loss": torch.zeros((), dtype=x.dtype)})()
    close(Adapter.penalty(adapters_of(net)), theirs.base_model(x).loss, 1e-10)


def test_without_weight_there_is_no_penalty():
    assert Adapter.penalty(adapters_of(network(orthogonality=0.0))) is None


def test_the_penalty_makes_factors_orthonormal():
    ours = adapters_of(network(rank=4, orthogonality=1.0))
    optimizer = torch.optim.SGD([p for adapter in ours for p in (adapter.up, adapter.down)], lr=SLOWER**2)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        penalty = Adapter.penalty(ours)
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert min(values) < 0.1 * values[0]


# -- files ------------------------------------------------------------------------------------------------------------


def test_only_what_acts_is_exported_and_a_layer_without_anything_still_is():
    first, second, third = adapters_of(network(rank=4))
    for adapter in (first, second, third):
        randomise(adapter)
    with torch.no_grad():
        first.gain[1] = 0
        second.kept[2:] = 0
        third.gain.zero_()
        for adapter, rank in ((first, 3), (second, 2), (third, 1)):
            W = torch.randn(adapter.up.shape[0], adapter.down.shape[1], dtype=torch.float64)
            terms = adapter.export_terms(W)
            assert terms.up.shape[1] == terms.down.shape[0] == rank
            close(W + terms.up @ terms.down, adapter.weight(W), 1e-12)
        assert not terms.up.any()


@pytest.mark.parametrize("step_size", ["calibrated", "raw"])
def test_it_goes_on_from_any_low_rank_file(step_size):
    up, down = torch.randn(12, 3, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    layer = network(rank=4, step_size=step_size)[0]
    layer.adapter.start_from(Terms(up=up, down=down), layer.layer)
    W = layer.layer.dense()
    close(layer.adapter.weight(W), W + up @ down, 1e-7)  # the factor is in single precision
    rows = layer.adapter.down[:3].detach()
    close(rows @ rows.t(), (16 * SLOWER**2 if step_size == "calibrated" else 1) * torch.eye(3), 1e-6)
    assert layer.adapter.gain[3] == 0
    with pytest.raises(ValueError, match="set adapter.rank 5"):
        layer.adapter.start_from(Terms(up=torch.zeros(12, 5), down=torch.zeros(5, 16)), layer.layer)
    with pytest.raises(ValueError, match="magnitudes"):
        layer.adapter.start_from(Terms(magnitude=torch.ones(12)), layer.layer)


# -- calibrated steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank, width", [(2, 320), (64, 320), (12, 1280)])
def test_steps_have_one_size_whatever_rank_and_width(rank, width):
    lr, changes = 1e-3, []
    net = nn.Sequential(nn.Linear(width, width))
    nn.init.normal_(net[0].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    adapter = attach(net, "0", METHOD.Config(rank=rank), seed=0).adapter
    W = net[0].base.weight.detach()
    direction = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=lr, eps=1e-30)
    for step in range(100):
        optimizer.zero_grad()
        ((direction.t() @ (adapter.gains() * adapter.up)) * adapter.down.t()).sum().backward()
        before = adapter.weight(W).detach() if step in (0, 99) else W
        optimizer.step()
        if step in (0, 99):
            changes.append(((adapter.weight(W).detach() - before).norm() / W.norm() / lr).item())
    assert abs(changes[0] - 1) < 0.15, changes
    # A loss that never bends turns both factors of a component towards its one gain, whose gradient so grows from step
    # to step; Adam then takes more than its learning rate. The unit is right, as the first step shows.
    assert changes[1] / changes[0] < 1.5, changes
