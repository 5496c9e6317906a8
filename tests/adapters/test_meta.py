"""Layers without values: alike ones get copies of one adapter, which are what each would have been made."""

import pytest
import torch
from torch import nn

from modules.adapters import methods
from modules.adapters.base import attach

NEEDS = {"cora": {"folder": "anywhere"}}


@pytest.mark.parametrize("method", methods())
def test_copies_are_what_would_have_been_made(method):
    config = methods()[method].Config(**NEEDS.get(method, {}))
    found = []
    for known in (None, {}):
        with torch.device("meta"):
            network = nn.Sequential(nn.Linear(64, 128), nn.Linear(64, 128), nn.Linear(128, 64))
        found.append([attach(network, str(place), config, 0, known).adapter for place in range(3)])
    for made, copied in zip(*found, strict=True):
        one, two = ({name: (t.shape, t.dtype, t.device) for name, t in adapter.state_dict().items()}
                    for adapter in (made, copied))
        assert one == two and copied.config == config
        assert {name for name, _ in made.named_parameters()} == {name for name, _ in copied.named_parameters()}
    first, second, _ = found[1]
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_layers_with_values_draw_their_own():
    network, known = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), {}
    first, second = (attach(network, name, methods()["lora"].Config(rank=2), 0, known).adapter for name in "01")
    assert not known and not torch.equal(first.down, second.down)
