"""Trainings with text encoders of tiny bases: three steps, samples, and files for every host, put into a fresh base."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from modules.adapters.base import Adapted
from modules.export.export import export
from modules.families import load_class
from modules.files import run_file
from modules.preset.files import resolve
from modules.preset.schema import Preset
from modules.tools.apply import apply_file
from modules.training.setup import load_and_attach, whole
from tests import tiny_flux, tiny_qwenimage, tiny_qwenimage21, tiny_sd3
from tests.training.runs import Place, draw_pictures

CPU = torch.device("cpu")
METHODS = {
    "wora": {"method": "wora", "rank": 2, "axis": "input"},
    "dora": {"method": "dora", "rank": 2, "axis": "output"},
    "doft": {"method": "doft", "rotation": {"kind": "planes", "planes": 1}},
}
HOSTS = {"wora": ("comfyui",), "dora": ("diffusers", "kohya"), "doft": ("comfyui", "diffusers", "kohya")}
"""Those that can hold what the method learns; kohya's files have query, key and value as one layer."""


@dataclass(frozen=True)
class Row:
    """One family, or one kind of its bases."""

    family: str
    make_folder: Callable[[Path], Path]
    """Writes a tiny base to `<folder>/base`."""
    methods: tuple[str, ...]
    objective: dict = field(default_factory=lambda: {"min_snr_gamma": None})
    exclude: tuple[str, ...] = ()
    """Layers that not every host can hold."""
    parts: int = 2
    """How many networks at least are trained."""


ROWS = {
    "flux dev": Row("flux", tiny_flux.make_folder, ("dora",), exclude=("text_encoder_2.*",)),
    "flux schnell": Row("flux", lambda folder: tiny_flux.make_folder(folder, dev=False), ("doft",),
                        {"min_snr_gamma": None, "shift": 2.0}, ("text_encoder_2.*",)),
    "sd3": Row("sd3", tiny_sd3.make_folder, ("wora",), {"min_snr_gamma": None, "shift": 2.0},
               ("text_encoder_3.*",)),
    "sd3 without t5": Row("sd3", lambda folder: tiny_sd3.make_folder(folder, t5=False), ("dora",)),
    "qwenimage": Row("qwenimage", tiny_qwenimage.make_folder, ("wora",)),
    "qwenimage21": Row("qwenimage21", tiny_qwenimage21.make_folder, ("dora",), exclude=("text_encoder.*",),
                       parts=1),
}


def train(place: Place, row: Row, method: str) -> Preset:
    """Three steps; the run's preset."""
    code = place.train(
        "run",
        family=row.family,
        targets={"layers": "attention-mlp", "text_encoders": True, "exclude": row.exclude},
        adapter=METHODS[method],
        objective=row.objective,
        data={"resolution": 32, "caption_dropout": 0.3},
        training={"steps": 3, "learning_rate": 0.01, "warmup": 0, "gradient_checkpointing": True},
        samples={"steps": 2, "prompts": ["red apple"]},
    )
    assert code == 0
    return resolve(str(place.runs / "run" / "preset.json")).preset


def assert_read_back(place: Place, preset: Preset, host: str, layers: dict[str, Adapted]) -> None:
    """Export for `host`, put the file into a fresh base, and compare with the trained weights."""
    options = preset.export.model_copy(update={"host": host, "dtype": "float32"})
    model, fresh = load_and_attach(preset, CPU)
    facts = run_file.load(place.runs / "run" / "adapter.safetensors", fresh)
    path = place.runs / f"{host}.safetensors"
    report = export(model, fresh, preset.model_copy(update={"export": options}), facts, path)
    assert not report.approximate
    base = load_class(preset.family).load(preset.base, CPU, torch.float32)
    assert set(apply_file(base, path, host)) >= layers.keys()
    for name, adapted in layers.items():
        wanted = adapted.adapted_weight()
        found = whole(base).get_submodule(name).weight
        assert isinstance(found, torch.Tensor)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


@pytest.mark.full
@pytest.mark.short("sd3-wora")
@pytest.mark.parametrize("name, method", [(name, method) for name, row in ROWS.items() for method in row.methods])
def test_trains_samples_and_exports(tmp_path, forget_accelerate, name, method):
    row, place = ROWS[name], Place(tmp_path / "stage", tmp_path / "runs")
    place.runs.mkdir(parents=True)
    row.make_folder(place.stage)
    draw_pictures(place.stage / "pictures", 3, 0)
    draw_pictures(place.stage / "validation", 1, 1)
    preset = train(place, row, method)

    steps = place.events("run", "step")
    assert len(steps) == 3 and all(math.isfinite(step["loss"]) for step in steps)
    samples = place.events("run", "sample")
    assert len(samples) == 2 and all((place.runs / "run" / event["path"]).is_file() for event in samples)
    _, layers = load_and_attach(preset, CPU)
    run_file.load(place.runs / "run" / "adapter.safetensors", layers)
    parts = {layer.partition(".")[0] for layer in layers}
    assert len(parts) >= row.parts
    moved = [layer for layer, adapted in layers.items() if not torch.equal(adapted.adapted_weight(), dense(adapted))]
    assert {layer.partition(".")[0] for layer in moved} == parts
    for host in HOSTS[method]:
        assert_read_back(place, preset, host, layers)


def dense(adapted: Adapted) -> torch.Tensor:
    """The frozen weight in the shape of `adapted_weight`."""
    return adapted.layer.native(adapted.layer.dense()).float()
