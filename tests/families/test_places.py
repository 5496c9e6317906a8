"""Where single checkpoints have layers: merging into one gives what merging into the folder of the same base gives.

Both results are read by diffusers' own loaders, so the mapping is checked against its converters, for all layers.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules.adapters.layers import KINDS
from modules.files import layers_by_name
from modules.preset.schema import Base
from modules.tools.merge.checkpoint import Checkpoint
from modules.tools.merge.into_base import Options, Source, merge_into
from modules.training.setup import layer_names
from tests.families.using import CPU

TWICE = ("shared",)
"""The same table as T5's embed_tokens."""


def layers_of(model: Any) -> dict[str, nn.Module]:
    """All layers and norms with weights, by full name; without a projection that single checkpoints do not have."""
    found = {f"{network}.{path}": module for network, whole in model.networks.items()
             for path, module in whole.named_modules() if dict(module.named_parameters(recurse=False)).get("weight")
             is not None and not path.endswith(TWICE)}
    if model.pipeline.components.get("text_encoder_2") is not None and "transformer" in model.networks:
        found.pop("text_encoder.text_projection", None)
    return found


def noise(model: Any) -> tuple[Source, dict[tuple[str, str], Tensor]]:
    """Another random tensor added to every weight and every bias."""
    generator = torch.Generator().manual_seed(0)
    wanted = {(layer, kind): torch.randn(tensor.shape, generator=generator) for layer, module in
              layers_of(model).items() for kind, tensor in module.named_parameters(recurse=False)}
    return Source(frozenset(wanted), lambda layer, kind, W: W + wanted[layer, kind]), wanted


@pytest.mark.short("sd3")
def test_a_merged_checkpoint_is_the_merged_folder(family, pair, tmp_path):
    folder, file = pair
    base = family.load(Base(path=str(folder)), CPU, torch.float32)
    source, added = noise(family.skeleton(Base(path=str(folder))))
    assert len(added) > 50
    for path, config in ((folder, ""), (file, str(folder))):
        out = tmp_path / path.name
        skeleton = family.skeleton(Base(path=str(path), config=config))
        merge_into(Checkpoint(skeleton, path), out, source, Options())
        merged = family.load(Base(path=str(out), config=config), CPU, torch.float32)
        for (layer, kind), tensor in added.items():
            network, _, inside = layer.partition(".")
            before, after = (dict(m.networks[network].get_submodule(inside).named_parameters())[kind]
                             for m in (base, merged))
            assert torch.equal(after, before + tensor), (layer, kind)
        assert merged.fingerprint("images") == base.fingerprint("images")


def test_every_name_means_one_layer_or_rows_that_lie_side_by_side(family, folder):
    model = family.skeleton(Base(path=str(folder)))
    found = layers_by_name.index(model)
    for name, parts in found.items():
        rows = [(part.row, part.row + part.rows) for part in parts]
        assert len(parts) == 1 or all(part.rows for part in parts), name
        assert all(first[1] == second[0] for first, second in zip(rows, rows[1:], strict=False)), name
    named = {part.layer for parts in found.values() for part in parts}
    assert named == {name for name, module in layers_of(model).items() if isinstance(module, tuple(KINDS))} | {
        name for name in named if name.endswith((*TWICE, "text_encoder.text_projection"))
    }
    assert not found.keys() & layers_by_name.norm_index(model).keys()


@pytest.mark.every_family
@pytest.mark.parametrize("host", ["comfyui", "kohya", "diffusers", "lycoris"])
def test_the_name_in_a_hosts_file_is_one_that_is_read(family, folder, host):
    model = family.skeleton(Base(path=str(folder)))
    for layer in layer_names(model):
        try:
            key = model.export_key(layer, host)
        except ValueError:
            continue
        assert key in [spelling.name for spelling in model.spellings(layer)], layer


def test_files_are_recognised(family, folder):
    """By every way of writing names that has the denoiser."""
    model = family.skeleton(Base(path=str(folder)))
    by_start: dict[str, list[str]] = {}
    for layer in layer_names(model):
        if layer.startswith(f"{model.DENOISER}."):
            for number, spelling in enumerate(model.spellings(layer)):
                by_start.setdefault(str(number), []).append(spelling.name)
    for keys in by_start.values():
        assert family.recognises([f"{key}.lora_down.weight" for key in keys])


def test_recognising_needs_no_denoiser(family, folder: Path):
    model = family.skeleton(Base(path=str(folder)))
    texts = [layer for layer in layer_names(model) if layer.startswith("text_encoder.")]
    assert family.recognises([model.export_key(layer, "kohya") + ".alpha" for layer in texts])
    assert not family.recognises(["something.else.lora_A.weight"]) and not family.recognises([])
