"""Reading a denoiser from a file in its authors' naming: every tensor, no other, without a second copy in memory."""

from pathlib import Path

import torch
from torch import nn

from modules.families.parts.names import Place, exchange_halves
from modules.tensorfile import opened

PACKED = ("scale_weight", "weight_scale", "scaled_fp8", "comfy_quant", "absmax", "quant_map", "wscales")
"""Ends of names of tensors that only files with quantized weights have (scaled fp8, nf4, int4)."""


def packed_problems(path: str, names: set[str]) -> list[str]:
    """A sentence if the file's weights are quantized by another program."""
    packed = sorted(name for name in names if name.endswith(PACKED))
    return packed and [
        f"base.path: {path} has quantized weights (scaled fp8, nf4 or int4: {packed[0]}), which cannot be read; "
        "give the model in bf16, fp16 or plain fp8, and save memory with base.quantization"
    ]


def read_weights(network: nn.Module, path: str, places: dict[str, Place], prefix: str, dtype: torch.dtype) -> None:
    """Fill `network`, which is on the meta device, from the safetensors file at `path`.

    `places`: where each of the network's tensors is; names in the file have `prefix` in front. Raises ValueError for
    tensors that are missing, unknown or of another shape.
    """
    shapes = {ours: tensor.shape for ours, tensor in network.state_dict().items()}
    rows: dict[str, int] = {}
    for ours, place in places.items():
        rows[place.name] = max(rows.get(place.name, 0), place.row + shapes[ours][0])
    tensors = {}
    with opened(Path(path)) as file:
        names = {name.removeprefix(prefix) for name in set(file.keys()) if name.startswith(prefix)}
        for what, found in (("lacks", rows.keys() - names), ("has unknown", names - rows.keys())):
            if found:
                raise ValueError(f"it {what} {', '.join(sorted(found)[:3])} ({len(found)} in all)")
        for ours, place in places.items():
            stored = file.get_slice(prefix + place.name)
            whole = (rows[place.name], *shapes[ours][1:])
            if tuple(stored.get_shape()) != whole:
                raise ValueError(f"{place.name} is {tuple(stored.get_shape())}, not {whole}")
            part = stored[place.row : place.row + place.rows] if place.rows else stored[:]
            tensors[ours] = (exchange_halves(part) if place.exchanged else part).to(dtype)
    network.load_state_dict(tensors, assign=True)
