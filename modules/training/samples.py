"""Sample pictures along the training, and the grid that compares them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MARGIN, LABEL = 6, 18
"""Pixels between pictures, and for a line of text."""


def sample_path(folder: Path, step: int, number: int) -> Path:
    """Where picture `number` of `step` is kept."""
    return folder / "samples" / f"step-{step:06d}_{number:02d}.png"


def save_samples(folder: Path, step: int, pictures: Sequence[Image.Image]) -> list[Path]:
    """Write the pictures of one step; their paths."""
    paths = [sample_path(folder, step, number) for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return paths


def sampled_steps(folder: Path, count: int, rows: int = 5) -> list[int]:
    """Steps of which all `count` pictures exist: the first, the last and some between, at most `rows`."""
    last = sorted((folder / "samples").glob(f"step-*_{count - 1:02d}.png"))
    steps = [int(path.name[5:11]) for path in last]
    if len(steps) <= rows:
        return steps
    return [steps[round(row * (len(steps) - 1) / (rows - 1))] for row in range(rows)]


def write_grid(folder: Path, steps: Sequence[int], prompts: Sequence[str]) -> Path:
    """`samples/grid.png`: one column per prompt, one row per step, from the pictures on disk."""
    labels = ["before" if step == 0 else f"step {step}" for step in steps]
    path = folder / "samples" / "grid.png"
    draw_grid(labels, [pictures_of(folder, step, len(prompts)) for step in steps], prompts, 70).save(path)
    return path


def pictures_of(folder: Path, step: int, count: int) -> list[Image.Image]:
    """The first `count` pictures of `step`. Raises FileNotFoundError where one is missing."""
    return [Image.open(sample_path(folder, step, number)).convert("RGB") for number in range(count)]


def draw_grid(
    labels: Sequence[str], rows: Sequence[Sequence[Image.Image]], heads: Sequence[str], left: int, smallest: int = 160
) -> Image.Image:
    """Rows of pictures of one size, each with its label, `left` pixels wide, and a head over each column.

    Pictures smaller than `smallest` pixels are enlarged without smoothing, so that every pixel can be judged.
    """
    width, height = rows[0][0].size
    zoom = max(1, -(-smallest // width))
    cell = (width * zoom, height * zoom)
    size = (left + len(heads) * (cell[0] + MARGIN) + MARGIN, LABEL + len(rows) * (cell[1] + MARGIN) + MARGIN)
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(12)
    for column, head in enumerate(heads):
        x = left + column * (cell[0] + MARGIN)
        draw.text((x, 2), shortened(head, cell[0], font), "black", font)
    for row, (label, pictures) in enumerate(zip(labels, rows, strict=True)):
        y = LABEL + row * (cell[1] + MARGIN)
        draw.text((MARGIN, y + cell[1] // 2), label, "black", font)
        for column, picture in enumerate(pictures):
            grid.paste(picture.resize(cell, Image.Resampling.NEAREST), (left + column * (cell[0] + MARGIN), y))
    return grid


def shortened(text: str, width: int, font) -> str:
    """As much of a text as `width` pixels have room for."""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if not text.endswith("…") else text[:-2].rstrip() + "…"
    return text
