"""The passes of `fused`: each way of computing them gives the same, whichever is cheaper."""

import pytest
import torch

from modules.adapters import fused, turning
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
