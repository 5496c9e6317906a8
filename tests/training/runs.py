"""Small trainings for tests: a tiny base, a few pictures, and the command run in this process or beside it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from modules.preset import files
from modules.training import check, loop
from modules.training.command import main
from modules.training.events import Events, read_events
from modules.training.preparing import prepare
from modules.training.run import open_run
from modules.training.session import Session, start_accelerator, start_processes
from tests.tiny_sdxl import make_folder

ROOT = Path(__file__).parents[2]

OPTIONS: dict[str, Any] = {
    "family": "sdxl",
    "targets": {"layers": "attention", "exclude": ["unet.mid_*"]},
    "adapter": {"method": "wora", "rank": 2},
    "optimizer": {"name": "adamw"},
    "data": {"resolution": 16, "caption_dropout": 0.3, "flip": True},
    "training": {
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 0.01,
        "schedule": "constant",
        "warmup": 0,
        "gradient_checkpointing": False,
    },
    "validation": {"draws": 2},
    "samples": {"enabled": False},
    "saving": {"state_every": 0},
}

SAMPLES = {"steps": 2, "prompts": ["red apple", "blue heart"]}
"""What is drawn where samples are enabled."""


@dataclass
class Place:
    """Where the trainings of a test find their base and pictures, and leave their runs."""

    stage: Path
    """Base, pictures and cache: shared by all tests."""
    runs: Path

    def command(self, name: str, *more: str, **sections: Any) -> list[str]:
        """Arguments of `scripts/train.py`; `sections` replace those of `OPTIONS`, `more` are options as typed. In
        `data`, `validation_folder` stands for an entry of `folders`."""
        drawn = {"samples": SAMPLES} if "--samples.enabled" in more else {}
        preset = {**OPTIONS, **drawn, **sections, "base": {"path": str(self.stage / "base")}}
        places = {"folders": "pictures", "validation_folder": "validation", "cache_folder": "cache"}
        data = {**{key: str(self.stage / place) for key, place in places.items()}, **preset["data"]}
        folders, held_out = data["folders"], data.pop("validation_folder")
        data["folders"] = [folders] if isinstance(folders, str) else list(folders)
        data["folders"] += [{"path": held_out, "role": "validation"}] if held_out else []
        preset["data"] = data
        preset["saving"] = {"folder": str(self.runs), **preset["saving"]}
        path = self.runs / f"{name}.json"
        path.write_text(json.dumps(preset), encoding="utf-8")
        return ["--preset", str(path), "--name", name, *more]

    def train(self, name: str, *more: str, **sections: Any) -> int:
        """Run the command in this process; its exit code."""
        return main(self.command(name, *more, **sections))

    def start(self, name: str, *more: str, **sections: Any) -> subprocess.Popen[str]:
        """Run the command in a process of its own."""
        return launch([sys.executable, "scripts/train.py", *self.command(name, *more, **sections)])

    def adapter(self, name: str) -> dict[str, Tensor]:
        """The tensors of a finished run's adapter."""
        return load_file(self.runs / name / "adapter.safetensors")

    def events(self, name: str, kind: str = "") -> list[dict[str, Any]]:
        """A run's events, all or of one kind."""
        return [e for e in read_events(self.runs / name / "events.jsonl") if kind in ("", e["event"])]

    def stepping(self, name: str) -> bool:
        """Whether a run has done its first step."""
        path = self.runs / name / "events.jsonl"
        return path.exists() and '"event": "step"' in path.read_text(encoding="utf-8")

    @contextmanager
    def session(self, name: str, *more: str, **sections: Any) -> Iterator[Session]:
        """A training that is ready for its first step."""
        command = self.command(name, *more, **sections)
        words = dict(zip(command[4::2], command[5::2], strict=True))
        preset = files.resolve(command[1], [("name", name), *((k[2:], v) for k, v in words.items())]).preset
        found = check.examine(preset, "cpu")
        assert not found.problems and found.pictures, found.problems
        accelerator = start_accelerator(preset, start_processes())
        with open_run(self.runs, preset, name) as run, Events(run.folder) as events:
            yield prepare(preset, found.pictures, run, events, accelerator)


def make_base(folder: Path) -> Path:
    """A base in which little does not learn, which else takes half of a short run's time; its path."""
    return make_folder(folder, depth=(1, 1), plain=(0,), per_block=1, plain_up=True)


def launch(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """A process in the repository's root with its own signals; stdout and stderr are pipes."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool], then: Callable, seconds: float = 240):
    """Call `then` as soon as `reached` is true."""
    end = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)
    then()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two adapters are the same bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def ask(monkeypatch, place: Place, name: str, request: str, at: int) -> None:
    """Leave a request in the run folder of `name` while step `at` is under way."""
    take_step = loop.take_step

    def asking(session: Session, progress: loop.Progress):
        if session.run.name == name and session.step + 1 == at:
            (place.runs / name / "requests" / request).touch()
        return take_step(session, progress)

    monkeypatch.setattr(loop, "take_step", asking)


def stop_and_resume(monkeypatch, place: Place, name: str, at: int, **sections: Any) -> None:
    """Train in two parts: stopped after step `at`, and started again."""
    with monkeypatch.context() as patch:
        ask(patch, place, name, "stop", at=at)
        assert place.train(name, **sections) == 130
    assert place.train(name, **sections) == 0


def draw_pictures(folder: Path, count: int, seed: int) -> None:
    """Noise pictures with captions."""
    folder.mkdir(parents=True)
    draw = numpy.random.default_rng(seed)
    for number in range(count):
        pixels = draw.integers(0, 256, (20, 20, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"red apple, face, style {'ab'[number % 2]}", encoding="utf-8")
