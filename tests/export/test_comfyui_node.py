"""Files for our ComfyUI node: in a stand-in for ComfyUI's loader, with the node itself, and in `effect`."""

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from modules import hosts
from modules.files import keys
from modules.files.kinds import gimbal_node
from modules.hosts import How, comfyui, comfyui_node
from tests.export.setup import Model, label, variants, write

ROOT = Path(__file__).parents[2]
LAYERS = ["unet.wide", "unet.square", "unet.conv", "unet.point", "unet.single"]
BLOCKS = ("doft", {"rotation": {"kind": "blocks", "block_size": 4}})
DORA = ("dora", {"rank": 3})
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""One rounding to the number format, as a part of the largest value."""


# -- a stand-in for what the node sees of ComfyUI ---------------------------------------------------------------------


class Base:
    """The class adapters inherit from."""

    name: str
    multiplier = 1.0


class Pair(Base):
    """ComfyUI's own LoRA."""

    name = "lora"
    suffixes = (keys.KOHYA.up, keys.KOHYA.down)

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    @classmethod
    def load(cls, x, lora, alpha, dora_scale, loaded_keys=None):
        names = [x + suffix for suffix in cls.suffixes]
        return cls(set(names), (*(lora[n] for n in names), alpha)) if lora.keys() >= set(names) else None

    def calculate_weight(self, weight, key, strength, strength_model, offset, function, dtype=torch.float32, _=None):
        *factors, alpha = self.weights
        tensors = dict(zip(self.suffixes, factors, strict=True)) | {keys.KOHYA.alpha: torch.tensor(alpha)}
        change = comfyui.effect(torch.zeros_like(weight), tensors, strength, How(dtype=dtype))
        weight += function(change)
        return weight


class Hadamard(Pair):
    """Its LoHa."""

    name = "loha"
    suffixes = keys.HADAMARD


class Kronecker(Pair):
    """Its LoKr."""

    name = "lokr"
    suffixes = (keys.KRONECKER[0], *keys.KRONECKER_WHOLE)


class KroneckerPair(Kronecker):
    """The same of three matrices."""

    suffixes = (keys.KRONECKER[0], *keys.KRONECKER_PAIR)


def load_lora(lora: dict, to_load: dict) -> tuple[dict, set]:
    """Patches by place, and the keys that were read; of several adapters the last wins."""
    patches, loaded = {}, set()
    for x, place in to_load.items():
        alpha = lora[f"{x}.alpha"].item() if f"{x}.alpha" in lora else None
        for adapter in sys.modules["comfy.weight_adapter"].adapters:
            found = adapter.load(x, lora, alpha, lora.get(f"{x}.dora_scale"), loaded)
            if found is not None:
                patches[place] = found
                loaded.update(found.loaded_keys)
        if f"{x}.diff" in lora:
            patches[place] = lora[f"{x}.diff"]
    return patches, loaded


def patched(patch, weight, strength=1.0, offset=None, function=None):
    """A copy of the weight with a patch, as ComfyUI computes it: in place, in the weight's dtype."""
    weight = weight.clone()
    if isinstance(patch, torch.Tensor):
        return weight + strength * patch.to(weight)
    copy = type(patch)(patch.loaded_keys, tuple(patch.weights))  # as the loader of 2026 does
    view = weight if offset is None else weight.narrow(*offset)
    function = function or (lambda a: a)
    assert copy.calculate_weight(view, "a.weight", strength, 1.0, offset, function, weight.dtype) is view
    return weight


@pytest.fixture
def node(monkeypatch):
    """The node, in the stand-in."""
    package, adapters = ModuleType("comfy"), ModuleType("comfy.weight_adapter")
    adapters.__dict__.update(WeightAdapterBase=Base, adapters=[Pair, Hadamard, Kronecker, KroneckerPair])
    package.__dict__.update(weight_adapter=adapters, __path__=[])
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.weight_adapter", adapters)
    return import_node()


def import_node() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gimbal_node", ROOT / "comfyui_node/__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def file_of(tmp_path, variant, **options):
    """A trained model's layers, and the tensors of its file."""
    _, layers, report, tensors = write(tmp_path, variant, LAYERS, host="comfyui_node", **options)
    return layers, report, tensors


def spelled(name: str) -> str:
    return "lora_" + name.replace(".", "_")


def of_layer(name: str, tensors):
    """A layer's tensors by suffix."""
    return {k.removeprefix(spelled(name)): t for k, t in tensors.items() if k.startswith(spelled(name) + ".")}


def loaded(layers, tensors):
    """The file's patches by layer."""
    return load_lora(tensors, {spelled(name): name for name in layers})[0]


def blend(adapted, strength: float):
    W = adapted.layer.native(adapted.layer.dense())
    return W, W + strength * (adapted.adapted_weight() - W)


# -- the node ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_every_method_is_exact_at_any_strength(tmp_path, node, variant, strength):
    layers, report, tensors = file_of(tmp_path, variant, dtype="float32")
    assert report.forms.keys() == layers.keys() and "unet.square" in layers and not report.approximate
    patches = loaded(layers, tensors)
    for name, adapted in layers.items():
        W, wanted = blend(adapted, strength)
        for dtype in DTYPES:
            base = W.to(dtype)
            found = patched(patches[name], base, strength)
            assert found.dtype == dtype
            if strength == 0:
                assert torch.equal(found, base)
            # Beside one rounding of the result, the base itself was rounded.
            bound = 4 * ROUNDING[dtype] * wanted.abs().max() + (W - base.float()).abs().max() * 4
            assert (found.float() - wanted).abs().max() <= bound, (name, dtype)


@pytest.mark.full
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_effect_is_what_the_node_computes(tmp_path, node, variant):
    layers, _, tensors = file_of(tmp_path, variant, dtype="float16")
    patches = loaded(layers, tensors)
    for name, adapted in layers.items():
        own = of_layer(name, tensors)
        if gimbal_node.FORMAT not in own:
            continue
        W = adapted.layer.native(adapted.layer.dense())
        for dtype in DTYPES:
            told = comfyui_node.effect(W, own, 0.7, How(dtype=dtype))
            found = patched(patches[name], W.to(dtype), 0.7).float()
            assert (told - found).abs().max() <= 2 * ROUNDING[dtype] * W.abs().max()


@pytest.mark.parametrize("kind", ["cayley", "neumann_5"])
def test_rotations_over_the_kernel_are_compact_and_exact(tmp_path, node, kind):
    rotation = {"kind": "blocks", "block_size": 6, "conv": "kernel", "map": kind}
    layers, report, tensors = file_of(tmp_path, ("doft", {"rotation": rotation}), dtype="float32")
    assert all("node" in form for name, form in report.forms.items() if name != "unet.single"), report.forms
    numbers = {name: tensors[f"{spelled(name)}.gimbal_format"][0].item() for name in ("unet.conv", "unet.point")}
    assert numbers == {"unet.conv": 2, "unet.point": 1}, "a node that does not know the axis refuses it"
    for name, patch in loaded(layers, tensors).items():
        W, wanted = blend(layers[name], 0.5)
        assert (patched(patch, W, 0.5) - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name
        told = comfyui_node.effect(W, of_layer(name, tensors), 0.5, How())
        assert (told - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name


def test_result_is_rounded_once(tmp_path, node):
    layers, _, tensors = file_of(tmp_path, DORA, dtype="float32")
    patch, W = loaded(layers, tensors)["unet.wide"], layers["unet.wide"].layer.dense().bfloat16()
    assert torch.equal(patched(patch, W), patched(patch, W.float()).bfloat16())


@pytest.mark.parametrize("variant", [BLOCKS, DORA], ids=label)
def test_rows_of_a_fused_matrix(tmp_path, node, variant):
    layers, _, tensors = file_of(tmp_path, variant, dtype="float32")
    adapted = layers["unet.square"]
    W, wanted = blend(adapted, 0.5)
    fused = torch.cat([torch.randn_like(W), W, torch.randn_like(W)])
    found = patched(loaded(layers, tensors)["unet.square"], fused, 0.5, offset=(0, 16, 16))
    assert (found[16:32] - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert torch.equal(found[:16], fused[:16]) and torch.equal(found[32:], fused[32:])


@pytest.mark.once
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_halves_in_the_order_of_the_model(tmp_path, node, variant):
    def exchanged(rows):
        return torch.cat(rows.chunk(2)[::-1])

    layers, _, tensors = file_of(tmp_path, variant, dtype="float32")
    name = "unet.wide" if "unet.wide" in layers else "unet.square"
    patch, (W, wanted) = loaded(layers, tensors)[name], blend(layers[name], 0.5)
    if isinstance(patch, torch.Tensor):
        return
    found = patched(patch, exchanged(W), 0.5, function=exchanged)
    assert (exchanged(found) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_both_sides_and_everything_at_once(node):
    """Every part of the format, against dense float64."""
    torch.manual_seed(0)
    W = torch.randn(12, 6, 3, 3)
    parts = {
        "skew_in": torch.randn(2, 3), "turn_out": torch.randn(3, 4, 4), "up": torch.randn(12, 2),
        "down": torch.randn(2, 54), "difference": torch.randn_like(W), "magnitude_in": torch.randn(6),
        "magnitude_out": torch.randn(12), "ratio": torch.randn(12),
    }
    written = {f"x.gimbal_{part}": tensor for part, tensor in parts.items()}
    written["x.gimbal_format"] = torch.tensor([1.0, len(parts)])
    found = patched(load_lora(written, {"x": "x"})[0]["x"], W)

    V = W.double().flatten(1)
    upper = torch.zeros(2, 3, 3, dtype=torch.float64)
    upper[:, [0, 0, 1], [1, 2, 2]] = parts["skew_in"].double()
    Q, eye = upper - upper.mT, torch.eye(3, dtype=torch.float64)
    R = torch.linalg.solve(eye - Q, eye + Q)
    V = V @ torch.kron(torch.block_diag(*R), torch.eye(9, dtype=torch.float64)).mT
    V = (torch.eye(12, dtype=torch.float64) + torch.block_diag(*parts["turn_out"].double())) @ V
    V = V + parts["up"].double() @ parts["down"].double() + parts["difference"].double().flatten(1)
    V = V.view(12, 6, 9)
    V = V / V.norm(dim=(0, 2), keepdim=True) * parts["magnitude_in"].double()[:, None]
    V = V / V.norm(dim=(1, 2), keepdim=True) * parts["magnitude_out"].double()[:, None, None]
    V = V * parts["ratio"].double()[:, None, None]
    assert (found.flatten(2) - V).abs().max() <= 1e-5 * V.abs().max()
    own = {key.removeprefix("x"): tensor.double() for key, tensor in written.items()}
    assert torch.allclose(comfyui_node.effect(W.double(), own, 1.0, How()).flatten(2), V, rtol=1e-12)


def test_bypass_mode_is_the_patched_layer(tmp_path, node):
    layers, _, tensors = file_of(tmp_path, BLOCKS, dtype="float32")
    patches, network = loaded(layers, tensors), Model().networks["unet"]
    for name, shape in (("unet.wide", (2, 24)), ("unet.conv", (1, 8, 5, 5))):
        layer, x = network.get_submodule(name.removeprefix("unet.")), torch.randn(shape)
        patches[name].multiplier = 0.5
        patches[name].weights = tuple(t if t is None else t.bfloat16() for t in patches[name].weights)
        found = patches[name].bypass_forward(layer.forward, x)
        layer.weight.data = blend(layers[name], 0.5)[1]
        assert torch.allclose(found, layer(x), atol=1e-5)


# -- with and without the node ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [BLOCKS, DORA], ids=label)
def test_lora_for_those_without_the_node(tmp_path, node, variant):
    layers, report, tensors = file_of(tmp_path, variant, dtype="float32", node_fallback=2)
    with_node = loaded(layers, tensors)
    sys.modules["comfy.weight_adapter"].adapters.pop()
    without = loaded(layers, tensors)
    for name, adapted in layers.items():
        W, wanted = blend(adapted, 1.0)
        assert (patched(with_node[name], W) - wanted).abs().max() <= 1e-6 * wanted.abs().max()
        if "without" not in report.forms[name]:
            continue
        change = (wanted - W).flatten(1)
        best = torch.linalg.svdvals(change)[2:].norm()
        got = patched(without[name], W)
        assert abs((got - wanted).norm() - best) <= 1e-4 * change.norm()
        own = of_layer(name, tensors)
        assert torch.allclose(comfyui_node.effect(W, own, 1.0, How(node=False)), got, atol=1e-6)
    note, = (note for note in report.notes if "without the node" in note)
    assert "LoRA of rank 2" in note and "%" in note


def test_without_node_and_fallback_the_file_is_not_read(tmp_path):
    own = of_layer("unet.wide", file_of(tmp_path, BLOCKS)[2])
    with pytest.raises(hosts.Unread):
        comfyui_node.effect(torch.ones(16, 24), own, 1.0, How(node=False))


# -- never an error ---------------------------------------------------------------------------------------------------


DAMAGE = {
    "part missing": lambda t: t.pop("x.gimbal_ratio"),
    "newer": lambda t: t["x.gimbal_format"].copy_(torch.tensor([3.0, 2.0])),
    "no triangle": lambda t: t.update({"x.gimbal_skew_in": torch.zeros(6, 5)}),
    "not finite": lambda t: t["x.gimbal_ratio"].fill_(torch.nan),
    "flat": lambda t: t.update({"x.gimbal_skew_in": torch.zeros(36)}),
    "empty": lambda t: t.update({"x.gimbal_skew_in": torch.zeros(0, 6)}),
    "no version": lambda t: t.update({"x.gimbal_format": torch.zeros(0)}),
    "too few rows": lambda t: t.update({"x.gimbal_ratio": torch.ones(1)}),
    "other layer": lambda t: t.update({"x.gimbal_skew_in": torch.zeros(5, 6)}),
    "huge": lambda t: t["x.gimbal_ratio"].fill_(3e38),
}


def sound() -> dict:
    """A layer's tensors for a weight `(16, 24)`, with a LoRA."""
    return {
        "x.gimbal_format": torch.tensor([1.0, 2.0]), "x.gimbal_skew_in": torch.randn(6, 6),
        "x.gimbal_ratio": torch.rand(16), "x.lora_up.weight": torch.ones(16, 1),
        "x.lora_down.weight": torch.ones(1, 24), "x.alpha": torch.tensor(1.0),
    }


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_tensors_leave_the_weight_and_say_so(node, caplog, damage):
    tensors, W = sound(), torch.randn(16, 24) * 10
    damage(tensors)
    with caplog.at_level(logging.WARNING):
        patch, = load_lora(tensors, {"x": "x"})[0].values()
        found = [patched(patch, W) for _ in range(2)]
    # Seen while loading, the layer is left to the LoRA beside it; seen later, it stays as it was.
    assert all(torch.equal(weight, W + 1 if isinstance(patch, Pair) else W) for weight in found)
    line, = (record.getMessage() for record in caplog.records)
    assert line.startswith(("Gimbal: x is left unchanged: ", "Gimbal: a.weight is left unchanged: "))


def test_layers_without_a_place_are_named_once(node, caplog):
    tensors = {key.replace("x.", f"{name}."): value for name in "abcdefg" for key, value in sound().items()}
    with caplog.at_level(logging.WARNING):
        patches, _ = load_lora(tensors, {"a": "a", "b": "b"})
        for patch in patches.values():
            patched(patch, torch.randn(16, 24))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["Gimbal: 5 of 7 layers do not exist in this model: c, d, e, f, g"]
    caplog.clear()
    patches, _ = load_lora(tensors, {name: name for name in "abcdefg"})  # the same file again, in a model that has all
    patched(patches["a"], torch.randn(16, 24))
    assert not caplog.records


def test_importing_twice_registers_once(node):
    import_node()
    names = [adapter.name for adapter in sys.modules["comfy.weight_adapter"].adapters]
    assert names[-1] == "gimbal" and names.count("gimbal") == 1
