"""scripts/compare.py: the table and the picture of finished runs, what it refuses, and its place in the page."""

import json
import subprocess
from pathlib import Path

import numpy
import pytest
from PIL import Image
from safetensors.numpy import save_file

from modules.preset import files
from modules.training.events import Events
from modules.training.samples import save_samples
from scripts import compare

PROMPTS = ("red apple", "blue heart")
FORMS = {"one": "LoRA", "two": "LoRA", "three": "full difference"}
ERRORS = {"one": 1e-5, "two": 3.25e-5, "three": 2e-5}


def preset(runs: Path, name: str, *more: tuple[str, str]):
    """A shipped preset as the script trains it in `runs` (in 10 steps)."""
    samples = ("samples.prompts", json.dumps(PROMPTS))
    found = files.resolve("wora_demo", [("saving.folder", str(runs)), ("training.steps", "10"), samples, *more]).preset
    return found.model_copy(update={"name": name})


def finished(runs: Path, name: str, after: float, *more: tuple[str, str]) -> Path:
    """A run folder as a training leaves it, with grey pictures: dark ones before training, light ones after it."""
    folder = runs / name
    with Events(folder) as events:
        for step, loss, grey in ((0, 0.5, 40), (10, after, 200)):
            events.write("validation", {"step": step, "loss": loss, "baseline": 0.5})
            pictures = [Image.new("RGB", (16, 16), (grey, grey, grey)) for _ in PROMPTS]
            for path, prompt in zip(save_samples(folder, step, pictures), PROMPTS, strict=True):
                events.write("sample", {"step": step, "path": str(path), "prompt": prompt, "base": "a base"})
        file = folder / f"{name}.safetensors"
        told = {"gimbal.form": FORMS, "gimbal.errors": ERRORS, "gimbal.approximations": {}}
        tensors = {"x": numpy.zeros(1000, numpy.float32)}
        save_file(tensors, file, {key: json.dumps(value) for key, value in told.items()})
        for step, subject, style in ((0, 0.5, 0.0), (10, 0.75, 1.0)):
            events.write("judged", {"step": step, "subject": subject, "style": style, "unnamed": 0.0})
        events.write("finished", {"outcome": "done", "exit_code": 0, "step": 10, "path": str(file)})
    files.write(preset(runs, name, *more), folder / "preset.json")
    (folder / "layers.tsv").write_text("layer\tkind\tparameters\trank\none\tlinear\t1200\t2\ntwo\tconv\t34\t2\n")
    return folder


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """Presets by name that the script finds; their runs are in `tmp_path`. Nothing is trained."""
    found = {name: preset(tmp_path, name) for name in ("first", "second")}
    monkeypatch.setattr(compare, "demos", lambda base: list(found))
    monkeypatch.setattr(compare, "resolved", lambda name, runs, steps: found[name])
    monkeypatch.setattr(subprocess, "run", lambda *command, check: subprocess.CompletedProcess(command, 1))
    return found


def run(monkeypatch, runs: Path, *more: str) -> int:
    monkeypatch.setattr("sys.argv", ["compare.py", "--runs", str(runs), *more])
    return compare.main()


def columns(text: str, name: str) -> list[str]:
    """The cells of a row of the table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_what_the_runs_say(presets, tmp_path, monkeypatch, capsys):
    finished(tmp_path, "first", 0.45)
    finished(tmp_path, "second", 0.4)
    (tmp_path / "timing.json").write_text(json.dumps({"reference": "first", "ratios": {"first": 1.0, "second": 1.256}}))
    assert run(monkeypatch, tmp_path) == 0
    text = capsys.readouterr().out
    size = (tmp_path / "first/first.safetensors").stat().st_size
    rate = f"{presets['first'].training.learning_rate:g}"
    judged = ["50%, 75%", "0%, 100%"]
    shared = ["1,234", f"{size / 1e6:.1f} MB", "2 LoRA, 1 full difference", "3.2e-05", rate]
    assert columns(text, "first") == ["`first`", *shared, "1.00", "0.5000", "0.4500", "10.0 %", *judged]
    assert columns(text, "second") == ["`second`", *shared, "1.26", "0.5000", "0.4000", "20.0 %", *judged]
    assert "10 steps" in text and "multiples of `first`'s" in text
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "columns are aligned"


def test_the_picture_has_the_base_and_a_row_for_each_run(presets, tmp_path, monkeypatch):
    finished(tmp_path, "first", 0.45)
    finished(tmp_path, "second", 0.4)
    assert run(monkeypatch, tmp_path) == 0
    picture = numpy.asarray(Image.open(tmp_path / "methods.png"))
    centres = [18 + row * (128 + 6) + 64 for row in range(3)]
    for column in range(len(PROMPTS)):
        x = compare.LABEL + column * (128 + 6) + 64
        assert [picture[y, x, 0] for y in centres] == [40, 200, 200]


def test_the_page_gets_table_and_picture_between_its_marks(presets, tmp_path, monkeypatch):
    finished(tmp_path, "first", 0.45)
    page, picture = tmp_path / "docs/methods.md", tmp_path / "docs/images/methods.png"
    page.parent.mkdir()
    page.write_text(f"before\n{compare.BEGIN}\nold\n{compare.END}\nafter\n")
    monkeypatch.setattr(compare, "PAGE", page)
    monkeypatch.setattr(compare, "PICTURE", picture)
    assert run(monkeypatch, tmp_path, "--only", "first", "--write") == 0
    text = page.read_text()
    assert text.startswith(f"before\n{compare.BEGIN}\n") and text.endswith(f"\n{compare.END}\nafter\n")
    assert "old" not in text and "`first`" in text and "(images/methods.png)" in text and picture.is_file()
    page.write_text("no marks\n")
    assert run(monkeypatch, tmp_path, "--only", "first", "--write") == 2
    assert page.read_text() == "no marks\n"


def test_a_training_that_fails_is_left_out(presets, tmp_path, monkeypatch, capsys):
    finished(tmp_path, "first", 0.45)
    assert run(monkeypatch, tmp_path) == 1
    said = capsys.readouterr()
    assert "`first`" in said.out and "second" not in said.out
    assert "second: its training ended with exit code 1" in said.err
    assert run(monkeypatch, tmp_path, "--only", "second") == 2


def test_spectra_are_medians_over_the_layers_of_the_exported_files(presets, tmp_path, monkeypatch, capsys):
    import torch

    from modules.tools import base_of_file
    from tests.export.setup import Model

    for name, size in (("first", 1.0), ("second", 3.0)):
        file = finished(tmp_path, name, 0.45) / f"{name}.safetensors"
        told = {f"gimbal.{key}": "{}" for key in ("form", "approximations")} | {"gimbal.errors": '{"x": 0}'}
        tensors = {}
        layers = (("wide", 16, 24, [2, 1]), ("square", 16, 16, [4, 4]), ("point", 8, 8, [6, 6]))
        for layer, out, inputs, values in layers:
            up, down = torch.eye(out, 2), torch.eye(2, inputs)
            tensors[f"lora_unet_{layer}.lora_up.weight"] = (size * up * torch.tensor(values)).numpy()
            tensors[f"lora_unet_{layer}.lora_down.weight"] = down.numpy()
        save_file(tensors, file, told)
    monkeypatch.setattr(base_of_file, "load", lambda *_: Model())
    assert run(monkeypatch, tmp_path, "--spectrum") == 0
    text = capsys.readouterr().out
    assert columns(text, "first")[-3:] == ["4", "2", "2"] and columns(text, "second")[-3:] == ["12", "2", "2"]
    assert "spectral norm | stable rank | effective rank |" in text and "medians over the layers" in text


@pytest.mark.parametrize(
    "option, words", [("training.learning_rate", "training.learning_rate"), ("samples.seed", "samples are")]
)
def test_runs_of_other_options_are_refused(presets, tmp_path, monkeypatch, capsys, option, words):
    finished(tmp_path, "first", 0.45)
    finished(tmp_path, "second", 0.4, (option, "3"))
    assert run(monkeypatch, tmp_path) == 2
    said = capsys.readouterr().err
    assert words in said and str(tmp_path / "second") in said


def test_the_shipped_demos_are_found():
    found = compare.demos("demo/base")
    assert "lora_demo" in found and not [name for name in found if "flux" in name]
    with pytest.raises(ValueError, match="no preset"):
        compare.demos("elsewhere")


@pytest.mark.full
def test_steps_are_timed_in_turn(tmp_path, monkeypatch, forget_accelerate):
    light = [("targets.layers", "attention"), ("training.batch_size", "1"), ("training.steps", "3")]
    pair = [preset(tmp_path, name, *light) for name in ("first", "second")]
    ratios = compare.measured(pair, rounds=2)
    assert ratios["first"] == 1 and 0.1 < ratios["second"] < 10
    assert not list(tmp_path.iterdir()), "nothing is kept"
