"""Files written from terms that no method of ours has: other sides, biases, and tensors given by another file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from modules import hosts
from modules.adapters.base import Terms
from modules.adapters.layers import as_layer
from modules.export import read_back
from modules.export.export import Written, write
from modules.export.report import Report
from modules.files import distance, forms
from modules.files.change import Change
from modules.hosts import How
from modules.preset.schema import Export
from tests.export.setup import Model

LAYERS = ("wide", "square", "conv", "point")


def layer_of(model: Model, name: str):
    return as_layer(model.networks["unet"].get_submodule(name), f"unet.{name}")


def rotation(count: int, size: int) -> Tensor:
    Q = 0.2 * torch.randn(count, size, size)
    eye = torch.eye(size)
    return torch.linalg.solve(eye - (Q - Q.mT), eye + Q - Q.mT)


def written(folder: Path, changes: dict[str, Change], model: Model, **options) -> tuple[Report, dict[str, Tensor]]:
    seen = []

    def about(found: Written) -> dict[str, str]:
        seen.append(found)
        return {"ss_network_dim": str(found.form.dim), "own": "words"}

    report = write(folder / "test.safetensors", model, changes, Export(**options), about)
    assert len(seen) == 1 and seen[0].report is report
    return report, load_file(report.path)


def assert_does_what_is_meant(changes, report, host, tolerance=1e-5, norm="original"):
    """Read independently, and compared with the terms in float64."""
    program = hosts.load(host)
    spelling = {name: Model().export_key(name, host) for name in changes}
    found = read_back.read(report.path, spelling, program.NAMES)
    how = How(norm, any(program.NAMES.magnitude in tensors for tensors in found.values()))
    for name, change in changes.items():
        W = change.layer.dense().double()
        wanted = change.layer.native(forms.applied(change.terms, change.layer, W))
        effect = program.effect(change.layer.native(W), found[name], 1.0, how)
        assert (effect - wanted).abs().max() <= tolerance * wanted.abs().max(), name
        bias = program.bias_change(found[name], 1.0)
        assert (bias is None) == (change.terms.bias is None)
        assert bias is None or torch.allclose(bias, change.terms.bias, atol=tolerance)


@pytest.mark.parametrize("host", ["comfyui", "kohya", "lycoris"])
@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("form", ["auto", "compact"])
def test_output_rotations(tmp_path, host, magnitude, form):
    torch.manual_seed(0)
    model, changes = Model(), {}
    for name in LAYERS:
        layer = layer_of(model, name)
        terms = Terms(rotation=rotation(layer.out_features // 2, 2), side="output")
        if magnitude:
            terms.magnitude, terms.axis = torch.rand(layer.out_features) + 0.5, "output"
        changes[f"unet.{name}"] = Change(layer, terms)
    report, tensors = written(tmp_path, changes, model, host=host, form=form, dtype="float32")
    assert_does_what_is_meant(changes, report, host)
    stored = any(".oft_blocks" in key for key in tensors)
    assert stored == (host == "lycoris" or (host == "comfyui" and form == "compact")), "Forge reads none of kohya's"
    assert ("skips stored rotations" in report.text()) == (stored and host == "comfyui")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize("host, form", [
    ("comfyui", "LoRA"), ("kohya", "full difference"), ("lycoris", "full difference"),
])
def test_bias(tmp_path, host, form):
    model = Model()
    changes = {}
    for name in ("wide", "conv"):
        layer = layer_of(model, name)
        terms = Terms(up=torch.randn(layer.out_features, 2), down=torch.randn(2, layer.fan_in),
                      bias=torch.randn(layer.out_features))
        changes[f"unet.{name}"] = Change(layer, terms)
    report, _ = written(tmp_path, changes, model, host=host, dtype="float32")
    assert set(report.forms.values()) == {form}
    assert_does_what_is_meant(changes, report, host)
    changes["unet.wide"].terms.bias = None
    report, tensors = written(tmp_path, changes, model, host=host)
    assert report.forms["unet.wide"] == "LoRA" and "lora_unet_wide.diff_b" not in tensors


def test_a_bias_alone(tmp_path):
    model = Model()
    layer = layer_of(model, "wide")
    changes = {"unet.wide": Change(layer, Terms(bias=torch.ones(16)))}
    report, tensors = written(tmp_path, changes, model, dtype="float32")
    assert_does_what_is_meant(changes, report, "comfyui")
    assert torch.equal(tensors["lora_unet_wide.diff_b"], torch.ones(16))


def hadamard(layer, alpha: float) -> Change:
    a1, b1, a2, b2 = (0.2 * torch.randn(*shape) for shape in 2 * ((layer.out_features, 2), (2, layer.fan_in)))
    given = {".hada_w1_a": a1, ".hada_w1_b": b1, ".hada_w2_a": a2, ".hada_w2_b": b2, ".alpha": torch.tensor(alpha)}
    return Change(layer, Terms(difference=alpha / 2 * (a1 @ b1) * (a2 @ b2)), given)


def test_given_tensors_stay_where_the_program_reads_them_exactly(tmp_path):
    """LyCORIS' merge counts alpha / rank twice, so there only a file without such a scale stays as it is."""
    model = Model()
    expected = {("comfyui", 1.0): "LoHa, as it was", ("lycoris", 2.0): "LoHa, as it was",
                ("lycoris", 1.0): "full difference", ("diffusers", 2.0): "LoRA of full rank"}
    for (host, alpha), form in expected.items():
        changes = {f"unet.{name}": hadamard(layer_of(model, name), alpha) for name in ("wide", "conv")}
        report, tensors = written(tmp_path, changes, model, host=host, dtype="float32")
        assert set(report.forms.values()) == {form}
        assert_does_what_is_meant(changes, report, host)
        if "as it was" in form:
            given = changes["unet.wide"].given or {}
            assert all(torch.equal(tensors[f"lora_unet_wide{suffix}"], given[suffix]) for suffix in given)


@pytest.mark.parametrize("form", ["full", "svd"])
def test_given_tensors_are_not_kept_where_another_form_is_asked_for(tmp_path, form):
    model = Model()
    changes = {"unet.wide": hadamard(layer_of(model, "wide"), 2.0)}
    report, _ = written(tmp_path, changes, model, form=form)
    assert set(report.forms.values()) == {{"full": "full difference", "svd": "LoRA"}[form]}
    assert max(error.weight for error in report.errors.values()) <= distance.TOLERANCE["float16"]


def test_given_rotations_are_not_kept_for_comfyui_s_16_bits(tmp_path):
    model = Model()
    layer, R = layer_of(model, "wide"), rotation(8, 2)
    Q = torch.linalg.solve(R + torch.eye(2), R - torch.eye(2))
    change = Change(layer, Terms(rotation=R, side="output"), {".oft_blocks": torch.triu(-Q, 1)})
    for form, words in {"auto": "full difference", "compact": "rotation, as it was"}.items():
        report, _ = written(tmp_path, {"unet.wide": change}, model, form=form, dtype="float32")
        assert report.forms["unet.wide"] == words


def test_given_pairs_of_peft_in_a_file_with_magnitudes(tmp_path):
    """A layer that is kept has no magnitude of its own; beside one that has, it is written again."""
    model, changes = Model(), {}
    for name, magnitude in (("wide", False), ("square", True)):
        layer = layer_of(model, name)
        up, down = torch.randn(16, 2), torch.randn(2, layer.fan_in)
        terms, given = Terms(up=up, down=down), {".lora_A.weight": down, ".lora_B.weight": up}
        if magnitude:
            terms.magnitude, terms.axis = torch.rand(16) + 0.5, "output"
            given = None
        changes[f"unet.{name}"] = Change(layer, terms, given)
    report, tensors = written(tmp_path, changes, model, host="diffusers", dtype="float32")
    assert "unet.wide.lora_magnitude_vector.weight" in tensors
    assert_does_what_is_meant(changes, report, "diffusers")
    del changes["unet.square"]
    report, tensors = written(tmp_path, changes, model, host="diffusers", dtype="float32")
    assert report.forms == {"unet.wide": "LoRA, as it was"} and len(tensors) == 2


def test_metadata_of_forms(tmp_path):
    model = Model()
    changes = {"unet.wide": hadamard(layer_of(model, "wide"), 2.0)}
    report, _ = written(tmp_path, changes, model)
    with safe_open(report.path, "pt") as file:
        found = file.metadata()
    assert json.loads(found["gimbal.form"]) == {"unet.wide": "LoHa, as it was"}
    assert json.loads(found["gimbal.errors"])["unet.wide"] < 1e-3
    assert found["own"] == "words" and found["modelspec.architecture"] == "test/lora" and "sshs_model_hash" in found
    assert found["ss_network_dim"] == "0"


def test_wrong_terms_are_noticed(tmp_path):
    """The weight that a method itself defines is what counts, where there is one."""
    model = Model()
    layer = layer_of(model, "wide")
    terms = Terms(up=torch.randn(16, 2), down=torch.randn(2, 24))
    change = Change(layer, terms, weight=lambda: layer.dense() + 1)
    with pytest.raises(ValueError, match="does not match the trained weights.*unet.wide.*rejected"):
        written(tmp_path, {"unet.wide": change}, model)
