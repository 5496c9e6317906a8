"""What a method calls a pair acts through its product alone. Methods are found by discovery."""

import pytest
import torch

from modules import adapters
from modules.quant import dense_weight
from tests.adapters.cases import CASES, DOUBLE, adapt, adapter_class, close, label, trained, variants

PAIRED = [(m, options) for m, options in variants() if adapter_class(m).pairs]


@pytest.mark.parametrize("method, options", PAIRED, ids=[label(*v) for v in PAIRED])
def test_any_split_of_the_product_gives_the_same_weight(method, options):
    adapted = adapt(method, options, CASES[0], DOUBLE)
    W, adapter = dense_weight(adapted.base).double(), adapted.adapter
    before, parameters = adapter.weight(W).detach(), trained(adapter)
    for up, down in adapter.pairs:
        left, right = parameters[up], parameters[down]
        rank = left.shape[1]
        assert left.shape == (12, rank) and right.shape == (rank, 16)
        draw = torch.Generator().manual_seed(1)
        turn = torch.eye(rank, dtype=DOUBLE) + 0.3 * torch.randn(rank, rank, generator=draw, dtype=DOUBLE)
        with torch.no_grad():
            left.copy_(left @ turn)
            right.copy_(torch.linalg.solve(turn, right))
    close(adapter.weight(W), before, 1e-10)


def test_some_methods_have_pairs_and_some_have_none():
    found = {name for name in adapters.methods() if adapter_class(name).pairs}
    assert {"lora", "dora", "wora"} <= found and not {"oft", "doft"} & found
