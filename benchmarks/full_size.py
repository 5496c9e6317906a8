"""Seconds per step and peak memory of presets on models of real size.

    python benchmarks/full_size.py                          # on a GPU: SDXL and FLUX.1-dev, all their shipped presets
    python benchmarks/full_size.py --models sd35_large --presets lora_sd3 wora_sd3
    python benchmarks/full_size.py --base demo/base --presets lora_demo wora_demo        # a base on disk, also on a CPU

Without --base, denoisers are built from their published configurations (tests/data/full_size) with random weights, and
conditions and latents are random too: neither time nor memory depends on their values. A step is everything between two
batches: derived tensors, forward and backward pass, clipping, optimizer. Encoding is no part of it. Each row is a
process of its own, so that none inherits another one's memory. --write puts the table into docs/performance.md.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from modules import families, losses, objectives
from modules.adapters.derived import Derived
from modules.answer import put
from modules.families.base import Texts
from modules.preset.files import resolve
from modules.preset.schema import Base, Preset
from modules.training import flat, memory, noise, setup
from modules.training.flat import Flat
from tests.full_size import MODELS, make_folder, presets

PAGE, BEGIN, END = ROOT / "docs/performance.md", "<!-- full_size: begin -->", "<!-- full_size: end -->"
USUAL = ("sdxl", "flux_dev")
HEAD = "| model | preset | base | px | s per step | peak | base and adapters alone |\n|---|---|---|---|---|---|---|"


def random_model(name: str, preset: Preset, device: torch.device, folder: Path) -> Any:
    """The model `name` with a denoiser of random weights, in main memory; its encoders stay without weights."""
    return with_random_weights(make_folder(name, folder), preset, device)


def with_random_weights(folder: Path, preset: Preset, device: torch.device) -> Any:
    """The model of a folder without weights, likewise."""
    family = families.load_class(preset.family)
    model = family(family.skeleton_pipeline(str(folder)), device)
    denoiser: Any = next(iter(model.networks.values()))
    denoiser.to(setup.base_dtype(preset, device)).to_empty(device="cpu")
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.02)
    for buffer in denoiser.buffers():
        buffer.zero_()
    denoiser.requires_grad_(False).eval()
    return model


def random_texts(model: Any, dtype: torch.dtype, device: torch.device) -> Texts:
    """Conditions in the shape of one caption's, which text encoders without weights can tell too."""
    wanted, model.device = model.device, next(model.networks[model.text_encoders[0]].parameters()).device
    with torch.no_grad():
        shapes = model.encode_texts(["a picture"])
    model.device = wanted
    return {name: torch.randn(tensor.shape, dtype=dtype, device=device) for name, tensor in shapes.items()}


def measure(preset: Preset, name: str, steps: int) -> dict[str, Any]:
    """Train `steps` steps at the preset's resolution; what they took."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, precision = setup.base_dtype(preset, device), setup.DTYPES[setup.precision(preset, device)]
    with tempfile.TemporaryDirectory() as folder:
        model = setup.load(preset, device) if not name else random_model(name, preset, device, Path(folder))
        texts = random_texts(model, dtype, device)
    noise.prepare(model, preset.objective)
    setup.place(model, preset)
    adapted = setup.attach_ready(model, preset)
    groups = setup.parameter_groups(adapted, model, preset.targets)
    gradients, optimizer = flat.build(preset.optimizer, groups, preset.training.learning_rate)
    derived = Derived(adapted.values())
    idle = memory.peak_mb(device)
    seconds = [step(model, preset, derived, gradients, optimizer, texts, precision) for _ in range(steps)]
    return {
        "preset": preset.name,
        "base": str(dtype).removeprefix("torch.") if preset.base.quantization == "none" else preset.base.quantization,
        "resolution": preset.data.resolution,
        "seconds": statistics.median(seconds[steps // 4 :]),
        "peak": memory.peak_mb(device),
        "idle": idle,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
    }


def step(
    model: Any, preset: Preset, derived: Derived, gradients: Flat, optimizer: Any, texts: Texts, precision: torch.dtype
) -> float:
    """One optimizer step on random latents; its seconds."""
    device, count, process = model.device, preset.training.batch_size, model.process
    side = preset.data.resolution // model.bucket_step * model.bucket_step
    latents = torch.randn(count, model.latent_channels, side // model.latent_factor, side // model.latent_factor)
    drawn = torch.randn_like(latents)
    times = process.times(torch.linspace(0.2, 0.8, count, dtype=torch.float64), latents[0, 0].numel())
    parts = process.parts(times)
    noisy = objectives.add_noise(latents, drawn, parts).to(device)
    wanted = objectives.target(process.prediction, latents, drawn, parts).to(device)
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=device).expand(count, -1)
    conditions: Texts = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in texts.items()}
    finish(device)
    begun = time.perf_counter()
    gradients.clear()
    derived.begin()
    for _ in range(preset.training.accumulation):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            predicted = model.predict(noisy, times.to(device), conditions, sizes)
            errors: Tensor = losses.errors(losses.Loss(), predicted, wanted)
        (errors.mean() / preset.training.accumulation).backward()
    derived.pull_back()
    gradients.collect()
    gradients.clip(preset.training.max_grad_norm)
    optimizer.step()
    finish(device)
    return time.perf_counter() - begun


def finish(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        f"| {row['model']} | `{row['preset']}` | {row['base']} | {row['resolution']} | {row['seconds']:.3f} | "
        f"{row['peak'] / 1024:.1f} GiB | {row['idle'] / 1024:.1f} GiB |"
        for row in rows
    ]
    devices = ", ".join(sorted({row["device"] for row in rows}))
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    return "\n".join([f"{devices}; {versions}; adapters, batches and the rest as in the presets.", "", HEAD, *lines])


def write(text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put `text` between two marks of docs/performance.md."""
    put(PAGE, text, begin, end)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=USUAL, help="published configurations")
    parser.add_argument("--base", help="a base on disk in place of them: a folder or checkpoint of the presets' family")
    parser.add_argument("--presets", nargs="+", help="default: all that are shipped for the model's family")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.base is None and not torch.cuda.is_available():
        sys.exit("models of real size need a GPU, and torch sees none; --base demo/base measures the demo's")
    if arguments.one:
        (name,) = arguments.models
        preset = resolve(arguments.presets[0]).preset
        if arguments.base is not None:
            preset = preset.model_copy(update={"base": Base(**{**preset.base.model_dump(), "path": arguments.base})})
        print(json.dumps(measure(preset, "" if arguments.base else name, arguments.steps)))
        return
    rows = []
    for name in arguments.models if arguments.base is None else [arguments.models[0]]:
        shipped = presets(MODELS[name].family)
        for preset in arguments.presets or shipped:
            rows += one_row(name, preset, arguments)
    text = table(rows)
    print(text)
    if arguments.write:
        write(text)


def one_row(model: str, preset: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one preset in a process of its own; nothing, with a message, if that fails."""
    command = [sys.executable, __file__, "--one", "--models", model, "--presets", preset]
    command += ["--steps", str(arguments.steps), *(["--base", arguments.base] if arguments.base else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{model}, {preset}: failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return []
    title = arguments.base or MODELS[model].title
    return [{"model": title, **json.loads(done.stdout.splitlines()[-1])}]


if __name__ == "__main__":
    main()
