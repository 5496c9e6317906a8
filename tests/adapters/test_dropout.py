"""Dropout of layers and in the branch: what it is by definition, whom it belongs to, and what it is on average; the
largest norm."""

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from modules.adapters.dropout import DroppingAdapter
from modules.training.dropping import Dropping
from tests.adapters.cases import CASES, DOUBLE, FIRST, Case, adapt, fast, inputs, randomise
from tests.adapters.dense import multiplied

CPU = torch.device("cpu")
METHODS = [name for name in adapters.methods() if issubclass(adapters.methods()[name].Adapter, DroppingAdapter)]
KINDS = [case for case in CASES if case.name in ("linear", "conv2d", "embedding", "nf4")]
ALL = {"dropout": 0.4, "rank_dropout": 0.4, "module_dropout": 0.3}


def made(method: str, case: Case, seed: int = 0, **options):
    """A layer of the denoiser with an adapter, and what sets its dropout."""
    adapted = adapt(method, FIRST[method] | options, case, DOUBLE)
    return adapted, Dropping({"unet.layer": adapted}, "unet", seed)


def batch(case: Case, count: int = 4):
    """Inputs of several samples."""
    one = inputs(case, DOUBLE)[:1].detach()
    if case.kind == "embedding":
        return torch.randint(0, 16, (count, *one.shape[1:]), generator=torch.Generator().manual_seed(0))
    shape = (count, 3, *one.shape[1:]) if one.dim() == 2 else (count, *one.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def test_the_plain_low_rank_methods_have_it():
    assert {"lora", "cora", "delora"} <= set(METHODS)


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
@pytest.mark.parametrize("method", METHODS)
def test_dropped_components_are_missing_from_the_weight(method, case):
    if case.kind not in adapters.methods()[method].Adapter.kinds:
        pytest.skip("no such layers")
    adapted, dropping = made(method, case, rank_dropout=0.5, module_dropout=0.2)
    x, positions = batch(case), (3, 8, 9, 20)
    with torch.no_grad(), dropping.at(0, positions, CPU):
        found, factors = fast(adapted, x), adapted.adapter.drop.factors
        W = adapted.layer.dense().double()
        adapted.adapter.drop = None
        terms = adapted.adapter.export_terms(W)
        for row, own in enumerate(factors):
            kept = own.repeat(len(terms.down) // len(own)).double()
            weight = W + (terms.up * kept) @ terms.down
            expected = adapted.layer.adapted(x[row : row + 1], weight)
            torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-6, atol=1e-6)
    assert set(factors.unique().tolist()) == {0.0, 2.0} and len(factors.unique(dim=0)) > 1


@pytest.mark.parametrize("of", ["input", "inner"])
@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_a_samples_draw_is_its_own_in_any_batch(case, of):
    adapted, dropping = made("lora", case, dropout_of=of, **ALL)
    x, positions = batch(case), (5, 6, 7, 40)
    with torch.no_grad():
        with dropping.at(2, positions, CPU):
            whole = fast(adapted, x)
        with dropping.at(9, positions[2:], CPU):  # another batch, process and step
            part = fast(adapted, x[2:])
        with dropping.at(2, (*positions[:3], 41), CPU):
            other = fast(adapted, x)
    torch.testing.assert_close(part, whole[2:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other[:3], whole[:3], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(other[3], whole[3])
    assert adapted.adapter.drop is None


@pytest.mark.parametrize("of", ["input", "inner"])
def test_layers_that_join_samples_share_the_steps_draw(of):
    linear = KINDS[0]
    adapted, dropping = made("lora", linear, dropout_of=of, **(ALL | {"module_dropout": 0}))
    x = torch.randn(7, 16, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))

    def seen(step, positions, rows):
        with torch.no_grad(), dropping.at(step, positions, CPU):
            return fast(adapted, rows)

    whole = seen(0, (1, 2), x)
    assert torch.allclose(whole[:5], seen(0, (3,), x[:5])) and not torch.allclose(whole, seen(1, (1, 2), x))
    texts = Dropping({"text_encoder.layer": adapted}, "unet", 0)
    with torch.no_grad(), texts.at(0, (1, 2), CPU):
        first, second = fast(adapted, x[None, :].expand(2, -1, -1))
    assert torch.allclose(first, second), "a row of a text encoder need not be a sample"


@pytest.mark.parametrize("of", ["input", "inner"])
def test_on_average_nothing_is_changed(of):
    adapted, dropping = made("lora", KINDS[0], dropout_of=of, dropout=0.3, rank_dropout=0.3)
    x = batch(KINDS[0], 1).expand(1000, -1, -1)
    with torch.no_grad():
        expected, base = fast(adapted, x[:1]), adapted.layer(x[:1])
        with dropping.at(0, range(1000), CPU):
            found = fast(adapted, x)
    assert (found.mean(0) - expected[0]).norm() < 0.1 * (expected - base).norm()
    assert (found.std(0) > 0).all()


def test_a_layer_is_left_out_as_often_as_asked():
    adapted, dropping = made("lora", KINDS[0], module_dropout=0.25)
    x = batch(KINDS[0], 1).expand(1000, -1, -1)
    with torch.no_grad(), dropping.at(0, range(1000), CPU):
        found = fast(adapted, x)
        adapted.adapter.drop = None
        without, whole = adapted.layer(x[:1]), fast(adapted, x[:1])
    off = torch.isclose(found, without).all((1, 2))
    assert 0.2 < off.double().mean() < 0.3
    assert torch.allclose(found[~off], whole.expand(int((~off).sum()), -1, -1)), "what is left is not scaled"


@pytest.mark.parametrize("case", KINDS[:3], ids=lambda case: case.name)
def test_gradients_are_those_of_the_dropped_branch(case):
    adapted, dropping = made("lora", case, dropout_of="inner", **ALL)
    x, adapter = batch(case), adapted.adapter
    with dropping.at(0, (1, 2, 3, 4), CPU):
        def of(up, down):
            return torch.func.functional_call(adapter, {"up": up, "down": down}, (x, adapted.layer, {}))

        assert torch.autograd.gradcheck(of, (adapter.up, adapter.down), fast_mode=True)


def test_layers_and_seeds_have_their_own_draws():
    one, other = (adapt("lora", FIRST["lora"] | ALL, KINDS[0], DOUBLE) for _ in range(2))
    dropping = Dropping({"unet.a": one, "unet.b": other}, "unet", 0)
    x = batch(KINDS[0])
    with torch.no_grad(), dropping.at(0, (1, 2, 3, 4), CPU):
        found = fast(one, x), fast(other, x)
    with torch.no_grad(), Dropping({"unet.a": one}, "unet", 1).at(0, (1, 2, 3, 4), CPU):
        again = fast(one, x)
    assert not torch.allclose(*found) and not torch.allclose(found[0], again)


def test_nothing_is_set_where_nothing_is_dropped():
    adapted, dropping = made("lora", KINDS[0])
    with dropping.at(0, (1,), CPU):
        assert not dropping.layers and adapted.adapter.drop is None


# -- whole layers, and the input of a change with a magnitude ----------------------------------------------------------

MAGNITUDES = [name for name, module in adapters.methods().items()
              if "dropout" in module.Config.model_fields and name not in METHODS]


@pytest.mark.parametrize("case", KINDS[:3], ids=lambda case: case.name)
@pytest.mark.parametrize("method", adapters.methods())
def test_every_method_leaves_layers_out_of_single_samples(method, case):
    if case.kind not in adapters.methods()[method].Adapter.kinds:
        pytest.skip("no such layers")
    adapted, dropping = made(method, case, module_dropout=0.5)
    x, positions = batch(case), (3, 8, 9, 20)
    with torch.no_grad():
        whole, without = adapted(x), adapted.layer(x)
        with dropping.at(0, positions, CPU):
            found, kept = adapted(x), adapted.adapter.drop.whole
            joined = adapted(x[0]) if case.kind == "linear" else None  # its rows are no samples
            shared = adapted.adapter.drop.shared_whole
    assert any(kept) and not all(kept), "nothing to test"
    for row, one in enumerate(kept):
        torch.testing.assert_close(found[row], (whole if one else without)[row])
    assert not torch.allclose(whole, without)
    if joined is not None:
        torch.testing.assert_close(joined, (whole if shared else without)[0])


def test_its_gradients_are_those_of_the_samples_with_the_adapter():
    adapted, dropping = made("oft", KINDS[0], module_dropout=0.5)
    x = batch(KINDS[0]).requires_grad_()
    parameters = [*adapted.adapter.parameters(), x]
    with dropping.at(0, (3, 8, 9, 20), CPU):
        kept = torch.tensor(adapted.adapter.drop.whole)
        found = torch.autograd.grad(adapted(x).sin().sum(), parameters)
    y = torch.where(kept.view(-1, 1, 1), adapted(x), adapted.layer(x))
    for one, expected in zip(found, torch.autograd.grad(y.sin().sum(), parameters), strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
@pytest.mark.parametrize("method", MAGNITUDES)
def test_the_input_of_a_change_with_a_magnitude_is_dropped_as_in_peft(method, case, axis):
    """`y = W x + (W' - W) d(x)`, by the adapted weight."""
    options = {"rank": 4, "axis": axis, "dropout": 0.4, "module_dropout": 0.5}
    adapted = adapt(method, options, case, DOUBLE)
    dropping, x = Dropping({"unet.layer": adapted}, "unet", 0), batch(case)
    with torch.no_grad(), dropping.at(0, (3, 8, 9, 20), CPU):
        drop = adapted.adapter.drop
        found, W = adapted(x), adapted.layer.dense().double()
        change = adapted.adapter.weight(W) - W
        one = (len(x), *[1] * (x.dim() - 1 + (case.kind == "embedding")))
        whole = torch.tensor(drop.whole).view(one).double()
        if case.kind == "embedding":
            rows = drop.kept(x, -1).unsqueeze(-1) * adapted.layer.with_weight(x, change)
        else:
            rows = adapted.layer.with_weight(x * drop.kept(x, 1 if case.kind == "conv" else -1), change)
        torch.testing.assert_close(found, adapted.layer(x) + whole * rows, rtol=1e-6, atol=1e-6)
    assert drop.inside and 0 < whole.sum() < len(x)


def test_near_beta_zero_the_input_is_dropped_too():
    adapted = adapt("wora", {"rank": 4, "dropout": 0.4}, KINDS[0], DOUBLE)
    with torch.no_grad():
        adapted.adapter.beta.fill_(1e-8)
    x = batch(KINDS[0])
    with torch.no_grad(), Dropping({"unet.layer": adapted}, "unet", 0).at(0, (1, 2, 3, 4), CPU):
        W, kept = adapted.layer.dense(), adapted.adapter.drop.kept(x, -1)
        expected = adapted.layer(x) + adapted.layer.with_weight(x * kept, adapted.adapter.weight(W) - W)
        torch.testing.assert_close(adapted(x), expected)


# -- the largest norm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", ["raw", "calibrated"])
def test_larger_updates_are_scaled_down_and_smaller_ones_kept(step_size):
    Config, Adapter = adapters.methods()["lora"].Config, adapters.methods()["lora"].Adapter
    net = nn.Sequential(nn.Linear(16, 12), nn.Conv2d(8, 12, 3), nn.Linear(16, 12))
    config = Config(rank=3, max_norm=0.7, step_size=step_size)
    layers = [attach(net, str(number), config, 0) for number in range(3)]
    for adapted, scale in zip(layers, (3.0, 3.0, 1e-3), strict=True):
        randomise(adapted.adapter, scale=scale)

    def changes():
        return [adapted.adapted_weight() - adapted.base.weight for adapted in layers]

    before, small = changes(), layers[2].adapter.up.clone()
    ratio = layers[0].adapter.up.norm() / layers[0].adapter.down.norm()
    with torch.no_grad():
        assert Adapter.after_step([adapted.adapter for adapted in layers], 1, 1) == []
    for old, new in zip(before[:2], changes()[:2], strict=True):
        assert old.norm() > 0.7 and torch.allclose(new, old * 0.7 / old.norm(), atol=1e-5)
    assert torch.equal(layers[2].adapter.up, small) and before[2].norm() < 0.7
    assert torch.isclose(layers[0].adapter.up.norm() / layers[0].adapter.down.norm(), ratio)
    assert not config.model_copy(update={"max_norm": None}).limits_norm and config.limits_norm


@pytest.mark.parametrize("init", ["pissa", "inilora"])
def test_a_pair_that_is_subtracted_cannot_be_limited(init):
    with pytest.raises(ValueError, match="max_norm 1 has no effect with init .*kaiming"):
        adapters.methods()["lora"].Config(init=init, max_norm=1.0)


LIMITED = [name for name, module in adapters.methods().items() if "max_norm" in module.Config.model_fields]


@pytest.mark.parametrize("case", KINDS[:2], ids=lambda case: case.name)
@pytest.mark.parametrize("method", LIMITED)
def test_the_product_of_the_factors_is_scaled_down_and_keeps_its_direction(method, case):
    options = FIRST[method] | {"max_norm": 0.1}
    adapted = adapt(method, options, case, DOUBLE)
    adapter, W = adapted.adapter, adapted.layer.dense()

    def product():
        with torch.no_grad():
            terms = adapter.export_terms(W)
        return terms.up @ terms.down if terms.up is not None else multiplied(terms.product)

    before = product()
    with torch.no_grad():
        assert type(adapter).after_step([adapter], 1, 1) == []
    assert before.norm() > 0.11
    torch.testing.assert_close(product(), 0.1 * before / before.norm(), rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        type(adapter).after_step([adapter], 2, 2)
    torch.testing.assert_close(product().norm(), torch.tensor(0.1, dtype=DOUBLE), rtol=1e-5, atol=0)


def test_which_methods_have_them():
    assert set(MAGNITUDES) == {"dora", "wora"} and set(LIMITED) == {"lora", "dora", "wora", "loha", "lokr"}
