"""Layers that kohya's files have as one matrix: the file does there what the layers' adapters do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modules.adapters.base import Terms
from modules.adapters.layers import as_layer
from modules.export import fuse
from modules.export.export import export
from modules.families import load_class
from modules.files import forms
from modules.files.facts import Facts
from modules.preset.schema import Base
from modules.tools.apply import apply_file
from tests import tiny_flux, tiny_sd3
from tests.export.setup import preset, trained

CPU = torch.device("cpu")
LORA = ("lora", {"rank": 3, "alpha": 2.0})
OUTPUT = ("dora", {"rank": 3, "axis": "output"})
INPUT = ("dora", {"rank": 3, "axis": "input"})
BLOCKS = ("oft", {"rotation": {"kind": "blocks", "block_size": 4}})
ONE, TWO = "transformer.single_transformer_blocks.0", "transformer.transformer_blocks"
LAYERS = {
    "flux": [f"{TWO}.0.attn.to_q", f"{TWO}.0.attn.to_k", f"{TWO}.0.attn.to_v", f"{TWO}.0.attn.add_k_proj",
             f"{TWO}.0.attn.to_out.0", f"{ONE}.attn.to_v", f"{ONE}.proj_mlp", "transformer.norm_out.linear"],
    "sd3": [f"{TWO}.0.attn.to_q", f"{TWO}.0.attn.to_v", f"{TWO}.0.attn2.to_k", f"{TWO}.1.attn.add_q_proj",
            f"{TWO}.1.norm1_context.linear", f"{TWO}.2.norm1_context.linear", "transformer.norm_out.linear"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("fuse")
    return {"flux": tiny_flux.make_folder(place / "flux"), "sd3": tiny_sd3.make_folder(place / "sd3")}


def loaded(folders: dict[str, Path], family: str) -> Any:
    return load_class(family).load(Base(path=str(folders[family])), CPU, torch.float32)


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("variant, form", [(LORA, "auto"), (OUTPUT, "auto"), (BLOCKS, "auto"), (INPUT, "full")],
                         ids=["pairs", "output", "rotation", "input"])
def test_the_file_does_what_was_trained(folders, tmp_path, family, variant, form):
    layers = trained(loaded(folders, family), *variant, LAYERS[family])
    model = loaded(folders, family)
    options = {"host": "kohya", "dtype": "float32", "form": form}
    report = export(model, layers, preset(*variant, **options), Facts(), tmp_path / "test.safetensors")
    assert set(apply_file(model, report.path, "kohya")) >= layers.keys()
    for name, adapted in layers.items():
        network, _, path = name.partition(".")
        found, wanted = model.networks[network].get_submodule(path).weight, adapted.adapted_weight()
        assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max(), name
    assert all(key.startswith("lora_unet_") for key in load_file(report.path))


def test_ranks_add_up_and_names_are_sd_scripts(folders, tmp_path):
    layers = trained(loaded(folders, "flux"), *LORA, LAYERS["flux"])
    report = export(loaded(folders, "flux"), layers, preset(*LORA, host="kohya"), Facts(), tmp_path / "x.safetensors")
    found = {key.split(".")[0]: tensor.shape[0] for key, tensor in load_file(report.path).items() if "down" in key}
    assert found == {
        "lora_unet_double_blocks_0_img_attn_qkv": 9, "lora_unet_double_blocks_0_txt_attn_qkv": 3,
        "lora_unet_double_blocks_0_img_attn_proj": 3, "lora_unet_single_blocks_0_linear1": 6,
        "lora_unet_final_layer_adaLN_modulation_1": 3,
    }
    names = {f"{TWO}.0.attn.to_q + to_k + to_v", f"{ONE}.attn.to_q + attn.to_k + attn.to_v + proj_mlp"}
    assert names < report.forms.keys()


def test_magnitudes_along_the_input_are_refused_with_what_to_do(folders, tmp_path):
    model = loaded(folders, "flux")
    layers = trained(model, *INPUT, LAYERS["flux"])
    with pytest.raises(ValueError, match="export.host kohya.*export.host comfyui.*adapter.axis output.*attn.to_q"):
        export(model, layers, preset(*INPUT, host="kohya"), Facts(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    alone = {name: adapted for name, adapted in layers.items() if name.endswith(("to_out.0", "norm_out.linear"))}
    report = export(model, alone, preset(*INPUT, host="kohya", dtype="float32"), Facts(), tmp_path / "x.safetensors")
    assert not report.approximate and len(report.forms) == 2


def test_a_pair_that_came_from_one_matrix_goes_back_into_one():
    torch.manual_seed(0)
    layers = [as_layer(torch.nn.Linear(6, out), name) for name, out in (("a", 4), ("b", 2))]
    fused, down = fuse.Fused(layers, [False, False], "a + b"), torch.randn(3, 6)
    ups = [torch.randn(4, 3), torch.randn(2, 3)]
    terms = fuse.joined(fused, [Terms(up=up, down=down) for up in ups])
    assert terms.down is down and terms.up is not None and torch.equal(terms.up, torch.cat(ups))


@pytest.mark.parametrize("kind", ["bias", "difference", "side", "mixed"])
def test_other_terms_join_exactly(kind):
    torch.manual_seed(0)
    layers = [as_layer(torch.nn.Linear(6, 4).double(), name) for name in "abc"]
    fused = fuse.Fused(layers, [False, True, False], "a + b + c")
    turned = torch.linalg.qr(torch.randn(2, 2, 2, dtype=torch.float64)).Q
    pair = {"up": torch.randn(4, 2).double(), "down": torch.randn(2, 6).double()}
    terms = {
        "bias": [Terms(bias=torch.randn(4).double(), **pair), None, Terms(**pair)],
        "difference": [Terms(difference=torch.randn(4, 6).double()), Terms(**pair), None],
        "side": [Terms(rotation=turned, side="output"), None, Terms(**pair)],
        "mixed": [Terms(magnitude=torch.rand(4).double(), axis="output", **pair), None, Terms(**pair)],
    }[kind]
    joined = fuse.joined(fused, terms)
    found = fused.split(forms.applied(joined, fused, fused.dense()))
    for layer, given, weight in zip(layers, terms, found, strict=True):
        assert torch.allclose(weight, forms.applied(given or Terms(), layer, layer.dense()), atol=1e-14)
    if kind == "bias":
        assert joined.bias is not None and torch.equal(fused.split(joined.bias)[0], terms[0].bias)
