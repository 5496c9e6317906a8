"""A run that starts from a foreign file starts with that file's weights."""

import pytest
import torch
from torch import nn

from modules.adapters.base import Terms, attach
from modules.adapters.layers import as_layer
from modules.files import forms, kinds, writer
from modules.files.change import Change
from modules.files.start_from import start
from modules.hosts import comfyui_node
from modules.preset.schema import Export
from tests.export import foreign
from tests.export.foreign import conv, linear
from tests.export.setup import preset


def change_of(case, program=""):
    layer = as_layer(case.base, "unet.layer")
    parts = {kinds.split("x" + suffix)[2]: tensor for suffix, tensor in case.tensors.items()}  # pyright: ignore
    about = writer.About(program, "x", case.metadata, case.config)
    return Change(layer, kinds.terms(parts, layer, layer.dense(), about))


def attached(base, method, **options):
    config = preset(method, options).adapter
    return {"unet.layer": attach(nn.ModuleDict({"unet": nn.ModuleDict({"layer": base})}), "unet.layer", config, 0)}


@pytest.mark.parametrize("base", [linear(), conv()], ids=["linear", "conv"])
@pytest.mark.parametrize("method, options, make", [
    ("lora", {"rank": 3, "alpha": 1.5}, foreign.lora_of_kohya),
    ("lora", {"rank": 8, "alpha": 2.0}, foreign.lora_of_kohya),
    ("dora", {"rank": 3, "axis": "input"}, lambda base: foreign.dora_of_onetrainer(base, "input")),
    ("dora", {"rank": 4, "axis": "output"}, lambda base: foreign.dora_of_onetrainer(base, "output")),
    ("dora", {"rank": 4, "alpha": 1.0}, foreign.lora_of_kohya),
    ("wora", {"rank": 4, "axis": "input"}, lambda base: foreign.dora_of_onetrainer(base, "input")),
])
def test_low_rank_starts_are_exact(base, method, options, make):
    case = make(base)
    layers = attached(base, method, **options)
    assert start({"unet.layer": change_of(case)}, layers) == []
    assert (layers["unet.layer"].adapted_weight() - case.weight).abs().max() <= 1e-5 * case.weight.abs().max()


def test_same_options_take_the_factors_as_they_are():
    case = foreign.lora_of_kohya(linear())
    layers = attached(case.base, "lora", rank=3, alpha=1.5)
    start({"unet.layer": change_of(case)}, layers)
    assert torch.allclose(layers["unet.layer"].adapter.up, case.tensors[".lora_up.weight"], rtol=1e-6)
    assert torch.equal(layers["unet.layer"].adapter.down, case.tensors[".lora_down.weight"])


@pytest.mark.parametrize("block", [4, 8])
@pytest.mark.parametrize("method, gain", [("oft", False), ("doft", False), ("doft", True)])
def test_exact_rotations(method, gain, block):
    case = foreign.of_onetrainer(linear(), 4, True, "log" if gain else "")
    case.tensors[".oft_R.cans_oft"] = torch.empty(0)
    change = change_of(case)
    layers = attached(case.base, method, rotation={"kind": "blocks", "block_size": block})
    assert start({"unet.layer": change}, layers) == []
    weight = layers["unet.layer"].adapted_weight()
    assert (weight - change.adapted()).abs().max() <= 1e-5 * weight.abs().max()


def test_a_series_becomes_the_nearest_rotation_and_says_so():
    case = foreign.of_onetrainer(linear(), 4, True)
    layers = attached(case.base, "oft", rotation={"kind": "blocks", "block_size": 4})
    (note,) = start({"unet.layer": change_of(case)}, layers)
    assert "not exactly orthogonal" in note and "unet.layer" in note
    moved = (case.weight - case.base.weight).norm()
    assert (layers["unet.layer"].adapted_weight() - case.weight).norm() < 0.02 * moved


FIVE = {"kind": "blocks", "map": "neumann_5", "conv": "kernel", "divisor": "nearest"}


@pytest.mark.parametrize("base, share", [(linear(), False), (conv(), True)], ids=["linear", "conv, shared"])
@pytest.mark.parametrize("magnitude", ["", "log"])
def test_onetrainers_map_continues_its_files_exactly(base, share, magnitude):
    """The series itself, from any Q: angles above 90 degrees, which no rotation tells from their supplement, too."""
    case = foreign.of_onetrainer(base, 4, True, magnitude, share)
    case.tensors[".oft_R.weight"] *= 30
    change = change_of(case)
    layers = attached(case.base, "doft" if magnitude else "oft", rotation={"block_size": 5, "share": share, **FIVE})
    assert torch.linalg.matrix_norm(change.terms.series, 2).max() > 1.1
    assert start({"unet.layer": change}, layers) == []
    weight = layers["unet.layer"].adapted_weight().flatten(1)
    assert (weight - change.adapted().flatten(1)).abs().max() <= 1e-5 * weight.abs().max()


PAIRS, FOURS = ({"rotation": {"kind": "blocks", "block_size": size}} for size in (2, 4))

@pytest.mark.parametrize("base", [linear(), conv()], ids=["linear", "conv"])
def test_a_continued_file_is_written_as_it_was(base):
    """In the spelling that OneTrainer reads; DOFT's is that of its pull request."""
    case = foreign.of_onetrainer(base, 4, True, "log")
    change, layers = change_of(case), attached(case.base, "doft", rotation={"block_size": 4, **FIVE})
    start({"unet.layer": change}, layers)
    adapted = layers["unet.layer"]
    W = adapted.layer.dense()
    with torch.no_grad():
        view = forms.seen(adapted.layer, W, adapted.adapter.export_terms(W))
    encoding, = comfyui_node.own(Export(host="comfyui_node", node_spelling="oftv2"))
    written = encoding.tensors(view, comfyui_node.NAMES)
    assert written is not None and written.keys() == case.tensors.keys()
    for suffix, tensor in case.tensors.items():
        assert tensor.shape == written[suffix].shape, suffix
        assert torch.allclose(written[suffix].float(), tensor.float(), rtol=1e-4, atol=1e-6), suffix


QUARTER = torch.block_diag(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.eye(2))


@pytest.mark.parametrize("method, options, terms, words", [
    ("lora", {"rank": 2}, Terms(up=torch.ones(12, 3), down=torch.ones(3, 16)), "run has rank 2; set adapter.rank 3"),
    ("lora", {"rank": 2}, Terms(difference=torch.ones(12, 16)), "a full difference, which lora"),
    ("lora", {"rank": 2}, Terms(magnitude=torch.ones(12), axis="output"), "magnitudes, which lora cannot represent"),
    ("dora", {"rank": 2}, Terms(magnitude=torch.ones(12), axis="output"), "set adapter.axis output"),
    ("dora", {"rank": 2}, Terms(magnitude=-torch.ones(16), axis="input"), "not positive"),
    ("oft", {}, Terms(rotation=torch.eye(4).expand(3, 4, 4), side="output"), "rotates the layer's output"),
    ("oft", PAIRS, Terms(rotation=torch.eye(4).expand(4, 4, 4)), "block_size 4"),
    ("oft", {"rotation": {"kind": "planes"}}, Terms(rotation=torch.eye(4).expand(4, 4, 4)), "rotation.kind blocks"),
    ("oft", FOURS, Terms(rotation=-torch.eye(4).expand(4, 4, 4)), "by 180 degrees"),
    ("oft", FOURS, Terms(rotation=torch.ones(4, 4, 4)), "not orthogonal"),
    ("oft", {"rotation": {"kind": "blocks", "block_size": 7}}, Terms(rotation=torch.eye(8).expand(2, 8, 8)),
     "set adapter.rotation.divisor nearest"),
    ("oft", {"rotation": {**FOURS["rotation"], "share": True}}, Terms(rotation=torch.stack(2 * [QUARTER.mT, QUARTER])),
     "set adapter.rotation.share false"),
])
def test_what_cannot_be_held_is_a_sentence(method, options, terms, words):
    layers = attached(linear(), method, **options)
    change = Change(layers["unet.layer"].layer, terms)
    with pytest.raises(ValueError, match=f"unet.layer: .*{words}"):
        start({"unet.layer": change}, layers)


@pytest.mark.parametrize("conv_option, fan", [("channels", 72), ("kernel", 8)])
def test_the_axes_of_a_convolution_are_said(conv_option, fan):
    layers = attached(conv(), "oft", rotation={**FOURS["rotation"], "conv": conv_option})
    change = Change(layers["unet.layer"].layer, Terms(rotation=torch.eye(4).expand(fan // 4, 4, 4)))
    other = "kernel" if conv_option == "channels" else "channels"
    with pytest.raises(ValueError, match=f"unet.layer: .*set adapter.rotation.conv {other}"):
        start({"unet.layer": change}, layers)


def test_layers_of_one_side_only():
    case = foreign.lora_of_kohya(linear())
    change = change_of(case)
    layers = attached(case.base, "lora", rank=3)
    with pytest.raises(ValueError, match="does not train .unet.other.; add them to targets"):
        start({"unet.other": change}, layers)
    assert start({}, layers) == ["1 layers are not in the file and start from scratch (unet.layer)"]
    assert forms.applied(change.terms, change.layer, change.layer.dense()).shape == case.weight.shape
