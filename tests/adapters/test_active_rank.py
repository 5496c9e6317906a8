"""T-LoRA: the masked branch by definition, whose it is, its size, its gradients, and that it compiles once."""

import math

import pytest
import torch

from modules import adapters
from modules.adapters import linalg
from modules.adapters.active_rank import ActiveRankConfig, mask
from modules.adapters.derived import Derived
from modules.training.active_ranks import ActiveRanks
from tests.adapters.cases import CASES, DOUBLE, adapt, fast, trained

CPU = torch.device("cpu")
METHODS = [name for name in adapters.methods() if issubclass(adapters.methods()[name].Config, ActiveRankConfig)]
KINDS = {case.name: case for case in CASES if case.name in ("linear", "conv2d", "nf4")}
TIMES = torch.tensor([20.0, 500.0, 990.0, 700.0], dtype=DOUBLE)
MORE = {"raclora": {"links": 2}, "sora": {"planes": 2}, "cora": {"folder": "any"}}


def made(method, case, **options):
    adapted = adapt(method, {"rank": 4, "min_rank": 1, **MORE.get(method, {}), **options}, case, DOUBLE)
    return adapted, ActiveRanks({"unet.layer": adapted}, "unet", 1000)


def batch(case, count=4):
    shape = (count, 3, case.shape[-1]) if case.kind == "linear" else (count, *case.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def defined(adapted, row):
    """The layer's weight for one sample with this mask `(4)`: norms, magnitudes and rotations of the whole update."""
    W = adapted.layer.dense().double()
    terms = adapted.adapter.export_terms(W)
    up, down, kept = terms.up.double(), terms.down.double(), row.double()
    if adapted.adapter.config.method == "sora":
        kept = torch.cat([kept, torch.ones(len(down) - 4, dtype=DOUBLE)])
    V = W + (up * kept.repeat(len(down) // len(kept))) @ down
    if terms.magnitude is None:
        return V
    norm = linalg.axis_norm(W + up @ down, terms.axis, adapted.layer.kernel)
    return linalg.scale_axis(V, terms.magnitude.double() / norm, terms.axis, adapted.layer.kernel)


def test_the_low_rank_methods_have_it():
    assert set(METHODS) == {"lora", "dora", "wora", "prediag", "sora", "cora", "raclora", "delora", "neat"}


@pytest.mark.parametrize("options", [{}, {"axis": "output"}, {"init": "pissa"}, {"rank_dropout": 0.2}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_inactive_components_are_missing_from_the_update(method, kind, options):
    case, known = KINDS[kind], adapters.methods()[method].Config.model_fields
    if not options.keys() <= known.keys() or ("init" in options and method != "lora"):
        pytest.skip("no such option")
    adapted, ranks = made(method, case, **options)
    x = batch(case)
    with torch.no_grad(), ranks.at(TIMES, CPU):
        found, rows = fast(adapted, x), adapted.adapter.active
        assert rows.sum(1).tolist() == [3, 2, 1, 1]
        for number, row in enumerate(rows):
            one = slice(number, number + 1)
            expected = adapted.layer.adapted(x[one], defined(adapted, row))
            torch.testing.assert_close(found[one], expected, rtol=1e-6, atol=1e-6)
    assert adapted.adapter.active is None


@pytest.mark.parametrize("method, options", [
    ("lora", {}), ("dora", {"axis": "output"}), ("lora", {"rank_dropout": 0.1}),
])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_gradients_are_those_of_the_masked_branch(method, options, kind):
    adapted, ranks = made(method, KINDS[kind], **options)
    x, adapter = batch(KINDS[kind]), adapted.adapter
    names, values = zip(*trained(adapter).items(), strict=True)
    with ranks.at(TIMES, CPU):
        kept = adapter.derive(adapted.layer)
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in kept.items()}

        def of(x, *tensors):
            own, others = tensors[: len(values)], tensors[len(values) :]
            given = dict(zip(leaves, others, strict=True))
            return torch.func.functional_call(adapter, dict(zip(names, own, strict=True)), (x, adapted.layer, given))

        assert torch.autograd.gradcheck(of, (x.requires_grad_(), *values, *leaves.values()), fast_mode=True)


def test_the_active_rank_is_the_authors():
    for rank, least, power in ((16, 1, 1.0), (32, 8, 2.0), (5, 2, 0.5)):
        times = torch.arange(0, 1001, 7, dtype=DOUBLE)
        found = mask(times / 1000, rank, least, power)
        expected = [int(((1000 - t) / 1000) ** power * (rank - least)) + least for t in times.tolist()]
        assert (found.sum(1) - torch.tensor(expected)).abs().max() <= 1 and (found.diff(dim=1) <= 0).all()
        exact = torch.tensor([math.isclose(x := ((1000 - t) / 1000) ** power * (rank - least), round(x))
                              for t in times.tolist()])
        assert torch.equal(found.sum(1)[~exact], torch.tensor(expected).float()[~exact])
    assert mask(torch.zeros(1), 4, 8, 1.0).sum() == 4, "a layer with a lower rank of its own"


def test_layers_that_join_samples_and_text_encoders_have_the_whole_rank():
    adapted, ranks = made("lora", KINDS["linear"])
    x = batch(KINDS["linear"])
    with torch.no_grad():
        whole = fast(adapted, x)
        with ranks.at(TIMES, CPU):
            assert torch.equal(fast(adapted, x.flatten(0, 1)), whole.flatten(0, 1))
        texts = ActiveRanks({"text_encoder.layer": adapted}, "unet", 1000)
        with texts.at(TIMES, CPU):
            assert torch.equal(fast(adapted, x), whole) and not texts.adapters


def test_nothing_is_set_where_it_is_off():
    adapted, ranks = made("lora", KINDS["linear"], min_rank=None)
    with ranks.at(TIMES, CPU):
        assert not ranks.adapters and adapted.adapter.active is None


@pytest.mark.full
@pytest.mark.usefixtures("compiler")
def test_other_noise_levels_compile_nothing_anew():
    adapted, ranks = made("dora", KINDS["linear"])
    compiled, x = torch.compile(adapted, backend="aot_eager"), batch(KINDS["linear"])
    counters = torch._dynamo.utils.counters
    derived, graphs = Derived([adapted]), []
    counters.clear()
    for times in (TIMES, TIMES.flip(0), TIMES / 2):
        derived.begin()
        with ranks.at(times, CPU):
            torch.testing.assert_close(compiled(x), adapted(x), rtol=1e-9, atol=1e-9)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs)) == 1 and not counters["graph_break"]


@pytest.mark.parametrize("rank", [4, 9])
def test_a_minimum_that_is_no_less_is_refused(rank):
    with pytest.raises(ValueError, match=f"min_rank {rank} is not below rank 4"):
        adapters.methods()["lora"].Config(method="lora", rank=4, min_rank=rank)
