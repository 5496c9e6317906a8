"""The user's own ComfyUI as the judge of a file, played by a stand-in of a few lines."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.hosts.parts import installed_comfyui
from tests.export.setup import write

ROOT = Path(__file__).parents[2]
LAYERS = ["unet.wide", "unet.square", "unet.conv", "unet.point"]
BLOCKS = ("doft", {"rotation": {"kind": "blocks", "block_size": 4}})


def spelled(name: str) -> str:
    return "lora_" + name.replace(".", "_")


STAND_IN = {
    "comfyui_version.py": '__version__ = "9.9"\n',
    "comfy/__init__.py": "",
    "comfy/cli_args.py": "class args:\n    cpu = False\n",
    "comfy/utils.py": "from safetensors.torch import load_file\n\ndef load_torch_file(path, safe_load):\n"
                      "    return load_file(path)\n",
    "comfy/lora_convert.py": "def convert_lora(lora):\n    return lora\n",
    "comfy/weight_adapter.py": "class WeightAdapterBase:\n    pass\n\nadapters = []\n",
    "comfy/lora.py": """
import logging
from comfy import cli_args, weight_adapter
assert cli_args.args.cpu

def load_lora(lora, to_load):
    patches, loaded = {}, set()
    for x, place in to_load.items():
        for adapter in weight_adapter.adapters:
            found = adapter.load(x, lora, None, None, loaded)
            if found is not None:
                patches[place] = found
                loaded.update(found.loaded_keys)
    for key in lora:
        if key not in loaded:
            logging.warning("lora key not loaded: %s", key)
    return patches

def calculate_weight(patches, weight, key, intermediate_dtype):
    (strength, patch, model_strength, offset, function), = patches
    return patch.calculate_weight(weight, key, strength, model_strength, offset, lambda a: a, intermediate_dtype)
""",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder that is as much ComfyUI as is needed."""
    for name, text in STAND_IN.items():
        path = tmp_path / "comfyui" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "comfyui"


@pytest.mark.full
def test_installed_comfyui(tmp_path, folder):
    _, layers, report, tensors = write(tmp_path, BLOCKS, LAYERS, host="comfyui_node", dtype="float32")
    weights = {spelled(name): adapted.layer.native(adapted.layer.dense()) for name, adapted in layers.items()}
    without = installed_comfyui.run(folder, report.path, weights, 0.5, torch.float32)
    assert without.version == "9.9" and not without.weights
    assert len([line for line in without.said if "not loaded" in line]) == len(load_file(report.path))

    place = folder / "custom_nodes/gimbal"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text((ROOT / "comfyui_node/__init__.py").read_text())
    for dtype, rounding in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7)):
        found = installed_comfyui.effects(folder, report.path, weights, 0.5, dtype)
        for name, adapted in layers.items():
            if f"{spelled(name)}.diff" not in tensors:
                W = adapted.layer.native(adapted.layer.dense())
                wanted = W + 0.5 * (adapted.adapted_weight() - W)
                bound = rounding * wanted.abs().max()
                assert found[spelled(name)].dtype == dtype
                assert (found[spelled(name)].float() - wanted).abs().max() <= bound


@pytest.mark.full
def test_comfyui_in_a_python_without_packages_for_pictures(tmp_path, folder):
    """It imports them on the way to its loader, as 0.28.0 does (run in a Python that lacks them)."""
    (folder / "comfy/utils.py").write_text(
        "import torchvision, comfy_aimdo.host_buffer, comfy_kitchen.registry as registry\n"
        "from comfy_kitchen.tensor import QuantizedTensor\n\nclass Layout(QuantizedTensor):\n    pass\n\n"
        "layouts = [registry.known(Layout), *comfy_aimdo.host_buffer.all()]\n\n"
        "@registry.register\ndef ours():\n    return 3\n\nassert ours() == 3\n" + STAND_IN["comfy/utils.py"])
    save_file({"x.diff": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    found = installed_comfyui.run(folder, tmp_path / "a.safetensors", {"x": torch.ones(2, 2)}, 1.0, torch.float32)
    assert found.version == "9.9" and found.said == ["lora key not loaded: x.diff"]


def test_installed_comfyui_says_what_is_wrong(tmp_path, folder):
    file, weights = tmp_path / "none.safetensors", {"x": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="is not a ComfyUI folder.*main.py"):
        installed_comfyui.effects(tmp_path, file, weights, 1.0, torch.float32)
    with pytest.raises(ValueError, match="cannot be started.*Python that runs ComfyUI"):
        installed_comfyui.effects(folder, file, weights, 1.0, torch.float32, tmp_path / "python")
    (folder / "comfy/lora.py").write_text("import a_module_that_is_missing\n")
    with pytest.raises(ValueError, match="No module named 'a_module_that_is_missing'; give the Python"):
        installed_comfyui.effects(folder, file, weights, 1.0, torch.float32)
