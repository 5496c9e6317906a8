"""base.training_adapter on each family: the network with it is the one that has it in its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.adapters.layers import as_layer
from modules.preset.files import resolve
from modules.preset.schema import Targets
from modules.training import training_adapter
from modules.training.setup import match_layers, whole
from tests.families.using import loaded, predicted


@pytest.mark.short("flux", "zimage")
def test_the_network_with_it_is_the_one_with_it_inside(row, family, folder, tmp_path: Path):
    """In diffusers' naming, on all layers; and off it is the plain base, bit for bit."""
    model, file, draw = loaded(family, folder), tmp_path / "beside.safetensors", torch.Generator().manual_seed(0)
    names = [name for name in match_layers(model, Targets(layers="all"))[0] if name.startswith(f"{family.DENOISER}.")]
    tensors, changes = {}, {}
    for name in names:
        layer = as_layer(whole(model).get_submodule(name), name)
        up = torch.randn(layer.out_features, 2, generator=draw)
        down = torch.randn(2, layer.fan_in, generator=draw)
        up *= 0.2 * layer.dense().norm() / (up @ down).norm()
        key = model.export_key(name, "diffusers")
        tensors |= {f"{key}.lora_A.weight": layer.native(down), f"{key}.lora_B.weight": layer.native_up(up)}
        changes[name] = layer.native(up @ down)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    preset = resolve(f"lora_{row.family}", [("base.path", str(folder)), ("base.training_adapter", str(file))]).preset
    assert training_adapter.look(preset, family.skeleton(preset.base)) == []

    with torch.no_grad():
        plain = predicted(model, ["red apple"])
        active = training_adapter.add(training_adapter.read(preset, model), model)
        assert len(active.spots) == len(names)
        found = predicted(model, ["red apple"])
        with active.off():
            assert torch.equal(predicted(model, ["red apple"]), plain)
            for name, change in changes.items():
                whole(model).get_submodule(name).weight += change
            inside = predicted(model, ["red apple"])
    torch.testing.assert_close(found, inside, rtol=1e-3, atol=1e-4 * float(inside.abs().max()))
    assert (found - plain).norm() > 1e-2 * plain.norm()
