"""A short training of every family with its shipped presets, from the command to files for every program.

Exporting reads each file back, computes what the program would, and fails where that is not what was trained.
"""

import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from modules.training.command import DONE, main
from modules.training.events import read_events
from scripts import export
from tests.families.conftest import VARIANTS
from tests.families.rows import FAMILIES, SIZE
from tests.training.runs import draw_pictures

HOSTS = {
    "lora": (("kohya", "auto"), ("diffusers", "auto")),
    "wora": (("kohya", "full"), ("diffusers", "full"), ("comfyui_node", "auto")),
    "doft_planes": (("diffusers", "auto"), ("comfyui_node", "auto")),
}
"""Presets, and programs besides ComfyUI with a form in which their files hold what they train."""

SMALL = {
    "data.resolution": max(SIZE),
    "training.steps": 3,
    "training.precision": "float32",
    "training.learning_rate": 0.01,
    "training.warmup": 0,
    "optimizer.name": "adamw",
    "samples.steps": 2,
    "samples.every": 0,
    "export.dtype": "float32",
}
"""What the shipped presets leave to larger machines."""


ROWS = [name for name in FAMILIES if name not in VARIANTS]
BASES = ["sdxl", "sdxl", *ROWS]
WITH = [*HOSTS, *list(HOSTS) * len(BASES)][: len(BASES)]
CASES = [(base, method, HOSTS[method][n // len(HOSTS) % len(HOSTS[method])]) for n, (base, method) in
         enumerate(zip(BASES, WITH, strict=True))]
"""Each family with one of the presets and one of its programs in turn, SDXL with all presets."""


@pytest.fixture(scope="module")
def stage(request, tmp_path_factory) -> tuple[str, Path]:
    """The family's name, and a folder with a tiny base and pictures."""
    row, folder = FAMILIES[request.param], tmp_path_factory.mktemp("stage")
    row.make_pair(folder)
    draw_pictures(folder / "pictures", 3, 0)
    return row.family, folder


@pytest.mark.full
@pytest.mark.parametrize("stage, method, program", CASES, indirect=["stage"])
def test_a_shipped_preset_trains_samples_and_exports(stage, method, program, tmp_path, forget_accelerate, monkeypatch):
    (family, folder), (host, form) = stage, program
    options = {
        **SMALL,
        "base": folder / "base",
        "data.folders": folder / "pictures",
        "data.cache_folder": folder / "cache",
        "saving.folder": tmp_path,
    }
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    assert main(["--preset", f"{method}_{family}", "--name", "short", *words]) == DONE
    events = read_events(tmp_path / "short" / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "step"][-1] == 3
    assert len([event for event in events if event["event"] == "sample"]) == 2 * 3
    out = tmp_path / f"{host}.safetensors"
    words = [str(tmp_path / "short"), "--host", host, "--form", form, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["export.py", *words])
    assert export.main() == 0
    with safe_open(out, "pt") as file:
        assert file.metadata()["modelspec.architecture"].endswith("/lora") and len(file.keys()) > 10
