"""Files of other programs, put together on the tiny models: tensors under public names, and what they mean."""

import copy
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import tiny_flux, tiny_sd3, tiny_sd15, tiny_sdxl
from tests.export import foreign

TINY = {"sd15": tiny_sd15, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "flux": tiny_flux}


@functools.cache
def networks(family: str) -> dict[str, Any]:
    """The networks of `tests.tiny_<family>.make_folder`, by the name that full layer names begin with."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = TINY[family].make_pipeline(Path(folder))
    found = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module) and name != "vae"}
    for network in found.values():
        network.requires_grad_(False)
    return found


def module(family: str, layer: str) -> Any:
    """A copy of a layer of the tiny model, by its full name."""
    network, _, path = layer.partition(".")
    return copy.deepcopy(networks(family)[network].get_submodule(path))


@dataclass
class Sample:
    """A whole file of another program, and what it means."""

    family: str
    """A name of `TINY`; empty for a file of another model."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """peft's options in adapter_config.json beside the file."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The adapted weights, in the layers' own shapes, by full layer name."""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """The adapted biases."""
    refused: str = ""
    """Words of the sentence with which the whole file, or a part of it, is refused; empty where all of it is read. With
    extras left out, `weights` are what the rest means; without any weights the file cannot be used at all."""

    def put(self, layer: str, name: str, make: Callable[[Any], foreign.Case]) -> "Sample":
        """One layer of the file, under `name`."""
        case = make(module(self.family, layer))
        self.weights[layer] = case.weight
        if ".diff_b" in case.tensors:
            self.biases[layer] = module(self.family, layer).bias + case.tensors[".diff_b"]
        return self.add(name, case.tensors)

    def fused(self, layers: list[str], name: str, make: Callable[[Any], foreign.Case]) -> "Sample":
        """Several layers as one matrix under `name`."""
        parts = [module(self.family, layer).weight for layer in layers]
        whole = nn.Linear(parts[0].shape[1], sum(map(len, parts)))
        whole.weight.data = torch.cat(parts)
        case = make(whole.requires_grad_(False))
        self.weights |= dict(zip(layers, case.weight.split([len(part) for part in parts]), strict=True))
        return self.add(name, case.tensors)

    def add(self, name: str, tensors: dict[str, Tensor]) -> "Sample":
        """Tensors by suffix."""
        self.tensors |= {name + suffix: tensor for suffix, tensor in tensors.items()}
        return self

    def renamed(self, *pairs: tuple[str, str]) -> "Sample":
        """The same with other texts in the keys."""
        found = {}
        for key, tensor in self.tensors.items():
            for old, new in pairs:
                key = key.replace(old, new)
            found[key] = tensor
        self.tensors = found
        return self

    def save(self, folder: Path) -> Path:
        """The file in `folder`, with peft's options beside it if there are any; its path."""
        path = folder / ("adapter_model.safetensors" if self.config else "file.safetensors")
        save_file({key: tensor.detach().clone().contiguous() for key, tensor in self.tensors.items()}, path,
                  self.metadata or None)
        if self.config:
            (folder / "adapter_config.json").write_text(json.dumps(self.config, default=_listed), encoding="utf-8")
        return path


def of_peft(family: str, network: str, config: Any, scale: float = 0.3, save: dict[str, Any] | None = None) -> Sample:
    """What peft itself saves of an adapted network, `save_pretrained`'s keys; weights and biases from its merge."""
    from peft import get_peft_model
    from peft.utils import get_peft_model_state_dict

    before = networks(family)[network]
    model: Any = get_peft_model(copy.deepcopy(before), config)  # pyright: ignore
    foreign.fill([p for name, p in model.named_parameters() if p.requires_grad], scale)
    tensors = {key: value.clone() for key, value in get_peft_model_state_dict(model, **(save or {})).items()}
    merged = dict(model.merge_and_unload().named_parameters())
    found = Sample(family, tensors, config=config.to_dict())
    for name, parameter in before.named_parameters():
        path, _, kind = name.rpartition(".")
        if not torch.equal(merged[name], parameter):
            (found.weights if kind == "weight" else found.biases)[f"{network}.{path}"] = merged[name].detach()
    return found


def low_rank(rank: int = 3, alpha: float | None = 1.5, up: str = ".lora_up.weight", down: str = ".lora_down.weight",
             seed: int = 4) -> Callable[[Any], foreign.Case]:
    """A LoRA under other suffixes, without alpha among them where it is None."""

    def make(base: Any) -> foreign.Case:
        case = foreign.lora_of_kohya(base, rank, alpha, seed)
        names = {".lora_up.weight": up, ".lora_down.weight": down}
        case.tensors = {names.get(suffix, suffix): tensor for suffix, tensor in case.tensors.items()}
        return case

    return make


def lycoris(algorithm: str, **options: Any) -> Callable[[Any], foreign.Case]:
    """LyCORIS' own module."""
    return lambda base: foreign.of_lycoris(algorithm, base, options)


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
