"""What can be wrong with base.path and base.config, of any family, before anything is loaded."""

import re
from pathlib import Path

from modules.families.parts.index import index_of
from modules.preset.base_options import Base, is_hub_id
from modules.tensorfile import A_PICKLE, PICKLES


def problems(base: Base, index: str, example: str) -> list[str]:
    """What is wrong with `base.path`: `index` is the file that marks a diffusers folder, `example` a hub id."""
    path = Path(base.path)
    how = f"give --base with a diffusers folder, a .safetensors checkpoint or a hub id such as {example}"
    if not base.path:
        return [f"base.path: no model given; {how}"]
    if path.is_dir():
        missing = f"base.path: {path} has no {index}, so it is not a diffusers folder; {how}"
        return [] if index_of(path).is_file() else [missing]
    if path.is_file():
        if found := unread_problems("base.path", path):
            return found
        wrong = path.suffix != ".safetensors"
        if path.suffix in PICKLES:
            how = f"convert it to .safetensors in a sandbox, or {how}"
            return [f"base.path: {path} is not a .safetensors file but {A_PICKLE}; {how}"]
        return [f"base.path: {path} is not a .safetensors file; {how}"] if wrong else _config_problems(base, index)
    looks_local = path.suffix in (".safetensors", ".ckpt", ".pt", ".bin") or base.path.startswith((".", "/"))
    if base.path.count("/") != 1 or looks_local:
        return [f"base.path: {base.path} does not exist; {how}"]
    return _hub_problems(base.path, index, how)


def unread_problems(option: str, path: Path) -> list[str]:
    """Whether a file is one that other programs read, and that is not read here."""
    if path.suffix.lower() == ".gguf":
        return [f"{option}: {path} is a GGUF file, which is not read; give a .safetensors file in bf16, fp16, plain or "
                "scaled fp8, and save memory with base.quantization"]
    shard = re.search(r"-\d{5}-of-(\d{5})\.safetensors$", path.name)
    if path.name.endswith(".safetensors.index.json") or shard and int(shard[1]) > 1:
        what = f"one of {int(shard[1])} files" if shard else "the list of several files"
        return [f"{option}: {path} is {what} with a part of a model; give one file that has all of it, or the whole "
                "model's folder in diffusers layout as base.path"]
    return []


def _config_problems(base: Base, index: str) -> list[str]:
    if base.config and not index_of(Path(base.config)).is_file():
        if is_hub_id(base.config):
            return [f"base.config: {base.config} is no folder here, but may be a model on the hub; download its small "
                    f"files with: hf download {base.config} --exclude '*.safetensors' --local-dir FOLDER, and give "
                    "that folder"]
        return [f"base.config: {base.config} has no {index}; give a folder in diffusers layout, or leave it empty"]
    return []


def _hub_problems(name: str, index: str, how: str) -> list[str]:
    """Whether the hub, or its local cache, has model `name`. Asks the hub only for what is not in the cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(try_to_load_from_cache(name, index), str):
        return []
    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
    except OSError as error:  # no network, no name server, a proxy that refuses
        reason = f"the hub cannot be reached ({type(error).__name__})"
    except Exception as error:  # noqa: BLE001  httpx's own errors derive from Exception alone
        if not type(error).__module__.startswith("httpx"):
            raise
        reason = f"the hub cannot be reached ({type(error).__name__})"
    else:
        return []
    return [f"base.path: {name} is neither a local folder or file nor in the hub's local cache; {reason}; {how}"]
