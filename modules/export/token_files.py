"""Writes what new tokens have learned: into the adapter file with OneTrainer's keys, and as files for ComfyUI and
A1111, in which the name of the file is the word to type."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from modules import disk, tensorfile
from modules.files.embeddings import key_in_bundle

FOLDER = ".embeddings"
"""Suffix of the folder beside the adapter file that has the embedding files."""
FILE_KEYS = {"t5": "t5xxl"}
"""Names in embedding files that differ from those in a bundle."""
ALONE = "emb_params"
"""The name where there is one text encoder."""

Vectors = Mapping[str, Mapping[str, Tensor]]
"""By token, and by text encoder as OneTrainer names it: `(n, dim)`."""
NO_TOKENS: Vectors = MappingProxyType({})


def bundle(tokens: Vectors) -> dict[str, Tensor]:
    """Tensors for the adapter file."""
    return {key_in_bundle(token, key): tensor for token, own in tokens.items() for key, tensor in own.items()}


def in_file(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A token's tensors as its own file has them."""
    if len(own) == 1:
        return {ALONE: next(iter(own.values()))}
    return {FILE_KEYS.get(key, key): tensor for key, tensor in own.items()}


def file_name(token: str) -> str:
    """A token as the name of a file, which programs take as its word."""
    return re.sub(r'[<>:"|?*]', "", token) or "token"


def folder_of(adapter: Path) -> Path:
    """The folder of the embedding files that belong to an adapter file."""
    return adapter.with_suffix(FOLDER)


def write(adapter: Path, tokens: Vectors, metadata: Mapping[str, str]) -> list[Path]:
    """Write a file for each token beside the file `adapter`; their paths. Raises DiskFull as `disk.whole`."""
    written = []
    for token, own in tokens.items():
        path = folder_of(adapter) / f"{file_name(token)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.whole(path) as partial:
            tensorfile.save(in_file(own), partial, dict(metadata))
        written.append(path)
    return written
