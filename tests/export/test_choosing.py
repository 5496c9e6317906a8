"""Which form a layer takes: exact wherever it is said to be, and as small as the program allows."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from modules import hosts
from modules.adapters.base import Terms
from modules.adapters.layers import as_layer
from modules.export import choosing, encodings
from modules.files import forms
from modules.hosts import How
from modules.preset.schema import Export

LAYERS = {
    "wide": lambda: nn.Linear(12, 6), "tall": lambda: nn.Linear(6, 24), "square": lambda: nn.Linear(6, 6),
    "single": lambda: nn.Linear(12, 1), "convolution": lambda: nn.Conv2d(6, 12, 3), "line": lambda: nn.Conv1d(6, 6, 2),
    "point": lambda: nn.Conv2d(6, 12, 1), "table": lambda: nn.Embedding(6, 12),
}
ROTATIONS = {"": 0, "input, 2": 2, "input, 3": 3, "output, 2": 2, "output, 3": 3, "input, not orthogonal": 2,
             "output, not orthogonal": 2}


def layer_of(name: str):
    torch.manual_seed(0)
    return as_layer(LAYERS[name]().double().requires_grad_(False), name)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def rotation(count: int, size: int) -> Tensor:
    Q = 0.3 * normal(count, size, size)
    eye = torch.eye(size, dtype=torch.float64)
    return torch.linalg.solve(eye - (Q - Q.mT), eye + Q - Q.mT)


def terms_of(layer, turned: str, pair: bool, difference: bool, axis: str, bias: bool = False) -> Terms | None:
    """Random terms; None if the rotation does not fit the layer."""
    terms, size = Terms(axis=axis, side=turned.partition(",")[0] or "input"), ROTATIONS[turned]
    if turned:
        width = layer.channels if terms.side == "input" else layer.out_features
        if width % size:
            return None
        terms.rotation = rotation(width // size, size)
        if "not" in turned:
            terms.rotation = terms.rotation + 0.05 * normal(*terms.rotation.shape)
    if pair:
        terms.up, terms.down = normal(layer.out_features, 2), normal(2, layer.fan_in)
    if difference:
        terms.difference = normal(layer.out_features, layer.fan_in)
    if axis:
        terms.magnitude = normal(layer.out_features if axis == "output" else layer.channels)
    terms.bias = normal(layer.out_features) if bias else None
    return terms


def planned(layer, terms: Terms, options: Export, how: How | None = None):
    """The layer as seen, how it is written (or None), its tensors, their form and the weight in the program."""
    view = forms.seen(layer, layer.dense(), terms)
    program, how = hosts.load(options.host), how or How(options.comfyui_norm)
    plan = choosing.plan(view, options, how)
    if plan is None:
        return None, None, "", None
    tensors, words = plan.carry_out(view, program.NAMES, "layer")
    how = How(how.norm, how.magnitudes or program.NAMES.magnitude in tensors)
    return plan, tensors, words, program.effect(layer.native(layer.dense()), tensors, 1.0, how)


@pytest.mark.full
@pytest.mark.once
@pytest.mark.parametrize("host", ["comfyui", "kohya", "diffusers", "lycoris"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_form_that_is_not_called_approximate_is_exact(name, host):
    layer = layer_of(name)
    every = list(itertools.product(ROTATIONS, (False, True), (False, True), ("", "input", "output")))
    some = every if name in ("wide", "table") else every[::5]
    for form, (turned, pair, difference, axis) in itertools.product(("auto", "compact", "svd", "full"), some):
        terms = terms_of(layer, turned, pair, difference, axis)
        if terms is None:
            continue
        for norm in ("original", "adapted") if host == "comfyui" and axis == "output" else ("original",):
            options = Export(host=host, form=form, comfyui_norm=norm)  # pyright: ignore
            _, tensors, words, found = planned(layer, terms, options)
            refused = tensors is None
            assert refused == is_refused(host, form, name, turned, difference, axis), (form, turned, axis)
            if found is not None and "approximate" not in words:
                wanted = layer.native(forms.applied(terms, layer, layer.dense()))
                assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max(), (form, turned, pair, axis, words)


def is_refused(host: str, form: str, name: str, turned: str, difference: bool, axis: str) -> bool:
    """diffusers knows pairs and output magnitudes only; embeddings are read by ComfyUI only."""
    if name == "table":
        return host != "comfyui"
    return host == "diffusers" and form == "auto" and (bool(turned) or axis == "input")


def test_forms_of_output_rotations():
    """ComfyUI skips stored rotations in 16 bits, so they are for export.form compact there. Forge has none."""
    layer = layer_of("convolution")
    expected = {
        ("comfyui", "auto", ""): "full difference", ("comfyui", "compact", ""): "stored rotation",
        ("comfyui", "auto", "output"): "full difference",
        ("comfyui", "compact", "output"): "stored butterfly with output magnitude",
        ("kohya", "auto", ""): "full difference", ("lycoris", "auto", ""): "stored rotation",
        ("lycoris", "auto", "output"): "stored rotation with output magnitude",
    }
    for (host, form, axis), words in expected.items():
        terms = terms_of(layer, "output, 2", False, False, axis)
        assert terms is not None
        assert planned(layer, terms, Export(host=host, form=form))[2] == words, (host, form, axis)  # pyright: ignore


def test_input_rotation_of_a_tall_layer_is_smaller_than_its_difference():
    layer = as_layer(nn.Linear(16, 64), "tall")
    terms = terms_of(layer, "input, 2", False, False, "")
    assert terms is not None
    view = forms.seen(layer, layer.dense(), terms)
    plan = choosing.plan(view, Export(), How())
    assert plan is not None
    names = hosts.load("comfyui").NAMES
    sizes = [encodings.size(encoding, view, names, "float16") for encoding in plan.encodings]
    assert sizes == sorted(sizes) and sizes[0] < 2 * 16 * 64
    assert plan.carry_out(view, names, "tall")[1] == "GLoRA"


@pytest.mark.parametrize("host", ["comfyui", "lycoris"])
@pytest.mark.parametrize("outputs", [16, 32])
def test_input_rotations_of_convolutions(host, outputs):
    """ComfyUI takes a square convolution's GLoRA for the older layout by the second dimension of b2."""
    layer = as_layer(nn.Conv2d(16, outputs, 3).double().requires_grad_(False), "convolution")
    terms = terms_of(layer, "input, 2", False, False, "")
    assert terms is not None
    _, tensors, words, found = planned(layer, terms, Export(host=host))  # pyright: ignore
    assert words == "GLoRA" and tensors is not None and found is not None
    b1, b2 = tensors[".b1.weight"], tensors[".b2.weight"]
    assert host != "comfyui" or b2.shape[1] != b1.shape[0], "the older layout"
    wanted = layer.native(forms.applied(terms, layer, layer.dense()))
    assert (found - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("axis", ["output", "input"])
def test_a_rotation_with_a_magnitude_is_a_full_difference(axis):
    """A magnitude beside GLoRA would be exact in float32, but not where ComfyUI computes in 16 bits."""
    layer = as_layer(nn.Linear(16, 64), "tall")
    terms = terms_of(layer, "input, 2", False, False, axis)
    assert terms is not None and planned(layer, terms, Export())[2] == "full difference"


def test_pairs_stay_pairs_where_a_difference_would_be_smaller():
    layer = as_layer(nn.Linear(6, 3), "small")
    terms = terms_of(layer, "", True, False, "")
    assert terms is not None and planned(layer, terms, Export())[2] == "LoRA"


@pytest.mark.parametrize("host", ["comfyui", "kohya", "lycoris", "diffusers"])
def test_bias(host):
    """ComfyUI reads it beside any kind, A1111 and LyCORIS beside a full difference, diffusers not at all."""
    layer = layer_of("wide")
    terms = terms_of(layer, "", True, False, "", bias=True)
    assert terms is not None
    _, tensors, words, _ = planned(layer, terms, Export(host=host))
    assert words == {"comfyui": "LoRA", "diffusers": ""}.get(host, "full difference")
    if tensors is None:
        sketch = encodings.on_meta(forms.seen(layer, layer.dense(), terms))
        with pytest.raises(ValueError, match="bias change.*Layers: wide"):
            choosing.plans({"wide": sketch}, Export(host=host), False)
    else:
        assert tensors[".diff_b"] is terms.bias


def test_a_layer_without_magnitude_in_peft_s_file_with_one_keeps_its_norm():
    layer = layer_of("convolution")
    terms = terms_of(layer, "", True, False, "")
    assert terms is not None
    for magnitudes in (False, True):
        _, tensors, words, found = planned(layer, terms, Export(host="diffusers"), How(magnitudes=magnitudes))
        assert tensors is not None and (".lora_magnitude_vector.weight" in tensors) == magnitudes
        assert words == "LoRA"
        assert torch.allclose(found, layer.native(forms.applied(terms, layer, layer.dense())))  # pyright: ignore


def test_approximations_of_low_rank_changes_are_exact():
    layer = as_layer(nn.Linear(30, 20).double(), "layer")
    low = Terms(difference=normal(20, 2) @ normal(2, 30))
    full = Terms(difference=normal(20, 30))
    for form in ("compact", "svd"):
        options = Export(form=form, rank=2)  # pyright: ignore
        _, tensors, words, found = planned(layer, low, options)
        assert words == "LoRA" and tensors is not None and tensors[".lora_down.weight"].shape == (2, 30)
        assert torch.allclose(found, layer.dense() + low.difference, atol=1e-6)  # pyright: ignore
        assert planned(layer, full, options)[2] == "LoRA, approximate"
        _, tensors, words, _ = planned(layer, full, Export(form=form))  # pyright: ignore
        assert words == "LoRA" and tensors is not None and tensors[".lora_down.weight"].shape == (20, 30)


def test_svd_has_no_magnitudes_and_keeps_small_pairs():
    layer = layer_of("tall")
    for axis in ("", "input", "output"):
        terms = terms_of(layer, "", True, False, axis)
        assert terms is not None
        _, tensors, words, _ = planned(layer, terms, Export(form="svd", rank=3))
        assert tensors is not None and set(tensors) == {".lora_up.weight", ".lora_down.weight", ".alpha"}
        assert words == ("LoRA, approximate" if axis else "LoRA")


@pytest.mark.parametrize("form", ["auto", "full"])
def test_rank_without_approximation_is_refused(form):
    with pytest.raises(ValueError, match="set form to compact or svd"):
        Export(form=form, rank=4)


def test_half_a_turn_has_no_stored_rotation():
    """Cayley's transform never turns by 180 degrees; what it cannot hold is written otherwise or refused."""
    layer, R = layer_of("wide"), -torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    with pytest.raises(ValueError, match="180 degrees.*export.form full"):
        planned(layer, Terms(rotation=R, side="output"), Export(form="compact"))
    assert planned(layer, Terms(rotation=R, side="output"), Export(host="kohya"))[2] == "full difference"


def test_the_choice_asks_the_program(monkeypatch):
    """No table: a program that stops reading magnitudes is noticed."""
    layer, comfyui = layer_of("tall"), hosts.load("comfyui")
    terms = terms_of(layer, "", True, False, "input")
    assert terms is not None and planned(layer, terms, Export())[2] == "LoRA with input magnitude"
    plain = comfyui.effect

    def without_magnitudes(W, tensors, strength, how):
        return plain(W, {suffix: t for suffix, t in tensors.items() if suffix != ".dora_scale"}, strength, how)

    choosing.is_exact.cache_clear()
    monkeypatch.setattr(comfyui, "effect", without_magnitudes)
    assert planned(layer, terms, Export())[2] == "full difference"
    choosing.is_exact.cache_clear()


def test_hosts_are_the_files_of_the_folder():
    assert {"comfyui", "kohya", "diffusers", "lycoris"} <= set(hosts.names())
    asked = {name for name, value in vars(hosts.Host).items() if callable(value) and not name.startswith("_")}
    for name in {*hosts.names(), *hosts.programs()}:
        assert callable(hosts.load(name).effect)
        assert {*asked, *hosts.Host.__annotations__} <= vars(hosts.load(name)).keys(), name
    with pytest.raises(ValueError, match="export.host webui.*comfyui"):
        hosts.load("webui")
