"""Is a demo base good enough to look at? A grid of 16 plain prompts, and the share of right colours.

    python scripts/demo_quality.py demo/base
    python scripts/demo_quality.py demo/flux_base --grid docs/images/demo_flux_base.png

writes the grid, prints the colour of 40 samples of "<colour> heart", "<colour> circle" and "<colour>
square", and exits with 1 when fewer than 80 % of them have the colour that was asked for.
"""

import argparse
import inspect
import sys
from collections import Counter
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import guarded
from scripts.demo_data import GRID_PROMPTS, SHAPES, SIZE

SAMPLES, BATCH, WANTED = 40, 8, 0.8

# Twemoji's flat colours. White is not asked for: on a white background it cannot be told from nothing.
PALETTE = {
    "red": (221, 46, 68),
    "orange": (244, 144, 12),
    "yellow": (253, 203, 88),
    "green": (120, 177, 89),
    "blue": (85, 172, 238),
    "purple": (170, 142, 214),
    "brown": (193, 105, 79),
    "black": (49, 55, 61),
}
OTHERS = {"grey": (153, 170, 181), "pink": (244, 171, 186)}  # may be answered, are never right


def dominant_colour(pixels: np.ndarray) -> str:
    """The palette's name that most foreground pixels of `pixels (h, w, 3)` are nearest to; "nothing" without any."""
    foreground = pixels[pixels.min(-1) < 215].astype(float)  # (n, 3); paper and its faint noise are brighter
    if len(foreground) < 0.05 * pixels.shape[0] * pixels.shape[1]:
        return "nothing"
    named = PALETTE | OTHERS
    distances = np.linalg.norm(foreground[:, None] - np.array(list(named.values())), axis=-1)  # (n, colours)
    return list(named)[Counter(distances.argmin(1).tolist()).most_common(1)[0][0]]


def colour_prompts() -> list[tuple[str, str]]:
    """(colour, prompt) of each sample: 8 colours and 3 shapes in turn, so that 24 samples meet every pair once."""
    pairs = zip(cycle(PALETTE), cycle(SHAPES), range(SAMPLES), strict=False)
    return [(colour, f"{colour} {shape}") for colour, shape, _ in pairs]


def generate(pipeline, prompts: list[str], arguments: argparse.Namespace, label: str) -> list[Image.Image]:
    """One picture per prompt; each has its own seed, so that the batch size does not matter."""
    import torch

    pictures = []
    for first in tqdm(range(0, len(prompts), BATCH), desc=label, unit="batch"):
        batch = prompts[first : first + BATCH]
        seeds = [torch.Generator().manual_seed(arguments.seed + first + i) for i in range(len(batch))]
        pictures += pipeline(
            batch, generator=seeds, num_inference_steps=arguments.steps, guidance_scale=arguments.guidance,
            height=SIZE, width=SIZE, **own_options(pipeline),
        ).images  # fmt: skip
    return pictures


def own_options(pipeline) -> dict:
    """What only some kinds of pipelines want to be told: sizes, and how many tokens a caption has."""
    options = {"original_size": (SIZE, SIZE), "target_size": (SIZE, SIZE)}
    if "tokenizer_2" in pipeline.components:
        options["max_sequence_length"] = pipeline.tokenizer_2.model_max_length
    taken = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in options.items() if name in taken}


def make_grid(pictures: list[Image.Image], columns: int = 4, zoom: int = 2) -> Image.Image:
    """Pictures side by side with a narrow margin, enlarged without smoothing."""
    cell = SIZE * zoom + 8
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell + 8, rows * cell + 8), "white")
    for i, picture in enumerate(pictures):
        large = picture.resize((SIZE * zoom, SIZE * zoom), Image.Resampling.NEAREST)
        sheet.paste(large, (8 + i % columns * cell, 8 + i // columns * cell))
    return sheet


def colour_score(pictures: list[Image.Image]) -> float:
    """Print what was asked and seen for every sample, and return the share that agrees."""
    seen = [dominant_colour(np.asarray(picture.convert("RGB"))) for picture in pictures]
    right = 0
    for (colour, prompt), answer in zip(colour_prompts(), seen, strict=True):
        right += answer == colour
        print(f"{prompt:16} {answer:8} {'right' if answer == colour else 'WRONG'}")
    return right / SAMPLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?", default=Path("demo/base"), help="a diffusers folder")
    parser.add_argument("--grid", type=Path, default=Path("docs/images/demo_base.png"), help="where the grid goes")
    parser.add_argument("--colours", type=Path, help="also write the 40 colour samples as a picture")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="strength of guidance")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.base / "model_index.json").exists():
        raise SystemExit(f"{arguments.base} is not a diffusers folder: it has no model_index.json")

    import diffusers
    import torch

    from modules.families.parts.components import read_index

    read_index(diffusers.DiffusionPipeline, str(arguments.base))
    load = diffusers.DiffusionPipeline.from_pretrained
    pipeline = load(arguments.base, torch_dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    arguments.grid.parent.mkdir(parents=True, exist_ok=True)
    make_grid(generate(pipeline, list(GRID_PROMPTS), arguments, "grid")).save(arguments.grid)
    print(f"{arguments.grid}: " + ", ".join(GRID_PROMPTS))
    samples = generate(pipeline, [prompt for _, prompt in colour_prompts()], arguments, "colours")
    if arguments.colours is not None:
        make_grid(samples, columns=8, zoom=1).save(arguments.colours)
    score = colour_score(samples)
    print(f"right colour: {score:.1%} of {SAMPLES} (at least {WANTED:.0%} wanted)")
    raise SystemExit(score < WANTED)


if __name__ == "__main__":
    sys.exit(guarded(main))
