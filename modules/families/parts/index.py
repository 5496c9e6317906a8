"""The file that says what a folder in diffusers layout has."""

from pathlib import Path

INDEX, MODULAR_INDEX = "model_index.json", "modular_model_index.json"
"""Those of pipelines, and of modular ones."""


def index_of(folder: Path) -> Path:
    """A folder's; it may be missing."""
    return next((folder / name for name in (INDEX, MODULAR_INDEX) if (folder / name).is_file()), folder / INDEX)
