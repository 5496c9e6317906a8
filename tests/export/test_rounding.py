"""Files for the 16 bits that ComfyUI computes in: what is lost is what rounding costs, or it is said."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from modules import families
from modules.adapters import methods
from modules.adapters.base import Adapted, adapted_layers, attach
from modules.export import rounding
from modules.export.export import export
from modules.files import opening, reading
from modules.files.facts import Facts
from modules.hosts import How, comfyui
from modules.hosts.comfyui import WAYS
from modules.preset.schema import Export
from tests.export import every
from tests.export.setup import Model, preset

NUMBERS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MAGNITUDES = ("DoRA, input axis", "DoRA, output axis", "WoRA, input axis", "WoRA, output axis", "DOFT in planes",
              "Pre-Diag", "SORA")


class Layers(nn.Module):
    """Rows and columns of the lengths that real models have, from 0.05 (the last convolution) over 1 to 4."""

    def __init__(self, number: torch.dtype):
        super().__init__()
        torch.manual_seed(0)
        self.square, self.wide, self.long = nn.Linear(96, 96), nn.Linear(192, 64), nn.Linear(64, 128)
        self.conv, self.conv_out = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)
        lengths = {"square": 1.0, "wide": 4.0, "long": 0.5, "conv": 1.0, "conv_out": 0.2}
        with torch.no_grad():
            for name, layer in self.named_children():
                weight = torch.randn(layer.weight.shape)
                weight *= lengths[name] / weight.flatten(1).norm(dim=1).mean()
                layer.weight.copy_(weight.to(number))


def moved(network: nn.Module, change: float) -> dict[str, Adapted]:
    """The adapters with random parameters whose change is this part of each weight."""
    draw, found = torch.Generator().manual_seed(1), dict(adapted_layers(network))
    with torch.no_grad():
        for adapted in found.values():
            W = adapted.layer.native(adapted.layer.dense())
            start = [(p, p.clone(), torch.randn(p.shape, generator=draw)) for p in adapted.adapter.parameters()]
            scale = 0.02
            for _ in range(6):
                for parameter, first, way in start:
                    parameter.copy_(first + scale * way)
                scale *= change / ((adapted.adapted_weight() - W).norm() / W.norm()).item()
    return found


def written(folder, label: str, number: str, change: float = 0.05, **options):
    """Model, layers, report, and the file's tensors by layer and suffix."""
    model = Model()
    model.networks = {"unet": Layers(NUMBERS[number]).requires_grad_(False)}
    method, choice = every.VARIANTS[label]
    for name in ("square", "wide", "long", "conv", "conv_out"):
        attach(nn.ModuleDict(model.networks), f"unet.{name}", methods()[method].Config(method=method, **choice), 0)
    layers = moved(nn.ModuleDict(model.networks), change)
    chosen = preset(method, choice, **{"computes_in": number, **options})
    report = export(model, layers, chosen, Facts(), folder / "test.safetensors")
    with safe_open(report.path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    by_layer = {name: {key.removeprefix("lora_" + name.replace(".", "_")): tensor for key, tensor in tensors.items()
                       if key.startswith("lora_" + name.replace(".", "_") + ".")} for name in layers}
    return model, layers, report, by_layer


def in_comfyui(W: Tensor, tensors: dict[str, Tensor], number: torch.dtype, update: torch.dtype) -> Tensor:
    """A pair with a magnitude, or a full difference, in 16 bits: each line is rounded. Written from the formula
    (`(W + D) m / (norm + unit)`), not from `modules/hosts`."""
    W = W.to(number)
    if ".diff" in tensors:
        return W + tensors[".diff"].to(number)
    up, down = tensors[".lora_up.weight"].to(update), tensors[".lora_down.weight"].to(update)
    D = (up.flatten(1) @ down.flatten(1)).reshape(W.shape) * (tensors[".alpha"].item() / len(down))
    V, m = W + D.to(number), tensors[".dora_scale"].to(update)
    rows = m.shape[0] == W.shape[0]
    flat = W.flatten(1) if rows else V.transpose(0, 1).flatten(1)
    norm = torch.linalg.vector_norm(flat.float(), dim=1).to(number)
    ratio = (m.flatten() / (norm + torch.finfo(number).eps)).to(number)
    return V * ratio.view(m.shape)


def parts(wanted: Tensor, found: Tensor, W: Tensor, number: torch.dtype) -> tuple[float, float]:
    """The error, and that of plain rounding, as parts of the change."""
    change, rounded = (wanted - W).norm(), wanted.to(number).float()
    return ((found.float() - wanted).norm() / change).item(), ((rounded - wanted).norm() / change).item()


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("label", MAGNITUDES)
def test_a_file_loses_no_more_than_twice_what_rounding_does(tmp_path, label, number):
    _, layers, report, tensors = written(tmp_path, label, number)
    for name, adapted in layers.items():
        W, wanted = adapted.layer.native(adapted.layer.dense()), adapted.adapted_weight()
        for update in {NUMBERS[number], torch.float32 if number == "float16" else NUMBERS[number]}:
            effect = in_comfyui(W, tensors[name], NUMBERS[number], update)
            error, rounding_alone = parts(wanted, effect, W, NUMBERS[number])
            assert error <= max(2 * rounding_alone, 0.1), (name, update, error, rounding_alone)
            assert error <= 2.1 * rounding_alone, (name, update, error, rounding_alone)
    assert report.rounded[number].beyond == 0


@pytest.mark.parametrize("number", NUMBERS)
def test_without_it_small_norms_suffer(tmp_path, number):
    """The same file written for float32: what it was before."""
    _, layers, report, tensors = written(tmp_path, "WoRA, input axis", number, computes_in="float32")
    errors = {}
    for name, adapted in layers.items():
        W, wanted = adapted.layer.native(adapted.layer.dense()), adapted.adapted_weight()
        effect = in_comfyui(W, tensors[name], NUMBERS[number], NUMBERS[number])
        errors[name] = parts(wanted, effect, W, NUMBERS[number])[0]
        exact = in_comfyui(W, tensors[name], torch.float32, torch.float32)
        assert parts(wanted, exact, W, torch.float32)[0] < 2e-3
    assert errors["unet.conv_out"] > 5 * min(errors.values())
    assert any("export.computes_in" in note and "comfyui_node" in note for note in report.notes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", ["WoRA, input axis", "DOFT in planes", "LoRA", "OFT in blocks"])
def test_the_printed_errors_are_the_measured_ones(tmp_path, label, way):
    _, layers, report, tensors = written(tmp_path, label, "float16")
    error = change = 0.0
    for name, adapted in layers.items():
        W, wanted = adapted.layer.native(adapted.layer.dense()), adapted.adapted_weight()
        found = comfyui.effect(W, tensors[name], 1.0, WAYS[way].of(How()))
        error += (found - wanted).double().square().sum().item()
        change += (wanted - W).double().square().sum().item()
    assert report.rounded[way].error == pytest.approx((error / change) ** 0.5, rel=1e-6)
    assert f"computed in {way}: {report.rounded[way].error:.2%}" in report.text()
    with safe_open(report.path, "pt") as file:
        told = json.loads(file.metadata()["gimbal.computed"])
    assert told[way]["error"] == pytest.approx(report.rounded[way].error, rel=1e-3)


def test_every_method_in_the_numbers_that_its_file_is_for(tmp_path):
    """No magnitude, no difference: two roundings. With one: at most twice one rounding."""
    for label in every.VARIANTS:
        if label in MAGNITUDES or every.VARIANTS[label][0] == "mora":
            continue
        _, _, report, _ = written(tmp_path, label, "float16")
        found = report.rounded["float16"]
        assert found.error <= 2 * found.rounding and not found.beyond, label


def test_a_magnitude_is_exact_where_float32_is_asked_for(tmp_path):
    for label in ("WoRA, input axis", "DoRA, output axis"):
        _, layers, report, tensors = written(tmp_path, label, "float16", dtype="float32", computes_in="auto")
        for name, adapted in layers.items():
            W, wanted = adapted.layer.native(adapted.layer.dense()), adapted.adapted_weight()
            assert (comfyui.effect(W, tensors[name], 1.0, How()) - wanted).norm() <= 1e-4 * (wanted - W).norm()
        assert report.rounded["float32"].error < 1e-5 and not report.fitted


def test_auto_is_what_the_family_is_computed_in():
    for name in families.names():
        number = families.load_class(name).computed_in
        assert rounding.resolved(Export(), number).computes_in == number
        assert rounding.resolved(Export(dtype="float32"), number).computes_in == "float32"
        assert rounding.resolved(Export(computes_in="float32"), number).computes_in == "float32"
    assert families.load_class("flux").computed_in == "bfloat16"
    assert families.load_class("sdxl").computed_in == "float16"


def test_an_option_that_does_nothing_is_refused():
    with pytest.raises(ValueError, match="computes_in float16 has no effect with host kohya"):
        Export(host="kohya", computes_in="float16")


def test_where_a_fit_helps_nothing_the_layer_is_written_in_full(tmp_path):
    """A small change of a layer in bfloat16 drowns beside a magnitude; the file grows by a quarter at most."""
    _, _, report, _ = written(tmp_path, "WoRA, input axis", "bfloat16", change=0.008)
    _, _, plain, _ = written(tmp_path, "WoRA, input axis", "bfloat16", change=0.008, computes_in="float32")
    full = [name for name, form in report.forms.items() if form == "full difference, for 16 bits"]
    assert all(report.sizes[name] > plain.sizes[name] for name in full) and not set(full) & set(report.fitted)
    assert sum(report.sizes.values()) <= 1.25 * sum(plain.sizes.values())
    found = report.rounded["bfloat16"]
    if not found.is_good:
        assert any(f"in bfloat16 {found.error:.1%}" in note for note in report.notes)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("label", ["WoRA, input axis", "DoRA, output axis"])
def test_our_own_file_is_read_as_what_was_trained(tmp_path, label, number):
    """A magnitude that is written for ComfyUI's sum of norm and rounding unit means the norm alone."""
    model, layers, report, _ = written(tmp_path, label, number)
    assert report.fitted
    wanted = {name: (adapted.layer.native(adapted.layer.dense()).clone(), adapted.adapted_weight().clone())
              for name, adapted in layers.items()}
    file = opening.read(report.path)
    for name, change in reading.changes(file, fresh(number)).items():
        W, meant = wanted[name]
        limit = 4 * torch.finfo(NUMBERS[number]).eps * W.norm()
        ignored = torch.finfo(NUMBERS[number]).eps * W.norm() / W.flatten(1).norm(dim=1).mean()
        assert (change.adapted() - meant).norm() <= min(limit, 0.75 * ignored + limit / 8), name


def fresh(number: str) -> Model:
    model = Model()
    model.networks = {"unet": Layers(NUMBERS[number]).requires_grad_(False)}
    return model


@pytest.mark.parametrize("label", ["WoRA, input axis", "LoRA"])
def test_of_a_layer_that_hardly_changed_no_part_of_the_change_is_given(tmp_path, label):
    """What rounding costs is many times its change: that says nothing of the file, and is told in words."""
    model = Model()
    model.networks = {"unet": Layers(torch.float16).requires_grad_(False)}
    method, choice = every.VARIANTS[label]
    for name in ("square", "wide", "long", "conv", "conv_out"):
        attach(nn.ModuleDict(model.networks), f"unet.{name}", methods()[method].Config(method=method, **choice), 0)
    layers = moved(nn.ModuleDict(model.networks), 0.05)
    still = layers["unet.wide"].adapter
    with torch.no_grad():
        for name, parameter in still.named_parameters():
            if "up" in name or "magnitude" in name:
                parameter.mul_(1e-9)
        W, trained = layers["unet.wide"].base.weight, layers["unet.wide"].adapted_weight()
        assert 0 < (trained - W).norm() < 1e-6 * W.norm()
    report = export(model, layers, preset(method, choice, computes_in="float16"), Facts(), tmp_path / "a.safetensors")
    for way, found in report.rounded.items():
        assert found.lost == 1 and found.layer != "unet.wide" and found.worst < 10, (way, found)
        assert "layers that have changed by less than the rounding error of their weights: 1" in report.text()
    assert report.errors["unet.wide"].change == 0.0
