"""A run on one of the newer families that starts from a file begins with what the file's run ended with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modules import families
from modules.adapters.base import detach
from modules.export.export import export
from modules.files.facts import Facts
from modules.preset.files import resolve
from modules.preset.schema import Base
from modules.training import first_values, setup
from tests import tiny_chroma, tiny_flux2, tiny_krea2, tiny_qwenimage, tiny_zimage
from tests.adapters.cases import randomise
from tests.families.using import CPU

BASES = {"zimage": tiny_zimage.make_folder, "flux2": tiny_flux2.make_folder, "chroma": tiny_chroma.make_folder,
         "krea2": tiny_krea2.make_folder, "qwenimage": tiny_qwenimage.make_folder}
HOSTS = {"comfyui": 2, "diffusers": 2, "lycoris": 2, "kohya": 8}
"""Programs, and the rank that a run needs to start from a file for them: kohya's have up to four layers fused."""
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "dora": {"rank": 2, "axis": "output"},
    "lokr": {"rank": 2, "factor": 4},
}
PAIRS = [(method, host) for method in METHODS for host in HOSTS if method != "lokr" or host in ("comfyui", "lycoris")]
"""Not of layers that are LoRAs in a program's file."""


@pytest.fixture(scope="module", params=BASES)
def model(request, tmp_path_factory) -> Any:
    folder = BASES[request.param](tmp_path_factory.mktemp(request.param))
    return families.load_class(request.param).load(Base(path=str(folder)), CPU, torch.float32)


def preset_of(model: Any, method: str, host: str, file: str = "", rank: int = 2) -> Any:
    """A preset for all layers of attention and feed-forward networks of the denoiser."""
    options = {"family": families.name_of(model), "adapter.method": method, "targets.layers": "attention-mlp",
               "export.host": host, "export.dtype": "float32", "adapter.start_from": file,
               **{f"adapter.{name}": value for name, value in METHODS[method].items()}, "adapter.rank": rank}
    return resolve("wora_sdxl", [(name, str(value)) for name, value in options.items()]).preset


@pytest.mark.short("zimage-lora-comfyui", "flux2-dora-diffusers", "chroma-lokr-lycoris", "zimage-lora-kohya")
@pytest.mark.parametrize("method, host", PAIRS)
def test_a_run_begins_with_the_weights_of_a_finished_one(model, method, host, tmp_path: Path):
    """Through the files of each program, with layers that they have fused."""
    path, network = tmp_path / "first.safetensors", setup.whole(model)
    try:
        adapted, problems = setup.attach_all(model, preset_of(model, method, host))
        assert not problems
        for number, layer in enumerate(adapted.values()):
            randomise(layer.adapter, number, 0.1)
        wanted = {name: layer.adapted_weight().clone() for name, layer in adapted.items()}
        export(model, adapted, preset_of(model, method, host), Facts(), path)
        detach(network)
        preset = preset_of(model, method, host, str(path), HOSTS[host])
        found, problems = first_values.look(preset, model)
        assert not problems and found is not None
        changes = first_values.read(preset, model)
        fresh, _ = setup.attach_all(model, preset)
        assert first_values.misfits(found, fresh) == [] and first_values.apply(changes, fresh) == []
        assert fresh.keys() == wanted.keys()
        for name, layer in fresh.items():
            assert (layer.adapted_weight() - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max(), name
    finally:
        detach(network)
