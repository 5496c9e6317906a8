"""The demo preset of rotations in blocks, convolutions and all, exported and patched by ComfyUI's own code."""

import pytest
import torch

from modules.export.export import export
from modules.files import distance
from modules.files.facts import Facts
from modules.hosts.parts import installed_comfyui
from modules.preset.files import resolve
from modules.training.setup import load_and_attach
from tests.export.setup import randomise
from tests.hosts import programs

EXACT = 1e-5
SCALE = 0.05
"""Of the parameters: the change is some per cent of the weight, as that of a training."""


@pytest.mark.skipif(not programs.folders("comfyui"), reason="GIMBAL_HOSTS has no ComfyUI (see tests/hosts/programs.py)")
def test_every_layer_of_oft_demo_does_in_comfyui_what_was_trained(tmp_path):
    preset = resolve("oft_demo", [("export.dtype", "float32")]).preset
    model, layers = load_and_attach(preset, torch.device("cpu"))
    for number, adapted in enumerate(layers.values()):
        randomise(adapted, number, SCALE)
    assert sum(adapted.layer.kind == "conv" for adapted in layers.values()) > 10
    report = export(model, layers, preset, Facts(), tmp_path / "oft.safetensors")
    spelling = {name: model.export_key(name, "comfyui") for name in layers}
    with torch.no_grad():
        bases = {name: adapted.layer.native(adapted.layer.dense()).float() for name, adapted in layers.items()}
        meant = {name: adapted.adapted_weight() for name, adapted in layers.items()}
    folder, = programs.folders("comfyui")
    outcome = installed_comfyui.run(folder, report.path, {spelling[name]: W for name, W in bases.items()}, 1.0,
                                    torch.float32)
    assert not outcome.said
    assert outcome.weights.keys() == set(spelling.values())
    for name, W in bases.items():
        change = (meant[name] - W).norm() / W.norm()
        assert 0.005 < change < 0.5, (name, change)
        found = distance.compare(meant[name], outcome.weights[spelling[name]], W)
        assert found.change < EXACT, (name, report.forms[name], found)
