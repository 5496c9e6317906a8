"""Reading a network's weights from one file: names of its authors, weights in scaled fp8 dequantized, every tensor that
the network has, without a second copy in memory."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modules.families.parts.names import Place, exchange_halves
from modules.tensorfile import DTYPES, Header, opened, read_header

SCALES = ("scale_weight", "weight_scale")
"""What ends the name of the scale of a weight in scaled fp8: older files, and newer ones."""
MARKER = "scaled_fp8"
"""What ends the name of the tensor that marks older files."""
BESIDE = (*SCALES, "scale_input", "input_scale", MARKER, "comfy_quant")
"""Ends of names of tensors that only files in scaled fp8 have. Activations are not quantized here."""
UNREAD = ("absmax", "quant_map", "wscales", "weight_scale_2")
"""Ends of names of tensors that only files in nf4, int4 or nvfp4 have."""
PACKED = (*BESIDE, *UNREAD)
"""Ends of names of tensors that only files with quantized weights have."""
FORMATS = ("float8_e4m3fn", "float8_e5m2")
"""ComfyUI's words for the formats that are read."""
LAYERS = "_quantization_metadata"
"""ComfyUI's entry in the metadata of a file, with the format of each layer."""

Places = Mapping[str, Place | Literal["identity", "zeros"]]
"""Where a file has each of a network's tensors, or what it is as no file has it."""


def packed_problems(option: str, path: Path) -> list[str]:
    """A sentence if the file's weights are quantized in a format that is not read."""
    header = read_header(path)
    if found := _unread(header):
        return [f"{option}: {path} has quantized weights ({found}), which cannot be read; give the model in bf16, "
                "fp16, plain or scaled fp8, and save memory with base.quantization"]
    if found := _wrong_scale(header):
        return [f"{option}: {path} is damaged: {found}; copy or download it again"]
    return []


def _unread(header: Header) -> str:
    """The format of the weights, and a tensor of it, if it is not read; "" otherwise."""
    for name, entry in header.tensors.items():
        if name.endswith(UNREAD):
            return f"nf4, int4 or nvfp4: {name}"
        if name.endswith(".weight") and len(entry.shape) > 1 and entry.dtype not in DTYPES:
            return f"{entry.dtype}: {name}"
        if name.endswith(SCALES) and entry.numbers not in (1, _rows(header, name)):
            return f"a scale for each block of a matrix: {name}"
    for name, format in _formats(header).items():
        if format not in FORMATS:
            return f"{format}: {name}"
    return ""


def _wrong_scale(header: Header) -> str:
    """A scale that cannot be right, or a weight in scaled fp8 without one, as a clause; "" without any. Layers are in
    scaled fp8 where the file says so, and where one that differs in the numbers of its name alone is."""
    layers = {name.rpartition(".")[0] for name in header.tensors if name.endswith(SCALES)}
    alike = {_numberless(layer) for layer in layers}
    told = {name.removesuffix(".comfy_quant") for name in _formats(header)}
    for name, entry in header.tensors.items():
        layer, _, kind = name.rpartition(".")
        scaled = layer in told or _numberless(layer) in alike
        if kind == "weight" and entry.dtype.startswith("F8") and scaled and layer not in layers:
            return f"{name} is in scaled fp8, but there is no scale of it"
    if layers:
        with opened(header.path) as file:
            for name in (name for name in header.tensors if name.endswith(SCALES)):
                scale = file.get_tensor(name).float()
                if not bool(scale.isfinite().all()) or not bool((scale != 0).all()):
                    return f"{name}, the scale of a weight, has values that are zero or not finite"
    return ""


def _rows(header: Header, scale: str) -> int:
    """Rows of the weight that a scale is for; 0 without one."""
    weight = header.tensors.get(f"{scale.rpartition('.')[0]}.weight")
    return weight.shape[0] if weight and weight.shape else 0


def _formats(header: Header) -> dict[str, str]:
    """The formats of layers that ComfyUI has quantized, by their names."""
    said: dict[str, Any] = {}
    names = [name for name in header.tensors if name.endswith(".comfy_quant")]
    try:
        if LAYERS in header.metadata:
            said |= json.loads(header.metadata[LAYERS])["layers"]
        if names:
            with opened(header.path) as file:
                said |= {name: json.loads(file.get_tensor(name).numpy().tobytes()) for name in names}
        return {name: str(entry["format"]) for name, entry in said.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {"its layers": "an unknown format"}


def misfit(network: nn.Module, header: Header, places: Places, whole: str | None = None, unused: str = "") -> str:
    """What of the network's tensors the file lacks or has in another shape, as a clause; "" if it has all.
    `whole`: all names that begin with this have to be known, too, unless the rest of them matches the pattern `unused`
    and is not like that of a known one with other numbers, as of a further block."""
    shapes = {ours: tensor.shape for ours, tensor in network.state_dict().items()}
    found = {ours: place for ours, place in places.items() if isinstance(place, Place)}
    rows: dict[str, int] = {}
    for ours, place in found.items():
        rows[place.name] = max(rows.get(place.name, 0), place.row + shapes[ours][0] if shapes[ours] else 0)
    unknown = [] if whole is None else _unknown(header, rows, whole, unused)
    for what, names in (("lacks", rows.keys() - header.tensors.keys()), ("has unknown", unknown)):
        if names:
            return f"it {what} {', '.join(sorted(names)[:3])} ({len(names)} in all)"
    for ours, place in found.items():
        stored, shape = header.tensors[place.name].shape, tuple(shapes[ours])
        wanted = shape[::-1] if place.transposed else (rows[place.name], *shape[1:]) if shape else ()
        wanted = (math.prod(shape),) if place.flat else wanted
        if _plain(stored) != _plain(wanted):
            return f"{place.name} is {tuple(stored)}, not {wanted}"
    return ""


def _unknown(header: Header, known: Collection[str], whole: str, unused: str) -> list[str]:
    """Names in the file that `misfit` does not let pass."""
    layers, alike = {name.rpartition(".")[0] for name in known}, {_numberless(name) for name in known}
    found = [name for name in header.tensors if name.startswith(whole) and name not in known]
    return [name for name in found
            if (name.rpartition(".")[0] not in layers or not name.endswith(BESIDE)) and not name.endswith(MARKER)
            and (_numberless(name) in alike or not re.fullmatch(unused, name.removeprefix(whole)))]


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a convolution of 1 x 1 as that of the matrix that others have for it."""
    return _plain(shape[:-1]) if len(shape) > 2 and shape[-1] == 1 else tuple(shape)


def read_weights(network: Any, path: Path, places: Places, dtype: torch.dtype, whole: str | None = None,
                 unused: str = "") -> None:
    """Fill `network`, which is on the meta device, from the safetensors file at `path`. Raises ValueError for tensors
    that are missing, of another shape, or unknown, see `misfit`."""
    header = read_header(path)
    if said := misfit(network, header, places, whole, unused):
        raise ValueError(f"{path}: {said}")
    shapes = {ours: tensor.shape for ours, tensor in network.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    read: dict[Place, Tensor] = {}  # T5 has its table of tokens under two names
    kinds = _kept_in(network, dtype)
    with opened(path) as file:
        for ours, place in places.items():
            kind = kinds(ours)
            if not isinstance(place, Place):
                tensors[ours] = _made(place, shapes[ours], kind)
                continue
            if place not in read:
                read[place] = _tensor(file, header, place, kind)
            tensors[ours] = read[place].reshape(shapes[ours])
    network.load_state_dict(tensors, assign=True)


def _made(what: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.eye(*shape, dtype=dtype) if what == "identity" else torch.zeros((), dtype=dtype).expand(shape)


def _tensor(file: Any, header: Header, place: Place, dtype: torch.dtype) -> Tensor:
    """A tensor as the network has it; one in scaled fp8 is multiplied in `dtype`, as ComfyUI does."""
    rows = slice(place.row, place.row + place.rows) if place.rows else slice(None)
    whole = not place.rows
    part = (file.get_tensor(place.name) if whole else file.get_slice(place.name)[rows]).to(dtype)
    layer, _, kind = place.name.rpartition(".")
    scale = next((name for end in SCALES if (name := f"{layer}.{end}") in header.tensors), None)
    if kind == "weight" and scale is not None:
        factor = file.get_tensor(scale).to(dtype)
        axes = (-1, *[1] * (part.dim() - 1))
        part = part * (factor.reshape(()) if factor.numel() == 1 else factor.reshape(-1)[rows].reshape(axes))
    part = part.mT.contiguous() if place.transposed else part
    return exchange_halves(part) if place.exchanged else part


def _kept_in(network: Any, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The number format of a tensor by its name: some parts of networks overflow in less than float32. transformers'
    keep only in float16. Counters stay whole numbers."""
    from transformers import PreTrainedModel

    counters = {name: buffer.dtype for name, buffer in network.named_buffers() if not buffer.is_floating_point()}
    kept = set(network._keep_in_fp32_modules or ())
    if isinstance(network, PreTrainedModel) and dtype != torch.float16:
        kept = set()
    return lambda name: counters.get(name) or (torch.float32 if kept & set(name.split(".")) else dtype)
