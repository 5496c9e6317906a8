"""What a run knows beyond its preset: its data, its times, its step. Stored in its adapter file and in the metadata of
every export."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from modules.documents import parse_json
from modules.preset.schema import Preset

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")


class Shown(Protocol):
    """A picture that was trained on, as `modules.data.index.Picture`."""

    @property
    def path(self) -> Path: ...
    @property
    def caption(self) -> str: ...
    @property
    def bucket(self) -> tuple[int, int]: ...
    @property
    def repeats(self) -> float: ...


@dataclass(frozen=True)
class Facts:
    """What a run knows beyond its preset. All parts may be empty. JSON-able, so that an export can be repeated."""

    step: int = 0
    epoch: int = 0
    started: float = 0.0
    """Unix time, s."""
    finished: float = 0.0
    """Unix time, s."""
    prompts: tuple[str, ...] = ()
    """The prompts of the sample pictures; may be captions of the data set."""
    pictures: dict[str, int] = field(default_factory=dict)
    """Pictures per folder name."""
    repeats: dict[str, float] = field(default_factory=dict)
    """Repeats per epoch, per folder name."""
    tags: dict[str, dict[str, int]] = field(default_factory=dict)
    """How often each part of a caption occurs, per folder name."""
    buckets: dict[str, int] = field(default_factory=dict)
    """Pictures per bucket "512x768"."""
    versions: dict[str, str] = field(default_factory=lambda: versions())
    """Versions of this program and of its main packages."""

    def json(self) -> str:
        """All facts as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Facts":
        """Back from `json`. Raises ValueError for other text."""
        values, usual = parse_json(text, "the run facts in its metadata"), json.loads(cls().json())
        if not isinstance(values, dict) or values.keys() - usual.keys():
            raise ValueError("the run facts in its metadata are damaged")
        kinds = {name: (int, float) if type(value) is float else type(value) for name, value in usual.items()}
        wrong = [name for name, value in values.items() if not isinstance(value, kinds[name])]
        if wrong:
            raise ValueError(f"the run facts in its metadata are damaged: {wrong[0]} is {str(values[wrong[0]])[:80]!r}")
        return cls(**{**values, "prompts": tuple(values.get("prompts", ()))})


def facts_of(
    pictures: Iterable[Shown], preset: Preset, step: int, epoch: int, started: float, finished: float,
    prompts: Iterable[str],
) -> Facts:
    """The facts of a run on `pictures`; times are Unix times in s."""
    tags: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    buckets: Counter[str] = Counter()
    repeats: dict[str, float] = {}
    times: dict[Path, float] = {}  # a file may be there several times, for example at several resolutions
    for picture in pictures:
        folder = picture.path.parent.name
        if picture.path not in times:
            parts = (part.strip() for part in picture.caption.split(preset.data.separator))
            tags.setdefault(folder, Counter()).update(part for part in parts if part)
            counts[folder] += 1
        times[picture.path] = times.get(picture.path, 0) + picture.repeats
        repeats[folder] = times[picture.path]
        buckets["x".join(map(str, picture.bucket))] += 1
    return Facts(
        step=step, epoch=epoch, started=started, finished=finished, prompts=tuple(prompts), pictures=dict(counts),
        repeats=repeats, tags={folder: dict(found) for folder, found in tags.items()}, buckets=dict(buckets),
    )


@cache
def versions() -> dict[str, str]:
    """Versions of this program and of its main packages, if installed; read once."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    own = re.search(r'^version = "(.*)"$', project, re.MULTILINE)
    found = {"gimbal": own.group(1)} if own else {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
