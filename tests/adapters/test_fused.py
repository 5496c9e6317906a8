"""The passes of `fused`: each way of computing them gives the same, whichever is cheaper."""

import pytest
import torch

from modules.adapters import fused, linalg, turning
from tests.adapters.cases import (
    CASES,
    DOUBLE,
    adapt,
    all_close,
    close,
    fast,
    gradients,
    inputs,
    label,
    probe,
    trained,
    variants,
)

GAINED = [(m, o) for m, o in variants() if "axis" in o]
FUSIBLE = [case for case in CASES if case.kind != "embedding"]


@pytest.mark.parametrize("method, options", GAINED, ids=[label(m, o) for m, o in GAINED])
@pytest.mark.parametrize("case", FUSIBLE, ids=lambda case: case.name)
def test_gains_on_the_weight_or_on_what_goes_through_it(method, options, case, monkeypatch):
    adapted, x = adapt(method, options, case, DOUBLE), inputs(case, DOUBLE)
    found = []
    for chosen in (True, False):
        monkeypatch.setattr(fused, "by_weight", lambda *_, chosen=chosen: chosen)
        y = fast(adapted, x)
        found.append((y, gradients(probe(y), trained(adapted.adapter), x)))
    close(found[0][0], found[1][0], 1e-12)
    all_close(found[0][1], found[1][1], 1e-10)


def test_the_weight_is_scaled_where_it_is_smaller():
    layer = adapt("wora", {"rank": 4, "axis": "input"}, CASES[0]).layer  # 12 x 16
    gains = torch.zeros(16), None
    assert fused.by_weight(layer, torch.zeros(12, 16), *gains)
    assert not fused.by_weight(layer, torch.zeros(11, 16), *gains)
    assert fused.by_weight(layer, torch.zeros(16, 16), None, torch.zeros(12))
    assert not fused.by_weight(layer, torch.zeros(15, 16), None, torch.zeros(12))
    assert not fused.by_weight(layer, torch.zeros(99, 16), None, None)


@pytest.mark.parametrize("gained", [True, False])
@pytest.mark.parametrize("case", FUSIBLE, ids=lambda case: case.name)
def test_rotations_of_the_weight_or_of_what_goes_through_it(case, gained):
    adapted, x = adapt("oft", {"rotation": {"kind": "blocks", "block_size": 4}}, case, DOUBLE), inputs(case, DOUBLE)
    layer, excess = adapted.layer, adapted.adapter.derive(adapted.layer)["excess"].detach().requires_grad_()
    gain = torch.linspace(-0.5, 0.5, layer.out_features, dtype=DOUBLE, requires_grad=True) if gained else None
    wanted = {"excess": excess, "gain": gain} if gain is not None else {"excess": excess}
    on_weight = turning.turned(layer, x, excess, gain)
    through_input = fused.scaled(layer, layer.rotate_in(x, excess), gain)
    close(on_weight, through_input, 1e-12)
    all_close(gradients(probe(on_weight), wanted, x), gradients(probe(through_input), wanted, x), 1e-10)


@pytest.mark.parametrize("case", FUSIBLE, ids=lambda case: case.name)
@pytest.mark.parametrize("axis", ["input", "output"])
def test_gains_of_large_layers_without_a_temporary(axis, case, monkeypatch):
    adapted, x = adapt("wora", {"rank": 4, "axis": axis}, case, DOUBLE), inputs(case, DOUBLE)
    plain = gradients(probe(fast(adapted, x)), trained(adapted.adapter), x)
    monkeypatch.setattr(linalg, "LARGE", 1)
    assert linalg.one_pass_pays(x)
    all_close(gradients(probe(fast(adapted, x)), trained(adapted.adapter), x), plain, 1e-10)


def test_columns_dots_in_one_pass_are_as_exact_as_a_sum_is():
    x, grad = torch.randn(20000, 27), torch.randn(20000, 27)
    for offset in (None, torch.randn(27)):
        moved = x.double() if offset is None else x.double() - offset
        close(linalg.column_dots(x, grad, offset), (moved * grad.double()).sum(0), 1e-5)
    assert linalg.one_pass_pays(x) and linalg.one_pass_pays(x.double())
    assert not linalg.one_pass_pays(x[:100]), "small ones are summed faster"
    assert not linalg.one_pass_pays(x.bfloat16()), "a CPU would add up in 16 bits"


@pytest.mark.parametrize("kernel", [1, 3])
def test_products_of_rows_and_channels_and_their_gradients(kernel):
    generator = torch.Generator().manual_seed(0)
    W, up, down = (torch.randn(2, *size, generator=generator, dtype=DOUBLE) for size in ((7, 12), (7, 2), (2, 12)))
    up, down = up.requires_grad_(), down.requires_grad_()

    def channels(up, down):
        return linalg.channel_products(up, down, up.mT @ W, kernel)

    def rows(up, down):
        return linalg.row_products(up, down, W @ down.mT)

    change = (up @ down).detach()
    for found, other in zip(channels(up, down), (W, change), strict=True):
        close(found.detach(), (other * change).sum(1).unflatten(1, (-1, kernel)).sum(2), 1e-12)
    for found, other in zip(rows(up, down), (W, change), strict=True):
        close(found.detach(), (other * change).sum(2), 1e-12)
    assert torch.autograd.gradcheck(channels, (up, down)) and torch.autograd.gradcheck(rows, (up, down))
