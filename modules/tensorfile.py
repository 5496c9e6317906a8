"""Safetensors files: a validated header, and one sentence for every damaged or invalid file.

The format is simple (its README): 8 bytes with the header's length (little endian), the header as JSON (for each tensor
its dtype, shape and the range of its bytes, and `__metadata__`, texts by name), then the bytes of all tensors without
gaps. Whatever opens such a file that somebody else may have written goes through `read_header` or `opened`.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modules import documents
from modules.printable import shown

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
"""The format's names of floating-point dtypes that can be converted."""
WORDS = {dtype: word for word, dtype in DTYPES.items()}


BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}
"""Bits per element, by the format's names of dtypes."""

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
"""Suffixes of files that run code when they are read. They are never opened."""
A_PICKLE = "a pickle, which can run any code when it is loaded, so it is not loaded"

LONGEST_HEADER = 20_000_000
"""Bytes. The library takes five times as much; the longest that exist describe every caption of a data set."""
LONGEST_KEPT = 1_000_000
"""Bytes of a header that stays in memory, parsed. That of SDXL has a quarter."""
MOST_AXES = 8
"""Of a tensor. Weights of convolutions in three dimensions have five."""
LONGEST_NAME = 500
"""Characters of a tensor's name."""

LOOKED_AT = 1 << 20
"""Eight-bit elements that are converted at once."""
CHECKSUM = "sha256_of_tensors"
"""Key in the metadata of files that we write: `checksum` of their tensors. It stays valid in a program that only edits
metadata. Not one of our keys `gimbal.`, which identify files that Gimbal has trained."""


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
        """The number of elements."""
        return math.prod(self.shape)

    def cast(self, dtype: torch.dtype) -> "Entry":
        """The same tensor in another dtype."""
        return replace(self, dtype=WORDS[dtype], size=self.numbers * dtype.itemsize)


@dataclass(frozen=True)
class Header:
    """The tensors of a file, and where they are."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Entry]
    """In the order of their bytes."""
    data: int
    """Where the bytes of the tensors begin."""

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped: its bytes are read when they are used and take no memory of the process' own."""
        entry = self.tensors[name]
        if self.path.stat().st_size < self.data + entry.start + entry.size:
            raise OSError(f"{self.path} was truncated while it was read")
        dtype = DTYPES[entry.dtype]
        if not entry.size:
            return torch.empty(entry.shape, dtype=dtype)
        content = np.memmap(self.path, np.uint8, "c", self.data + entry.start, entry.size)  # what is written is a copy
        return torch.from_numpy(content).view(dtype).reshape(entry.shape)


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Raises ValueError, naming the file, if it is invalid or cannot be read."""
    size = documents.check_file(path, "a .safetensors file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(LONGEST_HEADER, size - 8):
                raise ValueError(f"{_lies(path)}: its header is longer than the file, or than any header may be")
            content = file.read(length)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if length > LONGEST_KEPT:
        return _parsed(path, content, size)
    kept = _parsed_before(path, content, size)
    return replace(kept, metadata=dict(kept.metadata), tensors=dict(kept.tensors))


def _parsed(path: Path, content: bytes, size: int) -> Header:
    """The header, of the bytes that it is in, in a file of `size` bytes. Raises ValueError as `read_header`."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{_lies(path)}: its header is not UTF-8 text") from None
    found = documents.as_object(documents.parse_json(text, f"{_lies(path)}: its header"), f"{_lies(path)}: its header")
    metadata = found.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{_lies(path)}: its metadata is not a map of names to texts")
    entries = {name: _entry(path, name, told) for name, told in found.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)))
    end = _end(path, ordered)
    start = 8 + len(content)
    if start + end != size:
        raise ValueError(f"{path} is damaged: it should have {start + end} bytes by its header, but has {size}; "
                         "download it again")
    return Header(path, metadata, ordered, start)


_parsed_before = lru_cache(16)(_parsed)
"""A base is asked for its header ten times before it is loaded, and a header of two thousand tensors takes 30 ms."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """safetensors' own reader of a file, after its header was validated. Raises ValueError as `read_header`, and for
    what the library finds while it is used."""
    read_header(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error


# -- checksums --------------------------------------------------------------------------------------------------------


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file with a new checksum, also where `metadata`, which may be that of another file, has one. Raises
    OSError as `write` does."""
    write(tensors, path, {**(metadata or {}), CHECKSUM: checksum(sorted(tensors.items()))})


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file as it is given. Raises OSError with a sentence, and leaves nothing, where it cannot be written."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error})") from error


def checksum(tensors: Iterable[tuple[str, Tensor]], start: str = "") -> str:
    """sha256, hex, of `start` and of the names, dtypes, shapes and bytes of tensors, which are sorted by name. One by
    one: there is never a copy of more than one."""
    total = hashlib.sha256(start.encode())
    for name, tensor in tensors:
        total.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def holds(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file that was written has these tensors and no others, byte for byte."""
    with opened(path) as file:
        return set(file.keys()) == tensors.keys() and all(
            _same(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def _same(first: Tensor, second: Tensor) -> bool:
    """Of the same dtype, shape and bytes, so that NaN is equal to itself and 0 is not -0."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    first, second = (one.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for one in (first, second))
    return torch.equal(first, second)


def check_content(path: Path) -> None:
    """Raise ValueError, naming the file, unless it is complete, finite, and matches its checksum, if it has one: files
    of other programs and older versions have none."""
    try:
        with opened(path) as file:
            written = (file.metadata() or {}).get(CHECKSUM)
            found = checksum(_finite(path, ((name, file.get_tensor(name)) for name in sorted(file.keys()))))
    except (KeyError, TypeError, RuntimeError) as error:  # of dtypes that torch does not have
        raise ValueError(f"{path} cannot be read ({error}); copy it again") from error
    if written not in (None, found):
        raise ValueError(f"{path} is damaged: checksum mismatch")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, for every dtype. In one pass without a copy: infinity and NaN show in the minimum
    and maximum."""
    if tensor.is_complex():
        return is_finite(torch.view_as_real(tensor))
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)  # torch cannot do this for 8-bit floats
    parts = (part.float() for part in flat.split(LOOKED_AT)) if tensor.dtype.itemsize == 1 else (flat,)
    return all(bool(torch.stack(part.aminmax()).isfinite().all()) for part in parts if part.numel())


def _finite(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise ValueError(f"{path} is damaged: {name} has non-finite values")
        yield name, tensor


def _lies(path: Path) -> str:
    return f"{path} is damaged or not a safetensors file"


def _entry(path: Path, name: str, told: Any) -> Entry:
    """A tensor's entry in the header. Raises ValueError, naming both, if it is invalid."""
    if len(name) > LONGEST_NAME or shown(name) != name:
        raise ValueError(f"{_lies(path)}: {shown(name[:80])} is too long for a name or has control "
                         "characters")
    match told:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            fits = len(shape) <= MOST_AXES and all(type(length) is int and 0 <= length < 2**62 for length in shape)
            if fits and 0 <= start <= end and not isinstance(start, bool) and not isinstance(end, bool):
                return Entry(dtype, tuple(shape), start, end - start)
    raise ValueError(f"{path} is damaged: its header has an invalid entry for {name}; download it again")


def _end(path: Path, ordered: dict[str, Entry]) -> int:
    """Where the tensors' bytes end. Raises ValueError, naming the first of `ordered` that does not begin where the one
    before ends, or whose size does not match its shape."""
    end = 0
    for name, entry in ordered.items():
        bits = BITS.get(entry.dtype)
        if bits is None:
            raise ValueError(f"{path}: {name} has the unknown dtype {shown(entry.dtype[:80])}; "
                             "save it with another dtype")
        if entry.start != end or entry.size * 8 != entry.numbers * bits:
            raise ValueError(f"{path} is damaged: its header has an invalid entry for {name}; download it again")
        end += entry.size
    return end
