"""What the export says of programs that cannot hold all of a file, and that it says nothing where all can."""

import pytest
import torch
from safetensors.torch import load_file

from modules.export.export import export
from modules.files import opening, reading
from modules.files.facts import Facts
from modules.hosts import a1111, comfyui, forge, sd_scripts
from tests.export import every
from tests.export.setup import preset, trained

INPUT, OUTPUT = ("dora", {"rank": 2, "axis": "input"}), ("dora", {"rank": 2, "axis": "output"})
LORA = ("lora", {"rank": 2})


def written(tmp_path, family: str, variant, names: list[str], host: str = "kohya"):
    """The layers as trained, and the export's report."""
    model = every.fresh(every.FAMILIES[family])
    layers = trained(model, *variant, names)
    options = preset(*variant, host=host, dtype="float32")
    return layers, export(model, layers, options, Facts(), tmp_path / "file.safetensors")


ATTENTION = ["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
             "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"]


def test_layers_that_sd_scripts_never_adapts_are_named(tmp_path):
    outside = ["unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1"]
    _, report = written(tmp_path, "SD 1.5", LORA, [*ATTENTION, *outside])
    (note,) = (note for note in report.notes if note.startswith("sd-scripts"))
    assert "3 layers" in note and "targets.exclude" in note and all(name in note for name in outside)
    _, report = written(tmp_path, "SD 1.5", LORA, ATTENTION)
    assert not any("sd-scripts" in note for note in report.notes)


@pytest.mark.parametrize("variant, reason", [(INPUT, "ignores their magnitudes"), (OUTPUT, "low-rank pairs only")])
def test_what_sd_scripts_makes_of_magnitudes(tmp_path, variant, reason):
    _, report = written(tmp_path, "SDXL", variant, ATTENTION)
    (note,) = (note for note in report.notes if note.startswith("sd-scripts loses"))
    assert reason in note and "2 layers" in note and "export.form svd" in note and ATTENTION[0] in note


@pytest.mark.parametrize("variant", [INPUT, OUTPUT])
@pytest.mark.parametrize("family", ["SD 1.5", "SDXL"])
def test_magnitudes_are_right_in_a1111_and_forge(tmp_path, family, variant):
    """Both generations; LoRAs alone are right in sd-scripts."""
    layers, report = written(tmp_path, family, variant, ATTENTION)
    tensors = load_file(report.path)
    for name, adapted in layers.items():
        stem = next(key for key in tensors if key.endswith(("alpha", "diff")) and name[-4:] in key).rpartition(".")[0]
        given = {key.removeprefix(stem): tensor for key, tensor in tensors.items() if key.startswith(f"{stem}.")}
        W, wanted = adapted.layer.dense(), adapted.adapted_weight()
        readers = [a1111.effect(W, given, 1.0, how) for _, how in a1111.generations(comfyui.How())]
        for found in (*readers, forge.effect(W, given, 1.0, comfyui.How())):
            assert (found - wanted).norm() <= 1e-5 * (wanted - W).norm()
        if variant is INPUT:
            assert given[".alpha"].item() == len(given[".lora_down.weight"])
            assert not torch.allclose(sd_scripts.effect(W, given, 1.0, comfyui.How()), wanted, rtol=1e-3)
        else:
            assert set(given) == {".diff"}


def test_flux_has_output_magnitudes_for_forge(tmp_path):
    """A1111 has no FLUX. A file of ours is read back as what it means."""
    names = ["transformer.transformer_blocks.0.ff.net.2", "transformer.single_transformer_blocks.0.proj_out"]
    layers, report = written(tmp_path, "FLUX", OUTPUT, names)
    assert set(report.forms.values()) == {"LoRA with output magnitude"}
    assert any(note.startswith("A1111 loads nothing from this file: it does not support FLUX") for note in report.notes)
    file = opening.read(report.path)
    with torch.no_grad():
        for name, change in reading.changes(file, every.fresh(every.FAMILIES["FLUX"])).items():
            assert torch.allclose(change.adapted(), layers[name].adapted_weight(), atol=1e-5)


def test_the_loader_of_comfyui_that_ignores_magnitudes_is_named(tmp_path):
    for variant, is_said in ((INPUT, True), (OUTPUT, True), (LORA, False)):
        _, report = written(tmp_path, "SDXL", variant, ATTENTION, "comfyui")
        assert any("Load LoRA (Bypass)" in note for note in report.notes) == is_said
