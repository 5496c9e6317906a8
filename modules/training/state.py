"""Training states: everything a run needs to resume bit for bit, as safetensors and JSON (never pickle).

    <run folder>/state/step-001000/adapter.safetensors
                                   optimizer.safetensors    the tensors of the optimizer's state
                                   ema.safetensors          the moving average, where there is one
                                   preset.json              and other texts that are given
                                   state.json               step, facts, the optimizer's other values, checksums
                       step-001100.unusable                 was damaged, and the run resumed from a state before it

A state is written under another name and renamed when it is complete, so at any time the old or the new one is intact.
Which one is the newest follows from the number of steps alone, never from a clock.
"""

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from modules.disk import PARTIAL, DiskFull, full_sentence, is_full, make_folder, to_disk
from modules.documents import check_file, read_text
from modules.tensorfile import read_header
from modules.training.finite import non_finite
from modules.training.optimizers import unwrapped
from modules.training.trees import flatten, plain, unflatten

FOLDER = "state"
BEST = "best"
"""A folder in the run folder that has such a folder itself, with the state of the best adapter (`best`)."""
REPLACED = ".replaced"  # the old state of the same step, until the new one has its name
LARGEST = 2**28  # bytes of state.json: what an optimizer keeps beside its tensors
UNUSABLE = ".unusable"  # newer than the state from which the run resumed

NAME = re.compile("step-[0-9]{1,18}")

TENSORS = ("adapter.safetensors", "optimizer.safetensors")
EMA = "ema.safetensors"

DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, SafetensorError)
"""What reading a damaged file may raise."""


@dataclass(frozen=True)
class State:
    """A training state read from disk. Tensors are on the CPU."""

    folder: Path
    step: int
    adapter: dict[str, Tensor]
    optimizer_state: dict
    facts: dict
    texts: dict[str, str]
    """The texts that were saved with it, by file name."""
    ema: dict[str, Tensor] = field(default_factory=dict)
    """The moving average (`Ema.tensors`)."""


def save_state(
    folder: Path,
    step: int,
    adapter: dict[str, Tensor],
    optimizer: Optimizer,
    facts: dict,
    texts: Mapping[str, str] | None = None,
    ema: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `state/step-<step>/` into the run folder and return its path.

    `step` is the number of finished steps. `facts` holds whatever else has to be restored: numbers, texts, lists,
    dicts; `texts` are files beside it, by name; `ema` is the moving average. A state of the same step is replaced.
    Raises DiskFull, and leaves nothing behind then.
    """
    final = folder / FOLDER / f"step-{step:06d}"
    partial = final.with_name(final.name + PARTIAL)
    try:
        remove(partial)
        make_folder(final.parent)
        partial.mkdir()
        if ema:
            save_file({name: plain(tensor) for name, tensor in ema.items()}, partial / EMA)
        _write(partial, step, adapter, optimizer, facts, texts or {})
        for path in (*partial.iterdir(), partial):
            to_disk(path)
    except Exception as error:
        remove(partial)
        if is_full(error):
            raise DiskFull(full_sentence(final)) from error
        raise
    if final.exists():
        replaced = final.with_name(final.name + REPLACED)
        remove(replaced)
        final.rename(replaced)
        partial.rename(final)
        remove(replaced)
    else:
        partial.rename(final)
    to_disk(final.parent)
    return final


def _write(
    folder: Path, step: int, adapter: dict[str, Tensor], optimizer: Optimizer, facts: dict, texts: Mapping[str, str]
) -> None:
    """The files of a state."""
    tensors: dict[str, Tensor] = {}
    values = flatten(_optimizer_state(optimizer), "", tensors, {})
    save_file({name: plain(tensor) for name, tensor in adapter.items()}, folder / TENSORS[0])
    save_file(tensors, folder / TENSORS[1])
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    nothing: dict[str, Tensor] = {}
    contents = {
        "step": step,
        "facts": flatten(facts, "", nothing, {}),
        "optimizer": values,
        "sha256": {name: checksum(folder / name) for name in (*TENSORS, EMA, *texts) if (folder / name).exists()},
    }
    assert not nothing, f"facts must not have tensors: {list(nothing)}"
    text = json.dumps({"contents": contents, "sha256": _text_checksum(contents)}, indent=1, allow_nan=False)
    (folder / "state.json").write_text(text, encoding="utf-8")


def load_state(folder: Path) -> State:
    """Read a state from its folder, `state/step-<step>`. Raises ValueError if it is incomplete or damaged."""
    contents = read_contents(folder)
    try:
        tensors = load_file(folder / TENSORS[1])
        found = State(
            folder=folder,
            step=contents["step"],
            adapter=load_file(folder / TENSORS[0]),
            optimizer_state=unflatten(contents["optimizer"], tensors),
            facts=unflatten(contents["facts"], {}),
            texts=_texts(folder, contents),
            ema=load_file(folder / EMA) if EMA in contents["sha256"] else {},
        )
        wrong = non_finite({**found.adapter, **found.ema}, found.optimizer_state["state"])
    except DAMAGE as error:
        raise unreadable(folder, error) from error
    if wrong:
        raise ValueError(f"the training state {folder} cannot be used: non-finite values in {wrong}")
    return found


def read_texts(folder: Path) -> tuple[dict, dict[str, str]]:
    """The facts of a state and its texts by name, without its tensors. Raises ValueError as `load_state` does."""
    contents = read_contents(folder, tensors=False)
    try:
        return unflatten(contents["facts"], {}), _texts(folder, contents)
    except DAMAGE as error:
        raise unreadable(folder, error) from error


def _texts(folder: Path, contents: dict) -> dict[str, str]:
    names = [name for name in contents["sha256"] if not _has_tensors(name)]
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def _has_tensors(name: str) -> bool:
    return name.endswith(".safetensors")


def read_contents(folder: Path, tensors: bool = True) -> dict:
    """The contents of `state.json`. Verifies its own checksum and those of the other files, of files with tensors only
    if `tensors`. Raises ValueError."""
    try:
        document = json.loads(read_text(folder / "state.json", LARGEST))
        contents = document["contents"]
        whole = document["sha256"] == _text_checksum(contents)
        sums = contents["sha256"]
        wanted = [name for name in (*TENSORS, *sums) if tensors or not _has_tensors(name)]
        for name in wanted:  # before they are read: a pipe would block, and a sparse file may have a terabyte
            read_header(folder / name) if _has_tensors(name) else check_file(folder / name)
        whole = whole and all(checksum(folder / name) == sums[name] for name in dict.fromkeys(wanted))
        step = contents["step"]
    except DAMAGE as error:
        raise unreadable(folder, error) from error
    if not whole:
        raise ValueError(f"the training state {folder} is damaged: checksum mismatch")
    if step != steps_of(folder):
        raise ValueError(f"the training state {folder} is in the wrong folder: it was saved at step {step}")
    return contents


def unreadable(folder: Path, error: BaseException) -> ValueError:
    """The error for a state that cannot be read."""
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__
    return ValueError(f"the training state {folder} is incomplete or unreadable ({reason})")


def check_optimizer(optimizer: Optimizer, state: State) -> None:
    """Raise ValueError if a state is of another optimizer, or of one over other parameters."""
    inner, saved = unwrapped(optimizer), state.optimizer_state
    if saved["class"] != type(inner).__name__:
        raise ValueError(f"it was saved with optimizer {saved['class']}, not {type(inner).__name__}")
    before, now = saved["state"]["param_groups"], inner.param_groups
    if [len(group["params"]) for group in before] != [len(group["params"]) for group in now]:
        raise ValueError("its optimizer has other parameter groups")


def restore_optimizer(optimizer: Optimizer, state: State) -> None:
    """Put a saved state into a freshly built optimizer over the same parameters, also one that accelerate prepared.
    Raises ValueError as `check_optimizer` does."""
    check_optimizer(optimizer, state)
    inner, saved = unwrapped(optimizer), state.optimizer_state
    # torch's optimizers keep the very tensors they are given, and the next step would write into `state`.
    inner.load_state_dict(copy.deepcopy(saved["state"]))
    _page_again(inner)
    if saved["scaler"]:
        optimizer.scaler.load_state_dict(saved["scaler"])  # pyright: ignore


def newest(run_folder: Path) -> tuple[Path | None, list[str]]:
    """Folder of the intact state with the most steps; and why each with more steps is not intact, in sentences."""
    reasons = []
    for folder in reversed(states(run_folder)):
        try:
            load_state(folder)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return folder, reasons
    return None, reasons


def latest_state(run_folder: Path) -> Path | None:
    """Folder of the intact state with the most steps."""
    return newest(run_folder)[0]


def none_left(run_folder: Path, reasons: Sequence[str]) -> str:
    """The message where a run has states and none of them can be used."""
    listed = "\n".join(f"  {reason}" for reason in reasons)
    return (
        f"{run_folder} has training states, but none of them can be resumed from:\n{listed}\nRestore a copy of one "
        f"of them, or train under another name (--name); to start at step 0 again, move {run_folder / FOLDER} away."
    )


def put_aside(folders: Sequence[Path]) -> None:
    """Rename unusable states, so that they are never counted or chosen again. The one with the most steps of them is
    kept, those that were renamed before are deleted."""
    if not folders:
        return
    *others, last = sorted(folders, key=steps_of)
    for path in (*last.parent.glob(f"step-*{UNUSABLE}"), *others):
        delete(path)
    last.rename(last.with_name(last.name + UNUSABLE))


def prune_states(run_folder: Path, keep: int, written: Path) -> None:
    """Delete the states before the last `keep` intact ones, of which `written`, just saved, is the last."""
    older = [folder for folder in states(run_folder) if steps_of(folder) <= steps_of(written)]
    if len(older) <= keep:
        return
    whole = 0
    for folder in reversed(older):
        if whole >= keep:
            delete(folder)
        elif folder == written or is_whole(folder):
            whole += 1


def is_whole(folder: Path) -> bool:
    """Whether a state's checksums are right."""
    try:
        read_contents(folder)
    except ValueError:
        return False
    return True


def tidy_states(run_folder: Path) -> None:
    """Clear up after a crash: called once when a run starts, before anything is read."""
    place = run_folder / FOLDER
    if not place.is_dir():
        return
    for replaced in place.glob(f"step-*{REPLACED}"):
        final = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if final.exists():
            remove(replaced)
        else:
            replaced.rename(final)
    for partial in place.glob(f"step-*{PARTIAL}"):
        remove(partial)


def states(run_folder: Path) -> list[Path]:
    """All that has a state's name, intact or not, fewest steps first."""
    place = run_folder / FOLDER
    found = [path for path in place.iterdir() if NAME.fullmatch(path.name)] if place.is_dir() else []
    return sorted(found, key=steps_of)


def steps_of(folder: Path) -> int:
    """The number of steps in a state's name."""
    return int(folder.name.removeprefix("step-"))


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete(folder: Path) -> None:
    """Delete a state. If that is interrupted, the rest does not have a state's name."""
    dying = folder.with_name(folder.name + PARTIAL)
    remove(dying)
    folder.rename(dying)
    remove(dying)


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


def checksum(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _text_checksum(contents: dict) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
