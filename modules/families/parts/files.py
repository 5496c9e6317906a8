"""Single-file checkpoints and weights: what a file has and lacks, and hashes."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules import quant
from modules.families.parts import given_base
from modules.families.parts.index import INDEX
from modules.preset.base_options import Base
from modules.tensorfile import read_header

ABOUT_FILES = ("architectures", "dtype", "transformers_version")
"""Entries of transformers' configurations that say how a file was written; those of diffusers begin with `_`."""

COMPUTING = ("torch", "diffusers", "transformers")
"""Libraries whose versions may change the last bits."""
TEXTS = (".json", ".txt", ".model", ".jinja")
"""Ends of the names of configurations and tokenizers."""

PICKLES = (".bin", ".pt", ".ckpt")
"""Ends of the names of weights that are read where there is no .safetensors file."""


def tensor_names(path: str) -> set[str] | None:
    """Names of the tensors in a safetensors file; None if it is not one."""
    try:
        return set(read_header(Path(path)).tensors)
    except ValueError:
        return None


def is_named(path: str, word: str) -> bool:
    """Whether the last part of `path` has this word: what tells variants apart whose tensors are called alike."""
    return word in Path(path).name.lower()


def files_of_parts(
    source: str, without: Collection[str], weights: Collection[str] | None = None, name: str = INDEX
) -> dict[str, Path]:
    """The files of a folder in diffusers layout, or of the hub's model `source` as far as it is here, by `part/name`.
    Parts in `without` are left out, and weights of parts that are not in `weights`; None: of none. `name`: the index.
    """
    from huggingface_hub import try_to_load_from_cache

    here = Path(source) / name if Path(source).is_dir() else try_to_load_from_cache(source, name)
    if not isinstance(here, str | Path):
        return {}
    here = Path(here)
    try:
        index = json.loads(here.read_text(encoding="utf-8"))
        parts = [part for part, kind in index.items() if isinstance(kind, list) and kind[0] and part not in without]
    except (OSError, ValueError, AttributeError, IndexError, RecursionError):
        return {}  # loading reports what is wrong with it
    found = {name: here}
    for part in parts:
        folder = here.parent / part
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        found |= {f"{part}/{path.name}": path for path in paths if path.suffix in TEXTS and path.is_file()}
        if weights is None or part in weights:
            found |= {f"{part}/{path.name}": path for path in _weights(paths)}
    return found


def _weights(paths: Sequence[Path]) -> Iterator[Path]:
    """The files with weights that are read of a folder's: not pickles where there is a .safetensors file, and no
    variant (`model.fp16.safetensors`) where there is the usual one."""
    suffixes = (".safetensors",) if any(path.suffix == ".safetensors" for path in paths) else PICKLES
    found = [path for path in paths if path.suffix in suffixes]
    usual = [path for path in found if "." not in path.stem]
    yield from usual or found


def checkpoint_problems(path: str, title: str, parts: dict[str, str]) -> list[str]:
    """What a single checkpoint lacks. Reads the file's header only.

    `parts`: the parts in words, by a tensor of each.
    """
    names = tensor_names(path)
    if names is None:
        return [f"base.path: {path} is damaged or not a .safetensors file; download it again"]
    lacking = [part for key, part in parts.items() if key not in names]
    if not lacking:
        return []
    wanted = f"{', '.join(words[:-1])} and {words[-1]}" if len(words := list(parts.values())) > 1 else words[0]
    return [f"base.path: {path} is not a complete checkpoint of {title}: it lacks {', '.join(lacking)}; give one that "
            f"has {wanted}, or a folder in diffusers layout"]


def config_problems(base: Base, configs: Sequence[str], hub_id: str) -> list[str]:
    """Which of `configs` the configuration beside a single checkpoint lacks: `base.config`, or the hub's copy of
    `hub_id`."""
    from huggingface_hub import try_to_load_from_cache

    if base.config:
        lacking = [name for name in configs if not (Path(base.config) / name).is_file()]
        return [f"base.config: {base.config} has no {', '.join(lacking)}"] if lacking else []
    lacking = [name for name in configs if not isinstance(try_to_load_from_cache(hub_id, name), str)]
    if not lacking or not given_base.problems(Base(path=hub_id), lacking[0], hub_id):
        return []
    return [f"base.config: a single checkpoint needs the configuration of {hub_id}, which is not in the hub's local "
            "cache, and the hub cannot be reached; give --base.config with a folder in diffusers layout (its weights "
            "are not needed)"]


def refuse_gaps(networks: dict[str, Any]) -> None:
    """diffusers leaves weights that a checkpoint lacks on the meta device, where the first use of them fails."""
    for part, network in networks.items():
        gaps = [name for name, tensor in network.named_parameters() if tensor.is_meta]
        if gaps:
            raise ValueError(f"weights of {part} are missing: {', '.join(gaps[:3])} ({len(gaps)} in all)")


def weights_hash(*networks: nn.Module) -> str:
    """sha256 over names and bytes of the base weights; adapters do not change it. Takes all processes where weights
    are sharded."""
    total = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            if ".adapter." in name:
                continue
            total.update(name.replace(".base.", ".").encode())
            total.update(quant.whole(tensor.detach()).cpu().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def settings(config: Any) -> str:
    """A network's configuration, without what does not affect its results."""
    entries = config if isinstance(config, dict) else config.to_dict()
    return json.dumps(_without_files(entries), sort_keys=True, default=str)


def _without_files(entries: Any) -> Any:
    """Entries of a configuration, and of those in it, without what says how a file was written."""
    if not isinstance(entries, dict):
        return entries
    return {name: _without_files(value) for name, value in entries.items()
            if not str(name).startswith("_") and name not in ABOUT_FILES}


def tokenizing(tokenizer: Any) -> str:
    """All that decides how a tokenizer splits texts."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    del rules["padding"], rules["truncation"]  # those of the last call
    limits = tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side
    return json.dumps([rules, limits, tokenizer.special_tokens_map], sort_keys=True, default=str)


def computing(device: torch.device) -> str:
    """What affects the last bits of a result besides weights and input."""
    machine = [device.type]
    if device.type == "cuda":
        machine.append(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        machine.append(f"{torch.get_num_threads()} threads")
    return json.dumps([machine, {name: version(name) for name in COMPUTING}])
