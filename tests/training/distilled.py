"""A training adapter for the base of these tests, and the same base with it in its weights."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.adapters.layers import as_layer
from modules.preset.files import resolve
from modules.preset.schema import Targets
from modules.training import setup
from tests.training.runs import Place


def plain_model(place: Place, *options: tuple[str, str]) -> Any:
    """The frozen base of the tests without any adapter."""
    preset = resolve(place.command("plain")[1], list(options)).preset
    model = setup.load(preset, torch.device("cpu"))
    setup.place(model, preset)
    return model


def every_layer(model: Any) -> list[str]:
    """The denoiser's layers that files have names for."""
    return setup.match_layers(model, Targets(layers="all"))[0]


def write_file(path: Path, model: Any, names: list[str], scale: float = 0.5, rank: int = 3) -> dict[str, Tensor]:
    """A LoRA in kohya's naming whose change of each layer has about `scale` of its weight; the changes `(out, fan_in)`,
    float64, by name."""
    generator, tensors, changes = torch.Generator().manual_seed(7), {}, {}
    for name in names:
        layer = as_layer(setup.whole(model).get_submodule(name), name)
        up, down = (torch.randn(shape, generator=generator, dtype=torch.float64).float()
                    for shape in ((layer.out_features, rank), (rank, layer.fan_in)))
        up *= scale * layer.dense().norm() / (up @ down).norm()
        key = model.export_key(name, "comfyui")
        tensors[f"{key}.lora_up.weight"] = layer.native_up(up).contiguous()
        tensors[f"{key}.lora_down.weight"] = layer.native(down).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(1.5)
        changes[name] = 1.5 / rank * up.double() @ down.double()
    save_file(tensors, path)
    return changes


def merge(model: Any, changes: dict[str, Tensor], folder: Path) -> None:
    """The base with the changes in its weights, saved in place of the denoiser in `folder`."""
    with torch.no_grad():
        for name, change in changes.items():
            layer = as_layer(setup.whole(model).get_submodule(name), name)
            layer.base.weight += layer.native(change).to(layer.base.weight.dtype)
    model.networks["unet"].save_pretrained(folder)


@dataclass
class Given:
    """What the tests share."""

    file: Path
    changes: dict[str, Tensor]
    """Of the weights `(out, fan_in)`."""
    merged: Path
    """A stage whose base has them."""

    @property
    def option(self) -> tuple[str, str]:
        """The option and its value."""
        return "base.training_adapter", str(self.file)

    @property
    def typed(self) -> tuple[str, str]:
        """The same as on the command line."""
        return "--base.training_adapter", str(self.file)


def make(stage: Path, folder: Path) -> Given:
    """A training adapter for every layer of the base's denoiser; and a base with it in its weights."""
    place = Place(stage, folder)
    model = plain_model(place)
    changes = write_file(folder / "beside.safetensors", model, every_layer(model))
    merged = Place(folder / "merged", folder)
    merged.stage.mkdir()
    for part in ("base", "pictures", "validation"):
        shutil.copytree(stage / part, merged.stage / part)
    merge(model, changes, merged.stage / "base" / "unet")
    return Given(folder / "beside.safetensors", changes, merged.stage)
