"""Out of memory: how to recognize it, and what to change first."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from modules.preset.schema import Preset
from modules.training import setup, sharding
from modules.training.run import may_change

SIGNS = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "out of memory")
"""Parts of the messages of allocators that raise a plain RuntimeError."""

SMALLEST = 512
"""Below this many pixels squared, the bases do not draw well."""


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that the device's, or the machine's, memory is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def sentence(preset: Preset, device: torch.device, precision: str, blocks: int, in_run: bool = False) -> str:
    """The message. `precision`: the dtype in use; `blocks`: how many the denoiser has, 0: unknown; `in_run`: a run
    folder holds the preset, and some options can only be changed in another run."""
    full = f"out of memory on {device} ({total_mb(device) / 1024:.1f} GiB)"
    knob = next_knob(preset, device, precision, blocks)
    if not knob:
        more = "; use more processes, so that each has a smaller shard" if sharding.is_wanted() else ""
        return f"{full}, and no option is left that saves much memory{more}"
    same = not in_run or may_change(knob.split()[0].removeprefix("--"))
    other = "" if same else "; this changes the result, so it needs another --name"
    return f"{full}; try {knob}{other}"


@contextmanager
def while_encoding(preset: Preset, device: torch.device) -> Iterator[None]:
    """Raise ValueError when memory runs out inside: the denoiser is not loaded yet, so its options do not help."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        larger = preset.base.dtype == "float32" != setup.precision(preset, device)
        smaller = "give --base.dtype auto, or " if larger else ""
        raise ValueError(
            f"out of memory on {device} ({total_mb(device) / 1024:.1f} GiB) while pictures and captions are encoded, "
            f"with only the encoders loaded; {smaller}close other programs that use its memory"
        ) from error


def next_knob(preset: Preset, device: torch.device, precision: str, blocks: int) -> str:
    """The cheapest option left that saves memory, with its value and its price; "" when there is none.

    Cheapest first: what costs time only, then what rounds the base, then what is slow, then what changes the result.
    """
    training, base = preset.training, preset.base
    on_device, packs = device.type != "cpu", not sharding.is_wanted()  # else it cannot be sharded
    patterns = (*preset.targets.include, *preset.targets.exclude, *(rule.match for rule in preset.targets.rules))
    texts_named = any("text_encoder" in pattern for pattern in patterns)  # without them these would match nothing
    half_of_blocks = -(-blocks // 2)
    steps = [
        (not training.gradient_checkpointing, "training.gradient_checkpointing true", "a third slower"),
        (on_device and precision == "float32", "training.precision bfloat16", "half of the memory, and faster"),
        (base.dtype == "float32" != precision, "base.dtype auto", "frozen weights in the training precision"),
        (
            training.batch_size > 1,
            f"training.batch_size 1 --training.accumulation {training.batch_size * training.accumulation}",
            "the same pictures per step, one at a time",
        ),
        (
            packs and base.quantization == "none",
            "base.quantization fp8",
            "half of bfloat16's memory; rounds the base a little",
        ),
        (packs and base.quantization in ("fp8", "int8"), "base.quantization nf4", "half of that; rounds the base more"),
        (
            packs and on_device and base.offload_blocks < half_of_blocks,
            f"base.offload_blocks {half_of_blocks}",
            "half of the base stays in main memory; slow",
        ),
        (
            packs and on_device and half_of_blocks <= base.offload_blocks < blocks,
            f"base.offload_blocks {blocks}",
            "nearly all of the base stays in main memory; slow",
        ),
        (
            preset.targets.text_encoders and not texts_named,
            "targets.text_encoders false",
            "the text encoders are not trained",
        ),
        (preset.data.largest > SMALLEST, _smaller(preset), "smaller pictures"),
    ]
    return next((f"--{option} ({price})" for applies, option, price in steps if applies), "")


def _smaller(preset: Preset) -> str:
    """Lower resolutions, as an option on the command line."""
    given = preset.data.resolutions or (preset.data.resolution,)
    lower = list(dict.fromkeys(min(one, max(SMALLEST, one * 3 // 4 // 64 * 64)) for one in given))
    even = " --data.resolution_shares '[]'" if preset.data.resolution_shares else ""  # there may be fewer of them now
    return f"data.resolutions '{lower}'{even}" if preset.data.resolutions else f"data.resolution {lower[0]}"


def reset_peak(device: torch.device) -> None:
    """Reset the peak, where the device can. Memory that torch holds unused is released: it would count as reserved."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """Peak memory in MiB: on CUDA what torch has reserved since `reset_peak`; else of this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    import psutil

    info: Any = psutil.Process().memory_info()
    if "peak_wset" in info._fields:  # Windows
        return info.peak_wset / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def total_mb(device: torch.device) -> float:
    """The device's memory, or the machine's, in MiB."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    import psutil

    return psutil.virtual_memory().total / 2**20
