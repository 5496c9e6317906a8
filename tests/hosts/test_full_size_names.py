"""ComfyUI finds every layer of the models in their real sizes under the names that we write, in the right shape."""

from types import SimpleNamespace

import pytest
import torch

from modules.training import setup
from tests import full_size
from tests.hosts import bases, programs

COMFYUI = [one for one in programs.programs("comfyui") if one.starts()]
LATER = {"qwenimage21"}
"""Families that 0.28.0 does not have."""
UNKNOWN = {"embed_tokens"}
"""T5's embedding, which ComfyUI has as `shared` only; files for it leave it out."""


@pytest.mark.skipif(not COMFYUI, reason="GIMBAL_HOSTS has no ComfyUI that can be run")
@pytest.mark.parametrize("name", full_size.MODELS)
def test_comfyui_finds_every_layer(name, tmp_path):
    model = full_size.skeleton(name, tmp_path)
    family = full_size.MODELS[name].family
    if family in LATER:
        pytest.skip("this ComfyUI does not have the model")
    weights = {f"{part}.{key}": tensor.to("meta") for part, network in model.networks.items()
               for key, tensor in network.state_dict().items()}
    found = SimpleNamespace(family=family, model=model)
    with torch.device("meta"):
        shapes = {key: list(tensor.shape) for key, tensor in bases.original(found, weights).items()}
    known = COMFYUI[0].known(family, shapes)
    lost = {}
    for layer in setup.layer_names(model):
        try:
            key = model.export_key(layer, "comfyui")
        except ValueError:
            continue
        if known.get(key) != list(weights[f"{layer}.weight"].shape):
            lost[layer] = (key, known.get(key))
    assert {layer for layer in lost if layer.rpartition(".")[2] not in UNKNOWN} == set(), lost
