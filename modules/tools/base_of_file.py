"""The base that a foreign file is for: found from the file's names, loaded in the dtype it is stored in."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from modules import families
from modules.documents import read_object
from modules.families.parts.index import index_of
from modules.files.opening import AdapterFile
from modules.files.reading import families_of
from modules.preset.base_options import Base
from modules.tensorfile import read_header

SIZES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(file: AdapterFile, path: str, config: str = "", family: str = "", device: str = "cpu") -> Any:
    """The model at `path`, frozen, with its denoiser on `device`; `family` only if the names are ambiguous.

    Raises ValueError with a sentence if the base cannot be read as any family that the file may be for.
    """
    base = Base(path=path, config=config)
    if family and family not in families.names():
        raise ValueError(f"--family {family}: unknown family; choose one of {', '.join(families.names())}")
    candidates = [family] if family else families_of(file.tensors) or families.names()
    problems = {name: families.load_class(name).problems(base) for name in candidates}
    readable = [name for name, found in problems.items() if not found and is_its(Path(path), name)]
    if not readable:
        titles = " or ".join(families.load_class(name).TITLE for name in candidates)
        other = f"{path} is not a base for {file.path}, which is for {titles}"
        raise ValueError("\n".join(problems[candidates[0]]) or other)
    if len(readable) > 1:
        raise ValueError(f"{file.path}: its names and the base fit {' and '.join(readable)}; choose one with --family")
    try:
        model = families.load_class(readable[0]).load(base, torch.device(device), stored_dtype(Path(path)), False)
    except (OSError, KeyError) as error:
        raise ValueError(f"base.path: {path} cannot be read: {error}") from error
    model.place(base, texts=True)
    return model


def is_its(path: Path, family: str) -> bool:
    """Whether a folder in diffusers layout is this family's; True for anything else."""
    index = index_of(path)
    if not index.is_file():
        return True
    return read_object(index).get("_class_name") == families.load_class(family).PIPELINE


def stored_dtype(path: Path) -> torch.dtype:
    """The dtype of most of a base's layers, so that none is rounded and none needs more memory.

    float32 if unknown.
    """
    folders = [path / part for part in ("unet", "transformer")] if path.is_dir() else []
    found = [path] if path.is_file() else [one for folder in folders for one in sorted(folder.glob("*.safetensors"))]
    counts: Counter[str] = Counter()
    for one in found:
        with suppress(ValueError):  # loading reports what is wrong with it
            counts.update(entry.dtype for entry in read_header(one).tensors.values())
    return SIZES.get(counts.most_common(1)[0][0], torch.float32) if counts else torch.float32
