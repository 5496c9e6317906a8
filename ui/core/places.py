"""Where things are, and how paths are written."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository; the trainer's working directory, where relative paths in presets start."""

SCHEMA = ROOT / "configs/preset.schema.json"
PRESETS = ROOT / "training_presets"
OWN_PRESETS = PRESETS / "own"
RUNS = ROOT / "runs"
TRAIN = ROOT / "scripts/train.py"
LOOK = ROOT / "scripts/look.py"


def full(path: str | Path) -> Path:
    """The place that a path in a preset means."""
    return ROOT / Path(path).expanduser()


def shown(path: Path) -> str:
    """A path as people and presets read it: relative inside the repository, with forward slashes."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()
