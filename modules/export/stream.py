"""Writing a copy of a safetensors file with some tensors changed, tensor by tensor.

The safetensors library can only write tensors that are all in memory. The format is simple (its README): 8 bytes with
the header's length (little endian), the header as JSON (for each tensor its dtype, shape and the range of its bytes,
and `__metadata__`, texts by name), then the bytes of all tensors without gaps.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
"""The format's words for the kinds of floating-point numbers that can be changed."""
WORDS = {dtype: word for word, dtype in DTYPES.items()}

CHUNK = 1 << 24
"""Bytes that are copied at once."""
LONGEST_HEADER = 100_000_000
"""Bytes; the library refuses longer ones too."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Of its bytes, counted from the end of the header."""
    size: int
    """In bytes."""

    @property
    def numbers(self) -> int:
        """How many it has."""
        return torch.Size(self.shape).numel()

    def cast(self, dtype: torch.dtype) -> "Entry":
        """The same tensor in another dtype."""
        return replace(self, dtype=WORDS[dtype], size=self.numbers * dtype.itemsize)


@dataclass(frozen=True)
class Header:
    """What a file has, and where."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Entry]
    """In the order of their bytes."""
    data: int
    """Where the bytes of the tensors begin."""

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        entry = self.tensors[name]
        content = torch.empty(entry.size, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.data + entry.start)
            if file.readinto(content.numpy().data) != entry.size:
                raise OSError(f"{self.path} became shorter while it was read")
        return content.view(DTYPES[entry.dtype]).reshape(entry.shape)


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Raises ValueError, naming the file, for what is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(LONGEST_HEADER, path.stat().st_size):
                raise ValueError("its header is longer than the file, or than any header may be")
            found = json.loads(file.read(length))
        metadata = found.pop("__metadata__", {})
        entries = {
            name: Entry(told["dtype"], tuple(map(index, told["shape"])), index(start), end - start)
            for name, told in found.items() for start, end in [told["data_offsets"]]
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file at all ({error}); give a complete one") from error
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)))
    end = _end(path, ordered)
    if 8 + length + end != path.stat().st_size:
        raise ValueError(f"{path} is damaged: its header promises {8 + length + end} bytes, and it has "
                         f"{path.stat().st_size}; download it again")
    return Header(path, metadata, ordered, 8 + length)


def _end(path: Path, ordered: dict[str, Entry]) -> int:
    """Where the tensors' bytes end. Raises ValueError, naming the first of `ordered` that is not where the one before
    ends, or has not the bytes that its shape needs."""
    end = 0
    for name, entry in ordered.items():
        known = DTYPES.get(entry.dtype)
        wrong = known is not None and entry.size != entry.numbers * known.itemsize
        if wrong or entry.start != end or entry.size < 0:
            raise ValueError(f"{path} is damaged: its header says of {name} what cannot be; download it again")
        end += entry.size
    return end


def header_bytes(entries: dict[str, Entry], metadata: dict[str, str]) -> bytes:
    """The length and the header of a file with these tensors, their bytes in this order; a multiple of 8 bytes."""
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

    `tensor(name)` gives a tensor in its new dtype, or None for one whose bytes are copied as they are.
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


def _copy(old: BinaryIO, new: BinaryIO, size: int) -> None:
    while size:
        chunk = old.read(min(size, CHUNK))
        if not chunk:
            raise OSError("the file became shorter while it was read")
        new.write(chunk)
        size -= len(chunk)
