"""Files put through the loaders of programs that PyPI has, on a tiny base of every family, text encoders too."""

import pytest
import torch

from modules.adapters.base import detach
from modules.export.export import export
from modules.files.facts import Facts
from tests.export import every
from tests.export.setup import assert_diffusers_computes, preset, trained

CONVERTED = {"form": "compact", "rank": 1000}
"""A LoRA of full rank where diffusers has no other form."""

THROUGH_DIFFUSERS = {
    "LoRA": {}, "DoRA, output axis": {}, "WoRA, output axis": {}, "OFT in planes": {}, "DOFT in planes": {},
    "DoRA, input axis": CONVERTED, "OFT in blocks": CONVERTED, "DOFT in blocks": CONVERTED,
}
DENOISERS = {"SDXL": "unet", "SD 1.5": "unet", "SD 3": "transformer", "FLUX": "transformer"}


@pytest.fixture(params=every.FAMILIES)
def family(request):
    yield request.param
    for network in every.model_of(request.param).networks.values():
        detach(network)


def layers_of(family: str) -> list[str]:
    """One of each sort, and both CLIP text encoders."""
    names = every.layers_of(every.model_of(family), every.FAMILIES[family])
    assert any(name.startswith("text_encoder") for name in names) and len(names) >= 12
    return names


@pytest.mark.once
@pytest.mark.parametrize("label", THROUGH_DIFFUSERS)
def test_diffusers_computes_what_was_trained(tmp_path, family, label):
    options = {"host": "diffusers", "dtype": "float32", **THROUGH_DIFFUSERS[label]}
    assert_diffusers_computes(every.model_of(family), every.VARIANTS[label], layers_of(family), tmp_path, options)


@pytest.mark.parametrize("family", ["SD 1.5", "SD 2", "SDXL"], indirect=True)
@pytest.mark.parametrize("host", ["kohya", "comfyui"])
def test_diffusers_reads_kohyas_names_of_unets(tmp_path, family, host):
    options = {"host": host, "dtype": "float32"}
    assert_diffusers_computes(every.model_of(family), every.VARIANTS["LoRA"], layers_of(family), tmp_path, options)


@pytest.mark.once
@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("label", ["LoRA", "DoRA, input axis", "DoRA, output axis", "WoRA, output axis",
                                   "OFT in planes", "DOFT in planes", "OFT in blocks", "DOFT in blocks"])
def test_lycoris_computes_what_was_trained(tmp_path, name, label):
    """Its own loader, with its own prefix."""
    from lycoris import create_lycoris_from_weights

    model, network = every.model_of(name), DENOISERS[name]
    names = [layer for layer in layers_of(name) if layer.startswith(f"{network}.")]
    layers = trained(model, *every.VARIANTS[label], names)
    options = preset(*every.VARIANTS[label], host="lycoris", dtype="float32")
    report = export(model, layers, options, Facts(), tmp_path / "test.safetensors")
    wanted = {layer: adapted.adapted_weight() for layer, adapted in layers.items()}
    detach(model.networks[network])

    fresh = every.fresh(every.FAMILIES[name]).networks[network]
    with torch.no_grad():
        found, _ = create_lycoris_from_weights(1.0, str(report.path), fresh)
        assert len(found.loras) == len(names)
        found.merge_to(1.0)
    for layer, weight in wanted.items():
        merged = fresh.get_submodule(layer.removeprefix(f"{network}.")).weight
        assert isinstance(merged, torch.Tensor)
        assert (merged - weight).abs().max() <= 1e-5 * weight.abs().max(), layer
