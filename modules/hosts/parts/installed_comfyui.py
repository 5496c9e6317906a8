"""What the user's ComfyUI computes from a file: its loading code, run by its Python in a separate process.

Weights are exchanged in safetensors files. Checked with ComfyUI 0.3.64, 0.20.1 and 0.28.0, the last in a Python that
lacks torchvision.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}

PYTHONS = (
    "../python_embeded/python.exe", ".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe",
    "venv/Scripts/python.exe",
)
"""Usual paths of ComfyUI's Python, relative to its folder."""

PATIENCE = 1800
"""Timeout for ComfyUI in seconds."""


@dataclass(frozen=True)
class Outcome:
    """What ComfyUI did."""

    weights: dict[str, Tensor]
    """The patched weights. One that is missing was not patched: ComfyUI found nothing for it in the file."""
    said: list[str]
    """Its warnings and errors."""
    version: str


def effects(
    folder: Path, file: Path, weights: dict[str, Tensor], strength: float, dtype: torch.dtype,
    python: Path | None = None,
) -> dict[str, Tensor]:
    """The patched weights of `run`."""
    return run(folder, file, weights, strength, dtype, python).weights


def run(
    folder: Path, file: Path, weights: dict[str, Tensor], strength: float, dtype: torch.dtype,
    python: Path | None = None, nodes: Sequence[Path] = (),
) -> Outcome:
    """Patch `weights` with an adapter file.

    `weights` are by the layer's name in the file, in the shape ComfyUI's model has (or `<name>.bias`, with the bias).
    `dtype` is the one ComfyUI patches in: float32 as it does before computing, or half precision, as on the fly. The
    custom nodes installed there that read adapter files are loaded, and `nodes`, each an `__init__.py`. Raises
    ValueError, in one sentence, if the folder is not a ComfyUI or if it fails.
    """
    folder = folder.expanduser().resolve()
    if not (folder / "comfy" / "lora.py").is_file():
        raise ValueError(f"{folder} is not a ComfyUI folder: comfy/lora.py is missing; give the folder with ComfyUI's "
                         "main.py")
    program = str(python or next((folder / path for path in PYTHONS if (folder / path).exists()), sys.executable))
    job = {"file": str(file.resolve()), "strength": strength, "dtype": DTYPES[dtype],
           "nodes": [str(path.resolve()) for path in nodes]}
    with tempfile.TemporaryDirectory(prefix="gimbal_") as name:
        place = Path(name)
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # Copies, because safetensors refuses tensors that share memory.
        save_file({key: weight.detach().cpu().clone(memory_format=torch.contiguous_format)
                   for key, weight in weights.items()}, place / "weights.safetensors")
        _start(program, folder, place)
        said = json.loads((place / "said.json").read_text(encoding="utf-8"))
        found = load_file(place / "effects.safetensors")
        return Outcome({key: tensor.clone() for key, tensor in found.items()}, said["lines"], said["version"])


def _start(program: str, folder: Path, job: Path) -> None:
    """Run `comfyui_process`. Raises ValueError with the last line of its errors."""
    script = str(Path(__file__).with_name("comfyui_process.py"))
    try:
        done = subprocess.run([program, script, str(folder), str(job)], cwd=folder, capture_output=True, text=True,
                              errors="replace", timeout=PATIENCE)
    except OSError as error:
        raise ValueError(f"{program} cannot be started: {error}; give the Python that runs ComfyUI") from error
    except subprocess.TimeoutExpired:
        raise ValueError(f"the ComfyUI in {folder} has not answered for {PATIENCE} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        advice = "; give the Python that runs ComfyUI" if "ModuleNotFoundError" in reason else ""
        raise ValueError(f"the ComfyUI in {folder} failed with {program}: {reason}{advice}")
