"""A GPU that is in the machine while the installed torch cannot use it: PyPI's package on Windows is for the CPU alone,
and on Linux for NVIDIA's cards."""

import ctypes.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

SITE = "https://pytorch.org/get-started/locally"
DRIVERS: dict[str, Callable[[], bool]] = {
    "NVIDIA": lambda: bool(
        shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists() or ctypes.util.find_library("nvcuda")
    ),
    "AMD": lambda: Path("/dev/kfd").exists() or (os.name == "nt" and bool(ctypes.util.find_library("amdhip64"))),
}
"""By maker of the GPU: whether its driver is installed."""

EXAMPLES = {"NVIDIA": ", such as: pip install --force-reinstall torch=={} --index-url https://download.pytorch.org/whl/cu130"}
"""By maker, with the version of torch to come. AMD's addresses name a version of ROCm that only the site knows."""


def unused(device_type: str, drivers: dict[str, Callable[[], bool]] = DRIVERS) -> str:
    """A sentence when the training would run on the CPU of a machine that has a GPU; empty when all is well.

    `device_type`: what Accelerate has chosen, as in `torch.device.type`.
    """
    if device_type != "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or asked_for_cpu():
        return ""
    maker = next((maker for maker, installed in drivers.items() if installed()), None)
    if maker is None:
        return ""
    if torch.version.cuda or torch.version.hip:
        return (
            f"training runs on the CPU: an {maker} driver is installed, but torch {torch.__version__} finds no usable "
            f"GPU. Update the driver, or install the torch build for this card: {SITE} has the command"
        )
    version = torch.__version__.split("+")[0]
    return (
        f"training runs on the CPU: an {maker} GPU driver is installed, but torch {torch.__version__} was built "
        f"without support for it. {SITE} has the command for this card{EXAMPLES.get(maker, '').format(version)}"
    )


def asked_for_cpu() -> bool:
    """Whether Accelerate is set to use the CPU (`accelerate launch --cpu`)."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
