"""The training adapter: it belongs to the base while that is trained, and to nothing else."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from modules.adapters.base import detach
from modules.adapters.layers import Layer, as_layer
from modules.export.export import export
from modules.files import opening, reading
from modules.files.facts import Facts
from modules.preset.files import resolve
from modules.training import fingerprints, setup, stored, training_adapter
from modules.training.state import load_state, states
from modules.training.training_adapter import Beside
from tests.adapters.cases import FIRST, adapter_class, apply, close, randomise
from tests.training.distilled import Given, plain_model
from tests.training.runs import OPTIONS, Place, ask, equal
from tests.training.test_fingerprints import change_a_weight

pytestmark = pytest.mark.usefixtures("forget_accelerate")

PLAIN = {**OPTIONS["data"], "caption_dropout": 0.0}
LORA = {"method": "lora", "rank": 2}
SAMPLED = {"steps": 2, "prompts": ["red apple"], "every": 0}


# -- the exported file ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubles(stage: Path, tmp_path_factory) -> tuple[Any, Any]:
    """The base in float64, twice: one takes adapters."""
    models = [plain_model(Place(stage, tmp_path_factory.mktemp("model"))) for _ in range(2)]
    for model in models:
        model.networks["unet"].double()
    return models[0], models[1]


@pytest.fixture
def untouched(doubles) -> Iterator[tuple[Any, Any]]:
    """The same, without adapters before and after the test."""
    yield doubles
    network = setup.whole(doubles[0])
    for name, module in list(network.named_modules()):
        if isinstance(module, Beside):
            setattr(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module.inner)
    detach(network)


def layer_input(layer: Layer, seed: int) -> Tensor:
    shape = (5, layer.channels) if layer.kind == "linear" else (2, layer.channels, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.full
@pytest.mark.short("lora", "wora", "doft", "lokr")
@pytest.mark.parametrize("method", FIRST)
def test_the_file_on_the_plain_base_is_the_trained_layer_without_it(place, given: Given, untouched, method, tmp_path):
    """For every method, on linear layers and convolutions; and it is in no weight that the methods see."""
    model, plain = untouched
    targets = {"layers": "attention-mlp-conv" if "conv" in adapter_class(method).kinds else "attention-mlp"}
    sections = {"adapter": {"method": method, **FIRST[method]}, "targets": targets, "export": {"dtype": "float32"}}
    preset = resolve(place.command("run", **sections)[1], [given.option]).preset
    beside = training_adapter.read(preset, model)
    adapted, problems = setup.attach_all(model, preset)
    assert not problems and adapted.keys() < beside.keys()
    for number, layer in enumerate(adapted.values()):
        randomise(layer.adapter, number, 0.1)
    active, network = training_adapter.add(beside, model), setup.whole(model)
    inputs = {name: layer_input(one.layer, number) for number, (name, one) in enumerate(adapted.items())}
    with torch.no_grad():
        trained = {name: network.get_submodule(name)(x) for name, x in inputs.items()}
    with active.off():
        assert not any(isinstance(module, Beside) for module in network.modules())
        export(model, adapted, preset, Facts(), tmp_path / "run.safetensors")
    file = reading.changes(opening.read(tmp_path / "run.safetensors"), plain)
    assert file.keys() == adapted.keys()
    for name, x in inputs.items():
        layer = as_layer(setup.whole(plain).get_submodule(name), name)
        assert file[name].terms.bias is None
        exported = apply(layer.base, file[name].adapted().double(), x)
        own = apply(without_bias(layer.base), layer.native(given.changes[name]), x)
        assert own.norm() > 0.1 * exported.norm()
        close(trained[name] - own, exported, 1e-6, name)


def without_bias(layer: nn.Module) -> nn.Module:
    bare = copy.copy(layer)
    bare._parameters = {**layer._parameters, "bias": None}
    return bare


# -- whole runs -------------------------------------------------------------------------------------------------------


def losses(place: Place, name: str, kind: str) -> list[float]:
    return [event["loss"] for event in place.events(name, kind)]


def pictures(place: Place, name: str) -> dict[int, numpy.ndarray]:
    """The sample pictures of a run, by step."""
    found = place.events(name, "sample")
    return {one["step"]: numpy.asarray(Image.open(place.runs / name / one["path"]), int) for one in found}


def read_header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.full
@pytest.mark.parametrize("more", [(), ("--training.accumulation", "2", "--training.gradient_checkpointing", "true")])
def test_a_run_trains_what_a_base_with_it_inside_does_and_shows_the_plain_base(place, given: Given, more):
    """Losses, validation and adapter are those of a base that has it in its weights; the pictures are not."""
    sections: dict[str, Any] = {"adapter": LORA, "samples": SAMPLED, "data": PLAIN}
    inside = Place(given.merged, place.runs)
    assert place.train("beside", *given.typed, *more, "--samples.enabled", "true", **sections) == 0
    assert inside.train("inside", *more, "--samples.enabled", "true", **sections) == 0
    assert place.train("plain", "--training.steps", "1", "--samples.enabled", "true", **sections) == 0
    for kind in ("step", "validation"):
        assert losses(place, "beside", kind) == pytest.approx(losses(place, "inside", kind), rel=1e-5)
        assert losses(place, "beside", kind) != pytest.approx(losses(place, "plain", kind), rel=2e-3)
    for key, tensor in place.adapter("inside").items():
        torch.testing.assert_close(place.adapter("beside")[key], tensor, rtol=1e-2, atol=1e-3)

    files = [place.runs / name / f"{name}.safetensors" for name in ("beside", "plain")]
    hashes = [read_header(file)["gimbal.base_hash"] for file in files]
    assert hashes[0] == hashes[1], "the base of the file is the plain one"

    shown = pictures(place, "beside")
    assert numpy.array_equal(shown[0], pictures(place, "plain")[0])
    assert numpy.abs(shown[0] - pictures(place, "inside")[0]).max() > 20
    preset = resolve(str(place.runs / "beside" / "preset.json")).preset
    with stored.loaded(place.runs / "beside" / "adapter.safetensors", preset, torch.device("cpu")) as (model, _, _):
        wanted = preset.samples
        (again,) = model.sample(["red apple"], wanted.negative, 16, 16, wanted.steps, wanted.guidance, wanted.seed)
    assert numpy.abs(shown[4] - numpy.asarray(again, int)).max() <= 1
    assert numpy.abs(shown[4] - shown[0]).max() > 0


@pytest.mark.full
def test_a_resumed_run_is_the_same_bit_for_bit(place, given: Given, monkeypatch):
    assert place.train("whole", *given.typed) == 0
    with monkeypatch.context() as patch:
        ask(patch, place, "held", "stop", at=2)
        assert place.train("held", *given.typed) == 130
    made = fingerprints.of_text(load_state(states(place.runs / "held")[-1]).texts)
    assert made is not None and list(made["training_adapter"]) == [given.file.name]
    assert place.train("held", *given.typed) == 0
    assert equal(place.adapter("held"), place.adapter("whole"))
    files = [load_file(place.runs / name / f"{name}.safetensors") for name in ("held", "whole")]
    assert equal(*files)


@pytest.mark.full
def test_another_file_ends_a_resumed_run_before_it_begins(place, given: Given, monkeypatch, capsys):
    """The same name with other values; a file that is gone; another name."""
    own = place.runs / "own.safetensors"
    shutil.copy(given.file, own)
    with monkeypatch.context() as patch:
        ask(patch, place, "held", "stop", at=2)
        assert place.train("held", "--base.training_adapter", str(own)) == 130
    own.rename(place.runs / "moved.safetensors")
    capsys.readouterr()
    assert place.train("held", "--base.training_adapter", str(own)) == 2
    assert "base.training_adapter: " in (said := capsys.readouterr().err) and "Traceback" not in said
    assert place.train("held") == 2
    assert "base.training_adapter" in capsys.readouterr().err
    shutil.copy(place.runs / "moved.safetensors", own)
    change_a_weight(own)
    assert place.train("held", "--base.training_adapter", str(own)) == 2
    said = capsys.readouterr().err
    assert "base.training_adapter" in said and "changed: own.safetensors" in said and "--saving.resume_changed" in said
    shutil.copy(given.file, own)
    assert place.train("held", "--base.training_adapter", str(own)) == 0
