"""Whole optimizer steps per method: of the demo, and of a UNet with SDXL's topology at a quarter of its width.

    python benchmarks/training_step.py                                  # both, CPU, one thread
    python benchmarks/training_step.py --models quarter --methods lora wora doft --rounds 9 --write

All methods of a table run in turn, step after step, in one process, and medians are compared: a busy machine slows all
of them alike. A step is everything between two batches: deriving, forward and backward pass of each micro-batch,
pulling gradients back, clipping, optimizer. --write puts the tables into docs/performance.md.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks import full_size
from modules import adapters
from modules.adapters.derived import Derived
from modules.preset.files import resolve
from modules.preset.schema import Preset
from modules.training import flat, noise, setup
from tests.full_size import make_folder

BEGIN, END = "<!-- training_step: begin -->", "<!-- training_step: end -->"
MODEL, REFERENCE = "sdxl", "lora"
"""The published configuration, and the method that times are multiples of."""

Key = tuple[int, bool]
"""Accumulation, and whether activations are computed a second time."""


def quarter_width(folder: Path) -> Path:
    """The published configuration with a UNet of a quarter of the width, in diffusers' layout without weights."""
    place = make_folder(MODEL, folder)
    path = place / "unet/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["block_out_channels"] = [width // 4 for width in config["block_out_channels"]]
    config["cross_attention_dim"] //= 4
    config["norm_num_groups"] = 16
    path.write_text(json.dumps(config), encoding="utf-8")
    return place


def preset_of(model: str, method: str, key: Key, resolution: int) -> Preset:
    """The shipped preset of the method, for a step of this kind."""
    preset = resolve(f"{method}_{'demo' if model == 'demo' else MODEL}").preset
    values = preset.model_dump(mode="json")
    values["training"] |= {"accumulation": key[0], "gradient_checkpointing": key[1], "precision": "auto"}
    values["training"] |= {"batch_size": values["training"]["batch_size"] if model == "demo" else 1}
    values["base"] |= {"quantization": "none"}
    if model != "demo":
        values["data"] |= {"resolution": resolution}
    return Preset.model_validate(values)


def ready(model: str, preset: Preset, device: torch.device) -> tuple[Any, ...]:
    """What `full_size.step` takes, for one method."""
    torch.manual_seed(0)
    dtype, precision = setup.base_dtype(preset, device), setup.DTYPES[setup.precision(preset, device)]
    if model == "demo":
        loaded = setup.load(preset, device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            loaded = full_size.with_random_weights(quarter_width(Path(folder)), preset, device)
    texts = full_size.random_texts(loaded, dtype, device)
    texts["hidden"] = texts["hidden"][..., : loaded.networks["unet"].config.cross_attention_dim]
    noise.prepare(loaded, preset.objective)
    setup.place(loaded, preset)
    adapted = setup.attach_ready(loaded, preset)
    groups = setup.parameter_groups(adapted, loaded, preset.targets)
    gradients, optimizer = flat.build(preset.optimizer, groups, preset.training.learning_rate)
    return loaded, preset, Derived(adapted.values()), gradients, optimizer, texts, precision


def measure(model: str, methods: list[str], key: Key, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step by method."""
    device = torch.device(arguments.device)
    steps = {m: ready(model, preset_of(model, m, key, arguments.resolution), device) for m in methods}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    draw = random.Random(0)
    for number in range(arguments.rounds + 1):
        for method in draw.sample(methods, len(methods)):
            taken = full_size.step(*steps[method])
            if number:  # the first one makes buffers
                seconds[method].append(taken)
    return {method: statistics.median(found) for method, found in seconds.items()}


def table(model: str, found: dict[Key, dict[str, float]], resolution: int) -> str:
    """One Markdown table: rows are methods, columns kinds of steps."""
    quarter = f"SDXL's UNet at a quarter of its width, {resolution} px, batch 1"
    title = {"demo": "demo base", "quarter": quarter}[model]
    heads = [f"{count} x{', recomputing' if again else ''}" for count, again in found]
    reference = [row[REFERENCE] for row in found.values()]
    seconds = ", ".join(f"{head} {second:.2f} s" for head, second in zip(heads, reference, strict=True))
    lines = [f"{title} ({REFERENCE}: {seconds})", "", "| method | " + " | ".join(heads) + " |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    for method in next(iter(found.values())):
        ratios = [row[method] / second for row, second in zip(found.values(), reference, strict=True)]
        lines.append(f"| {method} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, measure, print, and perhaps write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["demo", "quarter"], default=["demo", "quarter"])
    parser.add_argument("--methods", nargs="+", choices=list(adapters.methods()), default=list(adapters.methods()))
    parser.add_argument("--accumulation", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--resolution", type=int, default=512, help="pixels, of the quarter-width UNet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods = [REFERENCE, *(m for m in arguments.methods if m != REFERENCE)]
    keys = [(count, again == "on") for count in arguments.accumulation for again in arguments.checkpointing]
    how = f"medians of {arguments.rounds} interleaved rounds; times as multiples of LoRA's."
    pages = [f"{arguments.device}, 1 thread, torch {torch.__version__}, {how}"]
    for model in arguments.models:
        found = {key: measure(model, methods, key, arguments) for key in keys}
        pages.append(table(model, found, arguments.resolution))
        print(f"\n{pages[-1]}", flush=True)
    if arguments.write:
        full_size.write("\n\n".join(pages), BEGIN, END)


if __name__ == "__main__":
    main()
