"""Writes training states, and what all files say about the training."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from modules.files.facts import Facts, facts_of
from modules.preset.files import to_json
from modules.training import fingerprints, resuming, state
from modules.training.session import Session, sample_prompts

NOTHING: Mapping[str, Any] = MappingProxyType({})


def training_facts(session: Session) -> Facts:
    """Facts about this training for its files' metadata."""
    epoch = int(session.batches.epoch(session.step))
    prompts = sample_prompts(session.preset, session.index)
    pictures = [picture for picture in session.index.pictures if picture.role == "train"]
    return facts_of(pictures, session.preset, session.step, epoch, session.started, time.time(), prompts)


def save(session: Session) -> None:
    """Write a training state; older ones are deleted. Raises FloatingPointError, in all processes, rather than save
    non-finite values."""
    tensors = session.check_finite()
    if not session.accelerator.is_main_process:
        return
    session.check_folder()
    path = write(session, session.run.folder, tensors)
    resuming.prune(session, path)
    session.events.write("saved", {"what": "state", "path": os.fspath(path), "step": session.step, "bytes": size(path)})


def write(session: Session, place: Path, tensors: dict[str, Tensor], more: Mapping[str, Any] = NOTHING) -> Path:
    """Write a state of this step, with `more` facts, to `place/state/`; its folder."""
    facts = {
        "baseline": session.baseline,
        "average": session.average,
        "reference": session.reference,
        "started": session.started,
        "processes": session.accelerator.num_processes,
        "steps": session.steps,
        "trained": session.clock.trained,
        "training": training_facts(session).json(),
        **more,
    }
    texts = {"preset.json": to_json(session.preset), **made_from(session)}
    ema = None if session.ema is None else session.ema.tensors()
    return state.save_state(place, session.step, tensors, session.optimizer, facts, texts, ema)


def size(folder: Path) -> int:
    """Bytes of a state."""
    return sum(file.stat().st_size for file in folder.iterdir())


def made_from(session: Session) -> dict[str, str]:
    """The fingerprints for a state. It is saved without them where files have become unreadable."""
    if session.made is None:
        return {}
    try:
        return {fingerprints.RECORD: fingerprints.as_text(session.made.result())}
    except OSError as error:
        resuming.warn(session.events, f"this training state is saved without fingerprints: {error}")
        return {}


def memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the device where there is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import psutil

    return psutil.Process().memory_info().rss / 2**20
