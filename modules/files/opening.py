"""Opens adapter files of any program: safetensors only, with one sentence for what is wrong with a file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from modules import documents, tensorfile
from modules.files.writer import PEFT_OPTIONS
from modules.tensorfile import A_PICKLE, PICKLES, opened

PROTOCOLS = (b"\1", b"\2", b"\3", b"\4", b"\5")
"""The second bytes of pickles."""

LIKELY_HEADER = 100_000_000
"""Bytes. safetensors' own limit; a larger value is not a header length."""

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""peft's file, and its options beside it."""


@dataclass(frozen=True)
class AdapterFile:
    """A file as it is: nothing is interpreted yet."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    """peft's options, from the file beside it or from diffusers' metadata; empty if there are none."""

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read(path: Path, values: bool = True) -> AdapterFile:
    """The file at `path`. Raises ValueError with one sentence if it is not a complete safetensors file of finite
    values.

    Tensors are memory-mapped, not read. Without `values` none is checked either, and callers use `refuse_not_finite`.
    Nothing is ever unpickled.
    """
    _check_bytes(path)
    try:
        with opened(path) as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (KeyError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read ({_first_line(error)}); copy or download it again") from error
    if not tensors:
        raise ValueError(f"{path} holds no tensors; it is not an adapter file")
    if values:
        refuse_not_finite(path, tensors)
    return AdapterFile(path, metadata, tensors, _config(path, metadata))


def refuse_not_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """ValueError, naming the file and the tensor, where one of `tensors` (by key) has a non-finite value."""
    for key, tensor in tensors.items():
        if not tensorfile.is_finite(tensor):
            raise ValueError(f"{path}: {key} has non-finite values; the training that wrote the file has diverged, so "
                             "use an earlier save")


def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    """Write a file, with a checksum of these tensors. Raises OSError with a sentence, and leaves no file, if it cannot
    be written."""
    tensorfile.save(tensors, path, metadata)


def save_for_hashes(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the file that kohya's hashes are made of, with the keys `ss_*` of `metadata` alone; raises as `save`."""
    tensorfile.write(tensors, path, {key: value for key, value in metadata.items() if key.startswith("ss_")})


def _check_bytes(path: Path) -> None:
    """ValueError for what can be checked without reading the file."""
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        example = f", such as {inside[0]}" if inside else ""
        raise ValueError(f"{path} is a folder; give a .safetensors file{example}")
    size = documents.check_file(path, "a .safetensors file")
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path} is {A_PICKLE}; save it "
                         "as .safetensors with the program that wrote it")
    room = psutil.virtual_memory().available
    if size > room:
        raise ValueError(f"{path} has {size / 2**30:.1f} GiB, but only {room / 2**30:.1f} GiB of main memory are free; "
                         "it is not an adapter, or needs a machine with more memory")
    if size == 0:
        raise ValueError(f"{path} is empty; copy or download it again")
    with path.open("rb") as file:  # an OSError names the file
        start = file.read(8)
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in PROTOCOLS and any(start[2:])):
        raise ValueError(f"{path} is a pickle file named like a safetensors file; it is not opened, because a pickle "
                         "can run any code; save it as .safetensors with the program that wrote it")
    length = int.from_bytes(start, "little")
    if size < 8 or not 2 <= length <= LIKELY_HEADER:
        raise ValueError(f"{path} is not a safetensors file: it does not begin with a header length")
    if length > size - 8:
        raise ValueError(f"{path} is damaged: its header should have {length} bytes, but the file has {size}; copy or "
                         "download it again")


def _config(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """peft's options. Raises ValueError if they cannot be read."""
    beside = path.with_name(CONFIG)
    if path.name == WEIGHTS and beside.is_file():  # it does not describe other files there, such as converted ones
        return documents.read_object(beside)
    if PEFT_OPTIONS in metadata:
        place = f"{path}: {PEFT_OPTIONS}"
        return documents.as_object(documents.parse_json(metadata[PEFT_OPTIONS], place), place)
    return {}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
