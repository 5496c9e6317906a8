"""A trained run's sample pictures, drawn again by diffusers alone from the exported file (scripts/host_pictures.py)."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripts import host_pictures
from tests import (
    tiny_anima,
    tiny_chroma,
    tiny_flux,
    tiny_flux2,
    tiny_krea2,
    tiny_qwenimage,
    tiny_qwenimage21,
    tiny_sd3,
    tiny_sd15,
    tiny_sdxl,
    tiny_zimage,
)
from tests.training.runs import Place, draw_pictures

FLOW = {"min_snr_gamma": None}


@dataclass(frozen=True)
class Row:
    """One kind of base."""

    family: str
    make_folder: Callable[[Path], Path]
    objective: dict = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    """Layers that diffusers cannot hold."""
    steps: int = 2
    tolerance: int = host_pictures.TOLERANCE
    """Of 255."""


ROWS = {
    "sd15": Row("sd15", tiny_sd15.make_folder),
    "sd2": Row("sd15", lambda folder: tiny_sd15.make_folder(folder, True), {"prediction": "v_prediction"}),
    "sdxl": Row("sdxl", tiny_sdxl.make_folder),
    "sd3": Row("sd3", tiny_sd3.make_folder, {**FLOW, "shift": 3.0}, ("text_encoder_3.*",)),
    "chroma": Row("chroma", tiny_chroma.make_folder, FLOW, ("text_encoder.*",), steps=30, tolerance=1),
    "flux dev": Row("flux", tiny_flux.make_folder, FLOW, ("text_encoder_2.*",)),
    "flux2 klein": Row("flux2", lambda folder: saved(folder, "base"), FLOW, ("text_encoder.*",), 30, 1),
    "flux2 distilled": Row("flux2", lambda folder: saved(folder, "distilled"), FLOW, ("text_encoder.*",)),
    "flux2 dev": Row("flux2", lambda folder: saved(folder, "dev"), FLOW, ("text_encoder.*",), 30, 1),
    "krea2": Row("krea2", tiny_krea2.make_folder, FLOW, ("text_encoder.*",), 30, 1),
    "qwenimage": Row("qwenimage", tiny_qwenimage.make_folder, FLOW, ("text_encoder.*",), 30, 1),
    "qwenimage21": Row("qwenimage21", tiny_qwenimage21.make_folder, FLOW, ("text_encoder.*",), 30, 1),
    "zimage": Row("zimage", tiny_zimage.make_folder, FLOW, ("text_encoder.*",), 30, 1),
    "anima": Row("anima", tiny_anima.make_folder, FLOW, ("text_encoder.*",), 30, 1),
}


def saved(folder: Path, kind: str) -> Path:
    """The base of this kind as diffusers saves it: it reads captions alone, also of dev."""
    tiny_flux2.make_pipeline(kind).save_pretrained(folder / "base")
    return folder / "base"


@pytest.mark.full
@pytest.mark.parametrize("name", ROWS)
def test_diffusers_draws_the_trainers_pictures(tmp_path, forget_accelerate, monkeypatch, name):
    tiny_anima.stand_in(monkeypatch)
    row, place = ROWS[name], Place(tmp_path / "stage", tmp_path / "runs")
    place.runs.mkdir(parents=True)
    row.make_folder(place.stage)
    draw_pictures(place.stage / "pictures", 3, 0)
    draw_pictures(place.stage / "validation", 1, 1)
    code = place.train(
        "run",
        family=row.family,
        targets={"layers": "attention-mlp", "text_encoders": True, "exclude": row.exclude},
        adapter={"method": "dora", "rank": 2, "axis": "output"},
        objective=row.objective,
        data={"resolution": 32},
        training={"steps": row.steps, "learning_rate": 0.2 / row.steps, "warmup": 0, "schedule": "constant"},
        samples={"steps": 3, "prompts": ["red apple", "a blue heart"], "negative": ""},
    )
    assert code == 0
    run, file = place.runs / "run", tmp_path / "diffusers.safetensors"
    assert host_pictures.export(run, file) == "auto"
    found = host_pictures.differences(run, file)
    assert len(found) == 2 and max(found) <= row.tolerance
    events = place.events("run", "sample")
    first, last = (next(run / e["path"] for e in order) for order in (events, reversed(events)))
    assert first.read_bytes() != last.read_bytes()


@pytest.mark.parametrize("samples, said", [
    ({"base": "other", "prompts": []}, "samples.base is set"),
    ({"prompts": ["a", {"text": "b", "references": ["c.png"]}]}, "samples.prompts have references"),
])  # fmt: skip
def test_what_it_does_not_draw_is_a_sentence(tmp_path, samples, said):
    (tmp_path / "preset.json").write_text(json.dumps({"samples": samples}))
    with pytest.raises(ValueError, match=f"^{said}: "):
        host_pictures.differences(tmp_path, tmp_path / "file")
