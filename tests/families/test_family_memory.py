"""What every family does to need less memory: packed weights, blocks in main memory, encoders that come and go."""

import pytest
import torch
from torch import nn

from modules.preset.schema import Base, Targets
from modules.quant import PackedLinear, is_packed
from tests.families.using import CPU, adapters_on, loaded, predicted


@pytest.mark.full
@pytest.mark.once
@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_quantised_base_still_predicts(row, family, folder, kind):
    packed = loaded(family, folder, quantization=kind)
    assert is_packed(next(iter(packed.networks.values())).get_submodule(row.packed))
    assert torch.isfinite(predicted(packed, ["red"])).all()


@pytest.mark.full
@pytest.mark.once
@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_blocks_kept_in_main_memory_change_nothing(family, folder, kind):
    plain = loaded(family, folder, quantization=kind)
    count = min(2, len(plain.blocks()) - 1)
    kept = loaded(family, folder, quantization=kind, offload_blocks=count)
    blocks = kept.blocks()
    inside = [layer for block in blocks[-count:] for layer in block.modules() if isinstance(layer, nn.Linear)]
    assert count and inside and all(layer.in_memory for layer in inside)
    assert not any(is_packed(layer) and layer.in_memory for block in blocks[:-count] for layer in block.modules())
    gradients = []
    for model in (plain, kept):
        layers = adapters_on(model, Targets(layers="attention"))
        for layer in layers:
            for parameter in layer.adapter.parameters():
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        predicted(model, ["red apple"]).square().sum().backward()
        gradients.append([p.grad for layer in layers for p in layer.adapter.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.short("flux", "zimage")
def test_blocks_for_main_memory_go_there_before_the_next_one_is_packed(family, folder, monkeypatch):
    """So that never all of them have to fit on the device."""
    waiting, most = set(), 0
    pack, keep = PackedLinear.__init__, PackedLinear.keep_in_memory

    def packed(layer, *given):
        nonlocal most
        pack(layer, *given)
        waiting.add(id(layer))
        most = max(most, len(waiting))

    def kept(layer):
        waiting.discard(id(layer))
        keep(layer)

    monkeypatch.setattr(PackedLinear, "__init__", packed)
    monkeypatch.setattr(PackedLinear, "keep_in_memory", kept)
    base = Base(path=str(folder), quantization="fp8")
    model = family.load(base, CPU, torch.float32)
    blocks, linears = model.blocks(), [m for m in model.networks[model.DENOISER].modules() if isinstance(m, nn.Linear)]
    inside = [sum(isinstance(m, nn.Linear) for m in block.modules()) for block in blocks]
    model.place(base.model_copy(update={"offload_blocks": len(blocks)}), texts=False)
    assert most <= max(*inside, len(linears) - sum(inside)) < len(linears)


@pytest.mark.short("sd1", "zimage")
def test_half_precision(family, folder):
    model = family.load(Base(path=str(folder)), CPU, torch.bfloat16)
    result = predicted(model, ["red"])
    assert result.dtype == torch.bfloat16 and torch.isfinite(result).all()
    assert model.pipeline.vae.dtype == torch.float32


@pytest.mark.short("sd1", "zimage")
def test_the_pipeline_computes_where_the_model_does(family, folder):
    """Also while its encoders are elsewhere: the device "meta" stands for a GPU."""
    model = family.load(Base(path=str(folder)), torch.device("meta"), torch.float32)
    model.place(Base(path=str(folder)), texts=False)
    assert next(model.networks[model.DENOISER].parameters()).is_meta
    assert model.pipeline.device.type == "cpu" or model.pipeline.vae.device.type == "cpu"
    assert model.pipeline._execution_device.type == "meta"
