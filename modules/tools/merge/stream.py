"""Writes a copy of a safetensors file with some tensors changed, tensor by tensor.

The safetensors library can only write tensors that are all in memory; `modules/tensorfile.py` has the format.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from modules.tensorfile import Entry, Header

CHUNK = 1 << 24
"""Bytes that are copied at once."""

def header_bytes(entries: dict[str, Entry], metadata: dict[str, str]) -> bytes:
    """The header length and the header of a file with these tensors, their bytes in this order; a multiple of 8
    bytes."""
    described: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, entry in entries.items():
        described[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, start + entry.size]}
        start += entry.size
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_copy(
    source: Header,
    path: Path,
    metadata: dict[str, str],
    entries: dict[str, Entry],
    tensor: Callable[[str], Tensor | None],
) -> None:
    """Write a copy of `source` to `path`: its tensors as `entries` describes them, in that order.

    `tensor(name)` returns a tensor in its new dtype, or None for one whose bytes are copied.
    """
    with source.path.open("rb") as old, path.open("wb") as new:
        new.write(header_bytes(entries, metadata))
        for name, entry in entries.items():
            changed = tensor(name)
            if changed is None:
                old.seek(source.data + source.tensors[name].start)
                _copy(old, new, entry.size)
            else:
                content = changed.detach().cpu().contiguous().flatten().view(torch.uint8)
                new.write(content.numpy().data)
                del content
            del changed  # before the next one is made


def _copy(old: BinaryIO, new: BinaryIO, size: int) -> None:
    while size:
        chunk = old.read(min(size, CHUNK))
        if not chunk:
            raise OSError("the file was truncated while it was read")
        new.write(chunk)
        size -= len(chunk)
