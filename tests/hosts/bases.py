"""The bases that files are tried on: tiny models, one of each family, in the layouts in which programs keep them.

Their weights are numbers that float32, float16 and bfloat16 all hold, so that loading a base in 16 bits changes nothing
and every error is of the file or of the program.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from modules.families import load_class
from tests import tiny_flux, tiny_sd3, tiny_sd15, tiny_sdxl
from tests.export import every
from tests.families import (
    single_file,
    single_file_anima,
    single_file_chroma,
    single_file_flux,
    single_file_flux2,
    single_file_krea2,
    single_file_sd3,
    single_file_zimage,
)

ROW = 2**20
"""Rows of a tensor are numbered within this when layouts are found out."""
TEXT = "text_encoder"
HEADS = 3


def wide_sd3(folder: Path) -> Any:
    """SD3's programs take the width to be 64 times the number of blocks."""
    pipeline: Any = tiny_sd3.make_pipeline(folder)
    config = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")}
    torch.manual_seed(1)
    pipeline.transformer = SD3Transformer2DModel.from_config({
        **config, "attention_head_dim": 64, "num_attention_heads": HEADS, "num_layers": HEADS,
        "caption_projection_dim": 64 * HEADS,
    })
    return pipeline


MAKE: dict[str, Callable[[Path], Any]] = {
    "sd15": tiny_sd15.make_pipeline, "sdxl": tiny_sdxl.make_pipeline, "sd3": wide_sd3, "flux": tiny_flux.make_pipeline,
}
KINDS = {"sd15": "SD 1.5", "sdxl": "SDXL", "sd3": "SD 3", "flux": "FLUX"}
"""The families, by the names that tests/export/every.py has for them."""


@dataclass(frozen=True)
class Place:
    """Where a layer's weight is in another layout."""

    name: str
    """The tensor's name there."""
    rows: Tensor
    """Its rows there, in our order."""

    def of(self, tensors: dict[str, Tensor], shape: torch.Size) -> Tensor:
        """The layer's weight out of tensors in that layout."""
        return tensors[self.name][self.rows].reshape(shape)


@dataclass(frozen=True)
class Base:
    """A tiny model of a family."""

    family: str
    folder: Path
    """The pipeline as a diffusers folder."""
    model: Any
    """As the trainer has it."""
    layers: tuple[str, ...]
    """The layers to be adapted, one of each sort."""
    weights: dict[str, Tensor]
    """All tensors by our names (`unet.conv_in.weight`), float32."""

    def layout(self, name: str) -> dict[str, Tensor]:
        """All tensors under the names of a layout: see `LAYOUTS`."""
        return {key: tensor.contiguous().clone() for key, tensor in LAYOUTS[name](self, self.weights).items()}

    def places(self, name: str) -> dict[str, Place]:
        """Where each adapted layer is in a layout, found by sending numbers of tensors and rows through it."""
        return _places(self.family, name)


@cache
def base(family: str) -> Base:
    """The same base each time."""
    with tempfile.TemporaryDirectory() as place:
        pipeline = MAKE[family](Path(place))
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.bfloat16().half().float()
    folder = Path(tempfile.mkdtemp(prefix=f"gimbal_{family}_"))
    pipeline.save_pretrained(folder)
    model: Any = load_class(family)(pipeline, torch.device("cpu"))
    model.base_hash = cache(model.base_hash)
    for network in model.networks.values():
        network.requires_grad_(False)
    weights = {f"{part}.{name}": tensor.clone() for part, network in model.networks.items()
               for name, tensor in network.state_dict().items()}
    layers = tuple(every.layers_of(model, every.FAMILIES[KINDS[family]]))
    return Base(family, folder, model, layers, weights)


def _parts(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by network."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        found.setdefault(part, {})[rest] = tensor
    return found


def _texts(base: Base, parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Text encoders as transformers 4 names their tensors, which is how programs have them."""
    found = {}
    for part, tensors in parts.items():
        if part.startswith(TEXT):
            for name, tensor in tensors.items():
                path, _, kind = name.rpartition(".")
                found[f"{part}.{base.model.split(f'{part}.{path}')[1]}.{kind}"] = tensor
    return found


class _Filled:
    """A network with other tensors than its own, for the functions of tests/families."""

    def __init__(self, network: Any, tensors: dict[str, Tensor]):
        self._network, self._tensors = network, tensors

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def original(base: Base, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser as its authors name it, text encoders as transformers does."""
    parts = _parts(tensors)
    found = _texts(base, parts)
    if "unet" in parts:
        network: Any = base.model.networks["unet"]
        filled: Any = _Filled(network, parts["unet"])
        renamed = dict(single_file.renamed(filled, single_file.unet_names(network)))
        return found | {f"unet.{name}": tensor for name, tensor in renamed.items()}
    network = base.model.networks["transformer"]
    if base.family == "flux":
        renamed = single_file_flux.original(parts["transformer"], network.inner_dim)
    elif base.family == "chroma":
        renamed = single_file_chroma.original(parts["transformer"], network.inner_dim)
    elif base.family == "flux2":
        renamed = single_file_flux2.original(parts["transformer"])
    elif base.family == "krea2":
        renamed = single_file_krea2.original(parts["transformer"])
    elif base.family == "anima":
        inside = {f"llm_adapter.{name}": tensor for name, tensor in parts["text_conditioner"].items()}
        renamed = single_file_anima.original(parts["transformer"]) | inside
    elif base.family == "qwenimage":
        renamed = parts["transformer"]  # diffusers' names
    elif base.family == "zimage":
        renamed = single_file_zimage.original(parts["transformer"])
    else:
        filled = _Filled(network, parts["transformer"])
        renamed = dict(single_file_sd3.original(filled))
    return found | {f"transformer.{name}": tensor for name, tensor in renamed.items()}


def open_clip(base: Base, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `original`, and SDXL's second text encoder as OpenCLIP has it, with query, key and value in one."""
    found = original(base, tensors)
    if base.family != "sdxl":
        return found
    second = f"{TEXT}_2"
    network: Any = base.model.networks[second]
    filled: Any = _Filled(network, _parts(tensors)[second])
    found = {name: tensor for name, tensor in found.items() if not name.startswith(f"{second}.")}
    return found | {f"{second}.{name}": tensor for name, tensor in single_file.open_clip(filled)}


def kohya(base: Base, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `original`, but Stable Diffusion 1's UNet, which sd-scripts keeps under diffusers' names."""
    if base.family != "sd15":
        return original(base, tensors)
    parts = _parts(tensors)
    return _texts(base, parts) | {f"unet.{name}": tensor for name, tensor in parts["unet"].items()}


def diffusers(base: Base, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our own names, which are diffusers' and transformers'."""
    return dict(tensors)


LAYOUTS = {"original": original, "open_clip": open_clip, "kohya": kohya, "diffusers": diffusers}


def _numbered(family: str, layout: str) -> dict[str, Tensor]:
    """The layout of tensors in which each row has a number of its own instead of its weights."""
    found = base(family)
    names = list(found.weights)
    numbers = {}
    for index, name in enumerate(names):
        tensor = found.weights[name]
        rows = torch.arange(len(tensor), dtype=torch.float64) if tensor.dim() else torch.zeros((), dtype=torch.float64)
        shape = (-1, *[1] * (tensor.dim() - 1)) if tensor.dim() else ()
        numbers[name] = (index * ROW + rows).reshape(shape).expand(tensor.shape).clone()
    return LAYOUTS[layout](found, numbers)


@cache
def _places(family: str, layout: str) -> dict[str, Place]:
    found = base(family)
    tensors = {name: tensor for name, tensor in _numbered(family, layout).items() if tensor.dim() > 1}
    firsts = {name: tensor.flatten(1)[:, 0].long() for name, tensor in tensors.items()}
    index = {name: number for number, name in enumerate(found.weights)}
    places = {}
    for layer in found.layers:
        number = index[f"{layer}.weight"]
        for name, numbers in firsts.items():
            inside = (numbers // ROW == number).nonzero().flatten()
            if len(inside):
                order = torch.argsort(numbers[inside])
                places[layer] = Place(name, inside[order])
        assert len(places[layer].rows) == len(found.weights[f"{layer}.weight"]), layer
    return places
