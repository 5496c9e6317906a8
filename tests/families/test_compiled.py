"""Compiled blocks train as plain ones do, with and without recomputing, and are few.

The compiler's last stage is left out here (it takes minutes on a CPU): what is traced runs as it is.
"""

from functools import partial

import pytest
import torch
from torch import nn

from modules.adapters import methods
from modules.adapters.base import attach
from modules.adapters.derived import Derived
from modules.preset.schema import Targets
from modules.training.setup import match_layers, whole
from tests.families.using import loaded, predicted


@pytest.fixture(autouse=True)
def traced_only(compiler, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def gradients(model, method: str, checkpointing: bool, compiled: bool, targets: Targets) -> list[torch.Tensor]:
    """Of two steps that are the same, through derived tensors."""
    network, config = whole(model), methods()[method].Config(method=method)
    layers = [attach(network, name, config, 0) for name in match_layers(model, targets)[0]]
    for layer in layers:
        for parameter in layer.adapter.parameters():
            nn.init.normal_(parameter, 0.5, 0.1, generator=torch.Generator().manual_seed(0))
    if checkpointing:
        model.enable_checkpointing()
    if compiled:
        model.compile_blocks(checkpointing)
    derived = Derived(layers)
    for _ in range(2):
        derived.begin()
        predicted(model, ["red apple"]).square().sum().backward()
        derived.pull_back()
    return [p.grad for layer in layers for p in layer.adapter.parameters() if p.grad is not None]


def check(family, folder, method: str, packing: str, checkpointing: bool, targets: Targets | None = None) -> None:
    targets = targets or Targets()
    plain = gradients(loaded(family, folder, quantization=packing), method, checkpointing, False, targets)
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = loaded(family, folder, quantization=packing)
    found = gradients(model, method, checkpointing, True, targets)
    largest = max(one.norm() for one in plain)
    for one, two in zip(plain, found, strict=True):
        assert (one - two).norm() <= 1e-4 * one.norm() + 3e-7 * largest  # some are rounding only
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert not counters["recompile_limit"], "blocks of a kind share the compiled code"


@pytest.mark.full
@pytest.mark.parametrize("row", ["sdxl"], indirect=True)
def test_compiled_blocks_train_as_plain_ones(family, folder):
    """Of a transformer: in the last test of this file."""
    check(family, folder, "wora", "none", checkpointing=True)


@pytest.mark.full
@pytest.mark.parametrize("row", ["sdxl", "flux"], indirect=True)
def test_buckets_compile_nothing_new_after_two(family, folder, monkeypatch):
    """Graphs are counted, which even this backend traces: half the time of the other."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile.func, backend="eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    model, config = loaded(family, folder), methods()["wora"].Config(method="wora")
    derived = Derived([attach(whole(model), name, config, 0) for name in match_layers(model, Targets())[0]])
    model.compile_blocks(checkpointing=False)
    graphs = []
    for size in ((32, 16), (48, 32), (16, 64), (32, 16), (64, 64)):  # the second makes lengths unknown numbers
        derived.begin()
        predicted(model, ["red apple"], size).square().sum().backward()
        derived.pull_back()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[2:] == [graphs[1]] * 3


@pytest.mark.full
@pytest.mark.parametrize("row", ["flux"], indirect=True)
def test_ranks_of_their_own_are_all_compiled(family, folder):
    """Each is a version; beyond torch's limit of them it would run the rest as it is."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = loaded(family, folder)
    names = [name for name in match_layers(model, Targets())[0] if "single_transformer_blocks" in name]
    for rank, name in enumerate(names, 1):
        attach(whole(model), name, methods()["lora"].Config(method="lora", rank=rank), 0)
    with torch._dynamo.config.patch(recompile_limit=1):
        model.compile_blocks(checkpointing=False)
        predicted(model, ["red apple"]).square().sum().backward()
    assert counters["stats"]["unique_graphs"] > 2 and not counters["recompile_limit"]


@pytest.mark.full
@pytest.mark.parametrize("row", ["flux"], indirect=True)
def test_packed_bases_and_rotations_compile_too(family, folder):
    """On blocks of one kind: that those of all kinds compile is shown above."""
    targets = Targets(exclude=("transformer.transformer_blocks.*",))
    check(family, folder, "doft", "nf4", checkpointing=False, targets=targets)
