"""Training states: everything a run needs to go on bit for bit, as safetensors and JSON (never pickle).

    <run folder>/state/step-001000/adapter.safetensors
                                   optimizer.safetensors    the tensors of the optimizer's state
                                   state.json               step, facts, the optimizer's other values, checksums

A state is written under another name and renamed when it is complete, so at any time the old or the new one is whole.
"""

import copy
import hashlib
import json
import logging
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from modules.training.optimizers import unwrapped

FOLDER = "state"
PARTIAL = ".partial"  # being written or deleted
REPLACED = ".replaced"  # the old state of the same step, until the new one has its name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """A training state read from disk. Tensors are on the CPU."""

    step: int
    adapter: dict[str, Tensor]
    optimizer_state: dict
    facts: dict


def save_state(folder: Path, step: int, adapter: dict[str, Tensor], optimizer: Optimizer, facts: dict) -> Path:
    """Write `state/step-<step>/` into the run folder and return its path.

    `step` is the number of finished steps. `facts` holds whatever else has to come back: numbers, texts, lists, dicts.
    A state of the same step is replaced.
    """
    final = folder / FOLDER / f"step-{step:06d}"
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    tensors: dict[str, Tensor] = {}
    values = flatten(_optimizer_state(optimizer), "", tensors, {})
    save_file({name: _plain(tensor) for name, tensor in adapter.items()}, partial / "adapter.safetensors")
    save_file(tensors, partial / "optimizer.safetensors")
    sums = {name: _checksum(partial / name) for name in ("adapter.safetensors", "optimizer.safetensors")}
    nothing: dict[str, Tensor] = {}
    contents = {"step": step, "facts": flatten(facts, "", nothing, {}), "optimizer": values, "sha256": sums}
    assert not nothing, f"facts are no place for tensors: {list(nothing)}"
    text = json.dumps({"contents": contents, "sha256": _text_checksum(contents)}, indent=1, allow_nan=False)
    (partial / "state.json").write_text(text, encoding="utf-8")

    for path in (*partial.iterdir(), partial):
        _to_disk(path)
    if final.exists():
        replaced = final.with_name(final.name + REPLACED)
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced)
    else:
        partial.rename(final)
    _to_disk(final.parent)
    return final


def load_state(folder: Path) -> State:
    """Read a state from its folder, `state/step-<step>`. Raises ValueError if it is incomplete or damaged."""
    try:
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        contents = document["contents"]
        whole = document["sha256"] == _text_checksum(contents)
        whole = whole and all(_checksum(folder / name) == found for name, found in contents["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the training state {folder} is incomplete or unreadable ({error}): delete it") from error
    if not whole:
        raise ValueError(f"the training state {folder} is damaged (a checksum differs): delete it")
    tensors = load_file(folder / "optimizer.safetensors")
    return State(
        step=contents["step"],
        adapter=load_file(folder / "adapter.safetensors"),
        optimizer_state=unflatten(contents["optimizer"], tensors),
        facts=unflatten(contents["facts"], {}),
    )


def restore_optimizer(optimizer: Optimizer, state: State) -> None:
    """Put a saved state into a freshly built optimizer over the same parameters, also one that accelerate prepared."""
    inner = unwrapped(optimizer)
    saved = state.optimizer_state
    if saved["class"] != type(inner).__name__:
        raise ValueError(f"the training state is of optimizer {saved['class']}, not of {type(inner).__name__}")
    # torch's optimizers keep the very tensors they are given, and the next step would write into `state`.
    inner.load_state_dict(copy.deepcopy(saved["state"]))
    _page_again(inner)
    if saved["scaler"]:
        optimizer.scaler.load_state_dict(saved["scaler"])  # pyright: ignore


def latest_state(run_folder: Path) -> Path | None:
    """Folder of the whole state with the most steps. Damaged ones are skipped with a warning."""
    for folder in reversed(_states(run_folder)):
        try:
            load_state(folder)
        except ValueError as error:
            log.warning("%s; the state before it is used", error)
        else:
            return folder
    return None


def prune_states(run_folder: Path, keep: int) -> None:
    """Delete all but the last `keep` states.

    States with more steps than the one written last go too: they were damaged, and the run went on from before them.
    """
    states = _states(run_folder)
    if not states:
        return
    times = [folder.stat().st_mtime_ns for folder in states]
    current = max(range(len(states)), key=lambda place: (times[place], place))
    for folder in states[: max(0, current + 1 - keep)] + states[current + 1 :]:
        dying = folder.with_name(folder.name + PARTIAL)  # if this is interrupted, half a state has no state's name
        folder.rename(dying)
        shutil.rmtree(dying)


def tidy_states(run_folder: Path) -> None:
    """Clear up after a crash: called once when a run starts, before anything is read."""
    for replaced in (run_folder / FOLDER).glob(f"step-*{REPLACED}"):
        final = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if final.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(final)
    for partial in (run_folder / FOLDER).glob(f"step-*{PARTIAL}"):
        shutil.rmtree(partial)


def flatten(value: Any, name: str, tensors: dict[str, Tensor], seen: dict[tuple, str]) -> Any:
    """`value` as JSON, with its tensors moved into `tensors` under names that begin with `name`.

    Anything but plain numbers, texts, booleans and None becomes a list `[kind, ...]`. A tensor that occurs several
    times (`seen`, by memory, shape and stride) is stored once.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ["float", repr(value)]
    if isinstance(value, dict):
        items = [[key, flatten(item, f"{name}.{key}", tensors, seen)] for key, item in value.items()]
        assert all(type(key) in (str, int) for key in value), list(value)
        return ["dict", items]
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [flatten(item, f"{name}.{place}", tensors, seen) for place, item in enumerate(value)]]
    assert isinstance(value, Tensor), f"{name} is a {type(value).__name__}"
    memory = (value.data_ptr() if value.numel() else id(value), value.dtype, value.shape, value.stride())
    if memory not in seen:
        seen[memory] = name.removeprefix(".")
        tensors[seen[memory]] = _plain(value)
    # Only dense tensors keep their stride; `empty_like` tells them apart.
    dense = torch.empty_like(value).stride() == value.stride()
    return ["tensor", seen[memory], list(value.stride()) if dense and not value.is_contiguous() else None]


def unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`. A tensor that was stored once for several places is one tensor again."""
    if not isinstance(value, list):
        return value
    kind, content = value[:2]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in content}
    if kind == "list":
        return [unflatten(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in content)
    assert kind == "tensor", kind
    tensor, stride = tensors[content], value[2]
    if stride is not None and tensor.stride() != tuple(stride):
        tensors[content] = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
    return tensors[content]


def _optimizer_state(optimizer: Optimizer) -> dict:
    """All of an optimizer's state, with the loss scale that accelerate keeps beside it for float16."""
    inner = unwrapped(optimizer)
    scaler = optimizer.scaler if inner is not optimizer else None  # pyright: ignore
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # bitsandbytes' paged states are read as main memory while the GPU may still write
    return {
        "class": type(inner).__name__,
        "state": inner.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
    }


def _page_again(optimizer: Optimizer) -> None:
    """bitsandbytes' `load_state_dict` leaves the states of a paged optimizer in GPU memory; move them back."""
    from bitsandbytes.optim.optimizer import Optimizer8bit

    if not isinstance(optimizer, Optimizer8bit) or not optimizer.is_paged:
        return
    for parameter, state in optimizer.state.items():
        for name in ("state1", "state2"):
            if name in state and parameter.numel() >= 1e5:  # where bitsandbytes itself begins to page
                loaded = state[name]
                state[name] = _paged(loaded, parameter.device)
                optimizer.page_mng.paged_tensors.append(state[name])
    torch.cuda.synchronize()


def _paged(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of `tensor` in memory that CUDA moves between GPU and main memory."""
    import bitsandbytes.functional as bnb

    paged = bnb.get_paged(*tensor.shape, dtype=tensor.dtype, device=device)
    paged.copy_(tensor)
    return paged


def _states(run_folder: Path) -> list[Path]:
    """The complete states of a run, fewest steps first."""
    folders = [p for p in (run_folder / FOLDER).glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))


def _plain(tensor: Tensor) -> Tensor:
    """A copy that safetensors accepts: on the CPU, contiguous, sharing no memory."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _text_checksum(contents: dict) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    """Make sure a file, or the names in a folder, survive a power cut. Windows has no such thing for folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
