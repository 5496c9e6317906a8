"""What is written for our ComfyUI node, and for the public one."""

import pytest
import torch

from modules.adapters.base import Terms
from modules.adapters.layers import as_layer
from modules.files import distance, forms, keys
from modules.hosts import How, comfyui_node
from modules.preset.schema import Export
from tests.export.setup import label, preset, write

LAYERS = ["unet.wide", "unet.square", "unet.conv", "unet.point"]
BLOCKS = ("doft", {"rotation": {"kind": "blocks", "block_size": 4}})
PLAIN_BLOCKS = ("oft", {"rotation": {"kind": "blocks", "block_size": 4}})
DORA = ("dora", {"rank": 3})


def test_files_are_compact(tmp_path):
    _, _, report, tensors = write(tmp_path, BLOCKS, LAYERS, host="comfyui_node")
    assert tensors["lora_unet_wide.gimbal_skew_in"].shape == (6, 6)
    assert not any(key.endswith(".diff") for key in tensors)
    assert all(t.dtype == torch.float32 for key, t in tensors.items() if ".gimbal" in key)
    assert any("custom_nodes" in note for note in report.notes)
    _, _, report, _ = write(tmp_path, ("lora", {"rank": 3}), LAYERS, host="comfyui_node")
    assert any("no layer of this file needs the node" in note for note in report.notes)


def rotated(R, side="input"):
    """A linear layer `(8, 8)` seen with a rotation."""
    layer = as_layer(torch.nn.Linear(8, 8), "x")
    return forms.seen(layer, layer.dense().detach(), Terms(rotation=R, side=side))


def cayley(scale: float):
    upper = torch.triu(scale * torch.randn(2, 4, 4, dtype=torch.float64), 1)
    eye = torch.eye(4, dtype=torch.float64)
    return torch.linalg.solve(eye - (upper - upper.mT), eye + (upper - upper.mT))


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", ["small", "large", "180 degrees", "series", "mirror"])
def test_blocks_of_every_kind_are_kept(kind, side):
    torch.manual_seed(1)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)).repeat(2, 1, 1)
    blocks = {
        "small": cayley(0.01), "large": cayley(3.0), "180 degrees": half_turn, "series": cayley(0.3) * 1.01,
        "mirror": torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)).repeat(2, 1, 1),
    }
    view = rotated(blocks[kind].float(), side)
    encoding, = comfyui_node.own(Export(host="comfyui_node"))
    tensors = keys.stored(encoding.tensors(view, comfyui_node.NAMES) or {}, comfyui_node.NAMES, torch.float16, "x")
    assert any("skew" in key for key in tensors) == (kind in ("small", "large"))
    found = comfyui_node.effect(view.W, tensors, 1.0, How())
    assert (found - view.adapted()).abs().max() <= 1e-5 * view.W.abs().max()


OFTV2 = {"host": "comfyui_node", "node_spelling": "oftv2", "dtype": "float32"}


@pytest.mark.parametrize("variant", [PLAIN_BLOCKS, BLOCKS], ids=label)
def test_spelling_of_the_public_node(tmp_path, variant):
    _, layers, report, tensors = write(tmp_path, variant, ["unet.wide", "unet.square"], **OFTV2)
    assert tensors["lora_unet_wide.oft_R.weight"].shape == (6, 6)
    assert "lora_unet_wide.oft_R.cans_oft" in tensors
    assert ("lora_unet_wide.dora_log_multiplier" in tensors) == (variant == BLOCKS)
    assert max(error.weight for error in report.errors.values()) <= distance.TOLERANCE["float32"]
    for name, adapted in layers.items():
        own = {k.partition(".")[2]: t for k, t in tensors.items() if k.startswith(f"lora_unet_{name[5:]}.")}
        W = adapted.layer.native(adapted.layer.dense())
        wanted = W + 0.5 * (adapted.adapted_weight() - W)
        found = comfyui_node.effect(W, {f".{k}": t for k, t in own.items()}, 0.5, How())
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_public_node_has_no_convolutions(tmp_path):
    _, _, report, _ = write(tmp_path, PLAIN_BLOCKS, ["unet.conv", "unet.wide"], **OFTV2)
    assert report.forms["unet.wide"] == "rotation for the OFTv2 node"
    assert "node" not in report.forms["unet.conv"] and not report.approximate


SERIES = {"kind": "blocks", "block_size": 4, "map": "neumann_5", "conv": "kernel"}


@pytest.mark.parametrize("method", ["oft", "doft"])
def test_five_terms_are_spelled_as_onetrainers_scaled_kind(tmp_path, method):
    """Its parameters themselves, of convolutions with the other sign, and no marker of ours."""
    _, layers, report, tensors = write(tmp_path, (method, {"rotation": SERIES}), LAYERS, **OFTV2)
    assert not any("cans" in key for key in tensors) and not report.approximate
    for name, adapted in layers.items():
        own = {k.partition(".")[2]: t for k, t in tensors.items() if k.startswith(f"lora_{name.replace('.', '_')}.")}
        magnitude = {"dora_log_multiplier"} if method == "doft" else set()
        assert own.keys() == {"oft_R.weight", "oft_R.scaled_oft"} | magnitude and own["oft_R.scaled_oft"].shape == ()
        skew, sign = adapted.adapter.rotation.skew, -1 if adapted.layer.kind == "conv" else 1
        parts = 2**0.5 if method == "doft" else 1
        assert torch.allclose(parts * own["oft_R.weight"], sign * skew, rtol=1e-5, atol=1e-7)
        W = adapted.layer.native(adapted.layer.dense())
        found = comfyui_node.effect(W, {f".{k}": t for k, t in own.items()}, 1.0, How())
        assert (found - adapted.adapted_weight()).abs().max() <= 1e-5 * W.abs().max()


def test_polar_steps_settle_on_the_cayley_transform():
    torch.manual_seed(0)
    upper = torch.triu(0.3 * torch.randn(3, 16, 16), 1)
    Q = upper - upper.mT
    exact = comfyui_node._settled(Q.double())
    assert (comfyui_node._settled(Q) - exact).abs().max() <= 2e-6
    assert (comfyui_node._settled(Q.bfloat16()) - exact).abs().max() <= 0.1


@pytest.mark.parametrize("options, words", [
    ({"host": "comfyui", "node_fallback": 8}, "set host to comfyui_node"),
    ({"host": "kohya", "node_spelling": "oftv2"}, "set host to comfyui_node"),
    ({"host": "comfyui_node", "form": "svd", "node_fallback": 8}, "set form to auto or compact"),
])
def test_options_that_would_do_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        preset(*DORA, **options)
