"""Sample pictures during training, and the grid that compares them."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from modules.disk import whole

MARGIN, LABEL = 6, 18
"""Pixels between pictures, and for a line of text."""

NAME = re.compile(r"step-(?P<step>[0-9]{6,12})_(?P<number>[0-9]{2,6})\.png")
"""Of a picture, see `sample_path`."""


def sample_path(folder: Path, step: int, number: int) -> Path:
    """Where picture `number` of `step` is kept."""
    return folder / "samples" / f"step-{step:06d}_{number:02d}.png"


def save_samples(folder: Path, step: int, pictures: Sequence[Image.Image]) -> list[Path]:
    """Write the pictures of one step; their paths. Raises OSError where that is not possible."""
    paths = [sample_path(folder, step, number) for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.parent.mkdir(exist_ok=True)
        save_picture(picture, path)
    return paths


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG file whole."""
    with whole(path) as partial:
        picture.save(partial, format="PNG")


def sampled_steps(folder: Path, count: int, rows: int = 5) -> list[int]:
    """Steps with pictures of the first `count` prompts: the first, the last and some between, at most `rows`. Files of
    other names are ignored."""
    found = (NAME.fullmatch(path.name) for path in (folder / "samples").iterdir())
    steps = sorted({int(name["step"]) for name in found if name and int(name["number"]) < count})
    if len(steps) <= rows:
        return steps
    return [steps[round(row * (len(steps) - 1) / (rows - 1))] for row in range(rows)]


def write_grid(folder: Path, steps: Sequence[int], prompts: Sequence[str]) -> Path | None:
    """`samples/grid.png`: one column per prompt, one row per step, from the pictures on disk. What cannot be read
    stays white; None where nothing can be read."""
    rows = {step: pictures_of(folder, step, len(prompts)) for step in steps}
    rows = {step: pictures for step, pictures in rows.items() if any(pictures)}
    if not rows:
        return None
    labels = ["before" if step == 0 else f"step {step}" for step in rows]
    path = folder / "samples" / "grid.png"
    save_picture(draw_grid(labels, list(rows.values()), prompts, 70), path)
    return path


def pictures_of(folder: Path, step: int, count: int) -> list[Image.Image | None]:
    """The first `count` pictures of `step`; None for one that is missing or cannot be read."""
    return [read_picture(sample_path(folder, step, number)) for number in range(count)]


def read_picture(path: Path) -> Image.Image | None:
    """A PNG file, if it is one and whole."""
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return file.convert("RGB")
    except Exception:  # noqa: BLE001  Pillow has a dozen kinds of errors for what can be wrong with a file
        return None


def draw_grid(
    labels: Sequence[str],
    rows: Sequence[Sequence[Image.Image | None]],
    heads: Sequence[str],
    left: int,
    smallest: int = 160,
) -> Image.Image:
    """Rows of pictures in the size of the last one, each with its label, `left` pixels wide, and a head over each
    column. At least one picture is there; None leaves its place white.

    Pictures smaller than `smallest` pixels are enlarged without smoothing, so that every pixel can be judged.
    """
    width, height = [picture for row in rows for picture in row if picture is not None][-1].size
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
            if picture is None:
                continue
            grid.paste(picture.resize(cell, Image.Resampling.NEAREST), (left + column * (cell[0] + MARGIN), y))
    return grid


def shortened(text: str, width: int, font) -> str:
    """As much of a text as `width` pixels have room for, on one line."""
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if not text.endswith("…") else text[:-2].rstrip() + "…"
    return text
