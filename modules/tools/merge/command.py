"""What `scripts/merge.py` does: identify the base, read the adapters, merge, and write the origin into the result."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules import families
from modules.documents import read_object
from modules.families.parts.index import index_of
from modules.preset.base_options import Base
from modules.preset.section import NUMBER_FORMATS, long_form
from modules.tensorfile import read_header
from modules.tools.merge import sources
from modules.tools.merge.checkpoint import Checkpoint
from modules.tools.merge.into_base import Merged, Options, Source, merge_into, summed

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Choice:
    """Options of the command."""

    dtype: str | None = None
    family: str | None = None
    config: str = ""
    device: str = "cpu"
    skip_absent: bool = False
    skip_unknown: bool = False


@dataclass(frozen=True)
class Adapter:
    """A file and its strength."""

    path: Path
    strength: float = 1.0


def parse(text: str) -> Adapter:
    """`FILE` or `FILE:STRENGTH`. A name with a colon is a file name if there is such a file."""
    name, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return Adapter(Path(text))
    try:
        found = float(strength)
    except ValueError:
        found = math.nan
    if math.isfinite(found):
        return Adapter(Path(name), found)
    if Path(name).exists():
        raise ValueError(f"--adapter {text}: {strength} is not a strength; give a number such as 0.8")
    return Adapter(Path(text))


def merge(base: str, adapters: Sequence[Adapter], out: Path, choice: Choice) -> Merged:
    """Write `base` with the adapters to `out`. Raises ValueError with one sentence for what is wrong."""
    path = Path(base)
    if not path.exists():
        raise ValueError(f"{base} does not exist; give a folder in diffusers layout or a .safetensors checkpoint "
                         "(download a model of the hub first)")
    if choice.dtype is not None and long_form(choice.dtype) not in DTYPES:
        raise ValueError(f"--dtype {choice.dtype}: unknown dtype; choose one of "
                         f"{', '.join([*DTYPES, *NUMBER_FORMATS])}")
    stored = Checkpoint(skeleton(base, choice), path)
    read = [sources.of_file(adapter.path, stored, choice.skip_unknown) for adapter in adapters]
    strengths = [adapter.strength for adapter in adapters]
    total = summed([(source, strength) for (source, _), strength in zip(read, strengths, strict=True)])
    options = Options(
        None if choice.dtype is None else DTYPES[long_form(choice.dtype)], choice.skip_absent, facts(stored, adapters)
    )
    report = merge_into(stored, out, computed_on(choice.device, total), options)
    for adapter, (_, left_out) in zip(adapters, read, strict=True):
        report.notes += [f"{adapter.path}: {text}; left out" for text in left_out]
    return report


def skeleton(base: str, choice: Choice) -> Any:
    """The base's networks without weights. Raises ValueError with what is wrong, or which families there are."""
    given = Base(path=base, config=choice.config)
    if choice.family is not None and choice.family not in families.names():
        raise ValueError(f"--family {choice.family}: unknown family; choose one of {', '.join(families.names())}")
    name = choice.family or family_of(given)
    try:
        return families.load_class(name).skeleton(given)
    except (OSError, ValueError, KeyError) as error:
        said = families.load_class(name).problems(given) or [f"its configuration cannot be read ({error})"]
        raise ValueError(f"{base}: {'; '.join(said)}") from error


def family_of(base: Base) -> str:
    """The family of a base: by the pipeline that a folder's index names, or by the families' checks of a file."""
    kinds, path = families.names(), Path(base.path)
    if path.is_dir():
        index = index_of(path)
        if not index.is_file():
            raise ValueError(f"{path} has no {index.name}, so it is not a diffusers folder; give one, or a "
                             ".safetensors checkpoint")
        pipeline = read_object(index).get("_class_name")
        found = [name for name in kinds if pipeline == families.load_class(name).pipeline_name(base.path)]
        if not found:
            raise ValueError(f"{path} is a {pipeline}, which is not supported; supported are {', '.join(kinds)}")
        return found[0]
    problems = {name: families.load_class(name).problems(base) for name in kinds}
    # A missing configuration does not mean a wrong file.
    fits = [name for name, said in problems.items() if all(text.startswith("base.config") for text in said)]
    if len(fits) != 1:
        listed = "; ".join(said[0] for name, said in problems.items() if said and name not in fits)
        raise ValueError(f"{path}: the model family cannot be determined; give --family, one of "
                         f"{', '.join(fits or kinds)} ({listed})")
    return fits[0]


def facts(base: Checkpoint, adapters: Sequence[Adapter]) -> dict[str, str]:
    """Metadata about the parts of the result."""
    titles = [_title(file.metadata, base.path) for file in list(base.headers.values())[:1]]
    made = []
    for adapter in adapters:
        titles.append(_title(read_header(adapter.path).metadata, adapter.path))
        with adapter.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made.append({"file": adapter.path.name, "strength": adapter.strength, "sha256": digest})
    return {
        "modelspec.merged_from": ", ".join(titles),
        "gimbal.merged_base": base.path.name,
        "gimbal.merged": json.dumps(made),
    }


def computed_on(device: str, source: Source) -> Source:
    """The same source; weights are moved to `device` for computing."""
    if device == "cpu":
        return source

    def changed(layer: str, kind: str, W: Tensor, *row: int) -> Tensor:
        return source.changed(layer, kind, W.to(device), *row).cpu()

    return Source(source.targets, changed, source.by_rows)


def _title(metadata: dict[str, str], path: Path) -> str:
    return metadata.get("modelspec.title") or metadata.get("ss_output_name") or path.stem
