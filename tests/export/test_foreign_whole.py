"""Files of four trainers through every script: inspected, converted, merged into a base, and right each time."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from modules.families import load_class
from modules.preset.schema import Base
from modules.tools.apply import apply_file
from tests import tiny_sd15
from tests.export import foreign
from tests.export.test_foreign_files import BLOCK, run, save

LAYERS = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.2")


def by_onetrainer(layer) -> foreign.Case:
    return foreign.of_onetrainer(layer, 4, True)


def by_lycoris(layer) -> foreign.Case:
    return foreign.of_lycoris("lokr", layer, {"lora_dim": 2, "alpha": 2, "factor": 2, "weight_decompose": True})


def by_peft(layer) -> foreign.Case:
    config = LoraConfig(r=3, lora_alpha=3, use_dora=True, target_modules=["layer"])
    return foreign.of_peft(config, layer)


TRAINERS = {
    "OneTrainer OFT": (by_onetrainer, "lora_unet_", {"ot_branch": "master"}, "OFT"),
    "kohya LoRA": (foreign.lora_of_kohya, "lora_unet_", {"ss_network_module": "networks.lora"}, "LoRA"),
    "LyCORIS LoKr-DoRA": (by_lycoris, "lycoris_", {"ss_network_module": "lycoris.kohya"}, "LoKr"),
    "peft DoRA": (by_peft, "unet.", {}, "magnitude"),
}
"""How a layer is made, what names begin with, the file's metadata, and a word that inspecting says."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_sd15.make_folder(tmp_path_factory.mktemp("sd15"))


def unet(path: Path):
    return load_class("sd15").load(Base(path=str(path)), torch.device("cpu"), torch.float32)


def assert_weights(network, cases: dict[str, foreign.Case]) -> None:
    for name, case in cases.items():
        found = network.get_submodule(name).weight
        assert (found - case.weight).abs().max() <= 1e-5 * case.weight.abs().max(), name
        assert (case.weight - case.base.weight).norm() > 0.01 * case.base.weight.norm(), "the file does something"


@pytest.mark.short("OneTrainer OFT", "LyCORIS LoKr-DoRA")
@pytest.mark.parametrize("trainer", TRAINERS)
def test_inspected_converted_and_merged(base, tmp_path, monkeypatch, capsys, trainer):
    make, start, metadata, word = TRAINERS[trainer]
    network = unet(base).networks["unet"]
    cases = {name: make(copy.deepcopy(network.get_submodule(name))) for name in LAYERS}
    spelled = {start + (name if start.endswith(".") else name.replace(".", "_")): c for name, c in cases.items()}
    path = save(tmp_path / "foreign.safetensors", spelled, metadata)

    code, text, complaint = run(monkeypatch, capsys, "inspect_adapter.py", path)
    assert code == 0 and word in text and "3 layers" in text, text + complaint

    out = tmp_path / "converted.safetensors"
    words = ("--base", base, "--host", "comfyui", "--dtype", "fp32", "--out", out)
    code, _, complaint = run(monkeypatch, capsys, "convert.py", path, *words)
    assert code == 0, complaint
    converted = unet(base)
    apply_file(converted, out, "comfyui")
    assert_weights(converted.networks["unet"], cases)

    merged = tmp_path / "merged"
    code, _, complaint = run(monkeypatch, capsys, "merge.py", base, "--adapter", path, "--out", merged)
    assert code == 0, complaint
    assert_weights(unet(merged).networks["unet"], cases)
