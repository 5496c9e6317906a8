"""Small real pictures on disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.preset.data_options import Data


class Folder:
    """A data folder under construction; every picture has its own random pixels."""

    def __init__(self, path: Path):
        self.path = path
        self.path.mkdir()
        self.drawn = 0

    def picture(self, name: str, size: tuple[int, int] = (64, 64), caption: str | None = "a thing") -> Path:
        self.drawn += 1
        pixels = np.random.default_rng(self.drawn).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return self.save(name, Image.fromarray(pixels), caption)

    def save(self, name: str, image: Image.Image, caption: str | None = "a thing", *format, **options) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, *format, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "pictures")


@pytest.fixture
def options(tmp_path, folder):
    for name, size in [("a.png", (64, 64)), ("b.png", (96, 96)), ("c.png", (160, 80)), ("d.png", (80, 160))]:
        folder.picture(name, size)
    return Data(folders=(str(folder.path),), resolution=128, cache_folder=str(tmp_path / "cache"))
