"""When memory runs out: how that looks, and what to change first."""

from typing import Any

import torch

from modules.preset.schema import Preset

SIGNS = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "out of memory")
"""What the messages of allocators have in them that raise a plain RuntimeError."""

SMALLEST = 512
"""Below this many pixels squared, the bases do not draw well."""


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that the device's, or the machine's, memory is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def sentence(preset: Preset, device: torch.device, precision: str, blocks: int) -> str:
    """What to tell the user. `precision`: the number format in use; `blocks`: how many the denoiser has, 0: unknown."""
    full = f"the memory of {device} ({total_mb(device) / 1024:.1f} GiB) is full"
    knob = next_knob(preset, device, precision, blocks)
    return f"{full}; the cheapest way out: {knob}" if knob else f"{full}, and no option is left that saves much"


def next_knob(preset: Preset, device: torch.device, precision: str, blocks: int) -> str:
    """The cheapest option that is left to save memory, with its value and its price; "" when there is none.

    Cheapest first: what costs time only, then what rounds the base, then what is slow, then what changes the result.
    """
    training, base = preset.training, preset.base
    on_device = device.type != "cpu"
    half_of_blocks = -(-blocks // 2)
    steps = [
        (not training.gradient_checkpointing, "training.gradient_checkpointing true", "a third slower"),
        (on_device and precision == "float32", "training.precision bfloat16", "half of the memory, and faster"),
        (base.dtype == "float32" != precision, "base.dtype auto", "frozen weights in the format of the computation"),
        (
            training.batch_size > 1,
            f"training.batch_size 1 --training.accumulation {training.batch_size * training.accumulation}",
            "the same pictures per step, one after the other",
        ),
        (base.quantization == "none", "base.quantization fp8", "half of bfloat16's memory; rounds the base a little"),
        (base.quantization in ("fp8", "int8"), "base.quantization nf4", "half of that; rounds the base more"),
        (
            on_device and base.offload_blocks < half_of_blocks,
            f"base.offload_blocks {half_of_blocks}",
            "half of the base stays in main memory; slow",
        ),
        (
            on_device and half_of_blocks <= base.offload_blocks < blocks,
            f"base.offload_blocks {blocks}",
            "nearly all of the base stays in main memory; slow",
        ),
        (preset.targets.text_encoders, "targets.text_encoders false", "the text encoders stay as they are"),
        (
            preset.data.resolution > SMALLEST,
            f"data.resolution {max(SMALLEST, preset.data.resolution * 3 // 4 // 64 * 64)}",
            "smaller pictures",
        ),
    ]
    return next((f"--{option} ({price})" for applies, option, price in steps if applies), "")


def reset_peak(device: torch.device) -> None:
    """Measure the peak anew from here on, where the device can."""
    if device.type == "cuda":
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
