"""Our own files for the ComfyUI node mean what was trained, for every script that reads files."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.adapters.base import attach, detach
from modules.files import forms, opening, reading
from modules.files.start_from import start
from modules.preset.schema import Export
from modules.tools import inspect_file
from tests.export.setup import label, preset, variants, write

BLOCKS = ("doft", {"rotation": {"kind": "blocks", "block_size": 4}})
PLAIN_BLOCKS = ("oft", {"rotation": {"kind": "blocks", "block_size": 4}})
OWN = {"host": "comfyui_node", "dtype": "float32"}
LINEAR = ["unet.wide", "unet.square"]


def read_back(folder, variant, layers=None, **options):
    """The file, what it changes, and the trained weights by layer."""
    model, trained, report, _ = write(folder, variant, layers, **(OWN | options))
    wanted = {name: adapted.adapted_weight().detach() for name, adapted in trained.items()}
    for network in model.networks.values():
        detach(network)
    file = opening.read(report.path)
    return file, model, reading.changes(file, model), wanted


def assert_changes(found, wanted):
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        change = found[name]
        result = change.layer.native(forms.applied(change.terms, change.layer, change.layer.dense()))
        assert (result - weight).abs().max() <= 1e-5 * weight.abs().max(), name


@pytest.mark.parametrize("fallback", [None, 2])
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_every_method_is_read_as_it_was_trained(tmp_path, variant, fallback):
    _, _, found, wanted = read_back(tmp_path, variant, node_fallback=fallback)
    assert_changes(found, wanted)


@pytest.mark.parametrize("options", [{}, {"node_spelling": "oftv2"}, {"host": "comfyui"}], ids=str)
def test_rotations_over_the_kernel_are_read_as_they_were_trained(tmp_path, options):
    rotation = {"kind": "blocks", "block_size": 4, "conv": "kernel", "map": "neumann_5"}
    kept = options != {"host": "comfyui"}
    variant = "doft" if kept else "oft", {"rotation": rotation}
    file, _, found, wanted = read_back(tmp_path, variant, ["unet.conv", "unet.wide"], **options)
    assert_changes(found, wanted)
    assert not inspect_file.inspect(file).damaged
    assert (found["unet.conv"].terms.rotation is not None) == kept, "a full difference elsewhere"


@pytest.mark.parametrize("fallback", [None, 2])
@pytest.mark.parametrize("variant", [PLAIN_BLOCKS, BLOCKS], ids=label)
def test_the_public_nodes_spelling_is_read_as_it_was_trained(tmp_path, variant, fallback):
    file, _, found, wanted = read_back(tmp_path, variant, LINEAR, node_spelling="oftv2", node_fallback=fallback)
    assert any(key.endswith(".oft_R.weight") for key in file.tensors)
    assert_changes(found, wanted)


@pytest.mark.parametrize("options", [{}, {"node_fallback": 2}, {"node_spelling": "oftv2"}], ids=str)
def test_inspecting_says_what_it_is_and_who_reads_it(tmp_path, options):
    file, *_ = read_back(tmp_path, BLOCKS, LINEAR, **options)
    found = inspect_file.inspect(file)
    text = found.text()
    what = "OFT with output magnitude (DOFT)" if "node_spelling" in options else (
        "rotation of the input with output magnitude for Gimbal's ComfyUI node")
    beside = ", and a LoRA for others" if "node_fallback" in options else ""
    assert f"{what}{beside}: 2 layers" in text and "block size 4" in text and "written by: Gimbal" in text
    assert not found.hosts["comfyui_node"].troubles and not found.unknown and not found.damaged
    for host in ("comfyui", "diffusers", "lycoris"):
        trouble = "\n".join(found.hosts[host].troubles)
        assert ("wrong by about" if beside else "not read") in trouble, (host, trouble)


@pytest.mark.once
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_the_node_is_said_to_read_all_of_every_method(tmp_path, variant):
    file, *_ = read_back(tmp_path, variant)
    assert not inspect_file.inspect(file).hosts["comfyui_node"].troubles


def test_lora_of_other_programs_counts_for_nothing(tmp_path):
    file, model, _, wanted = read_back(tmp_path, BLOCKS, LINEAR, node_fallback=2)
    for key, tensor in file.tensors.items():
        if "lora_up" in key:
            tensor.zero_()
    assert_changes(reading.changes(file, model), wanted)


def test_training_goes_on_from_it(tmp_path):
    _, model, found, wanted = read_back(tmp_path, BLOCKS, LINEAR)
    config = preset(*BLOCKS).adapter
    networks = torch.nn.ModuleDict(model.networks)
    layers = {name: attach(networks, name, config, 0) for name in wanted}
    assert start(found, layers) == []
    for name, weight in wanted.items():
        assert (layers[name].adapted_weight() - weight).abs().max() <= 1e-5 * weight.abs().max()


@pytest.mark.parametrize("host", ["comfyui", "kohya", "lycoris", "comfyui_node"])
def test_converted_for_everyone(tmp_path, host):
    """Each program computes what was trained from the new file."""
    from modules.export.export import write as write_file

    _, model, found, _ = read_back(tmp_path, BLOCKS, LINEAR)
    options = Export.model_validate({"host": host, "dtype": "float32"})
    report = write_file(tmp_path / "new.safetensors", model, found, options, lambda written: {})
    assert not report.approximate and max(error.weight for error in report.errors.values()) <= 1e-5


@pytest.mark.parametrize("change, words", [
    (lambda tensors: tensors.pop("lora_unet_wide.gimbal_ratio"), "2 tensors were written"),
    (lambda tensors: tensors["lora_unet_wide.gimbal_format"].fill_(9), "format 9"),
    (lambda tensors: tensors.update({"lora_unet_wide.gimbal_skew_in": torch.ones(6, 5)}), "triangle"),
    (lambda tensors: tensors.update({"lora_unet_wide.gimbal_skew_in": torch.ones(3, 6)}), "12 channels"),
    (lambda tensors: tensors.update({"lora_unet_wide.gimbal_ratio": torch.ones(5)}), "weight of 5"),
])
def test_damaged_files_are_sentences(tmp_path, change, words):
    file, model, *_ = read_back(tmp_path, BLOCKS, LINEAR)
    tensors = load_file(file.path)
    change(tensors)
    save_file(tensors, tmp_path / "damaged.safetensors", file.metadata)
    with pytest.raises(ValueError, match=f"unet.wide.*{words}"):
        reading.changes(opening.read(tmp_path / "damaged.safetensors"), model)
