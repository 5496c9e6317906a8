"""The benchmarks that cannot show their numbers on every machine still run."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import adapters, files, full_size, rotation_steps, rotations, scale

ROOT = Path(__file__).parents[1]
ROW = {"model": "a model", "preset": "a preset", "base": "nf4", "resolution": 64, "seconds": 0.25, "peak": 2048.0}


@pytest.mark.full
def test_full_size_measures_a_base_on_disk():
    base, preset = "demo/flux_base", "doft_flux_demo"
    command = [sys.executable, "benchmarks/full_size.py", "--base", base, "--presets", preset, "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and f"`{preset}`" in done.stdout, done.stderr
    row = next(line for line in done.stdout.splitlines() if preset in line).split("|")
    assert float(row[5]) > 0 and float(row[6].split()[0]) >= float(row[7].split()[0]) > 0


def test_the_table_takes_its_place_in_the_page(tmp_path, monkeypatch):
    page = tmp_path / "performance.md"
    page.write_text(full_size.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(full_size, "PAGE", page)
    begin, _, end = page.read_text(encoding="utf-8").partition(full_size.BEGIN)
    end = end.partition(full_size.END)[2]
    for seconds in (0.25, 0.5):
        full_size.write(full_size.table([{**ROW, "seconds": seconds, "idle": 1024.0, "device": "a device"}]))
        found = page.read_text(encoding="utf-8")
        assert f"| a model | `a preset` | nf4 | 64 | {seconds:.3f} | 2.0 GiB | 1.0 GiB |" in found
        assert found.startswith(begin) and found.endswith(end)
    assert found.count("`a preset`") == 1, "the second table has taken the place of the first"


def test_rotations_are_measured_and_need_a_place(tmp_path, monkeypatch):
    lines = rotations.rows(16, 32, 1, "cpu")
    assert len(lines) == len(rotations.maps())
    assert all(line.count("|") == len(rotations.COLUMNS) + 1 for line in lines)
    page = tmp_path / "methods.md"
    monkeypatch.setattr(rotations, "PAGE", page)
    with pytest.raises(SystemExit, match="no place for the table"):
        rotations.write("text")
    page.write_text(f"before {rotations.BEGIN} old {rotations.END} behind", encoding="utf-8")
    rotations.write("text")
    assert page.read_text(encoding="utf-8") == f"before {rotations.BEGIN}\ntext\n{rotations.END} behind"


def test_steps_of_rotations_are_measured():
    """Calibrated: lr in the Frobenius norm, whatever the gradient. adv_optm, if there: lr in the spectral norm."""
    lines = rotation_steps.table([8, 16], 64)
    cells = {line.split("|")[1].strip(): line for line in lines[2:]}
    for kind in ("random", "plane"):
        for name in ("`oft`, calibrated", "OneTrainer, scaled OFT"):
            assert cells[f"{kind}: {name}"].count("(1.00)") == 2, lines
        other = cells.get(f"{kind}: adv_optm, spectral, step 100")
        assert (other or "").count(" 1.00 (") == (2 if rotation_steps.installed() else 0), lines


def test_layers_of_all_programs_are_measured_side_by_side(monkeypatch, capsys):
    monkeypatch.setitem(adapters.LAYERS, "linear-64", lambda: torch.nn.Linear(64, 64))
    arguments = argparse.Namespace(dtype="float32", device="cpu", accumulation=2, rounds=1, only=None)
    found = {tokens: adapters.measure("linear-64", tokens, arguments) for tokens in (4, 16)}
    assert not capsys.readouterr().err, "all of them run on a linear layer"
    assert set(found[4]) > {*adapters.OURS, "DoRA, output, peft", "DOFT, LyCORIS"}
    head, blank, columns, rule, *rows = adapters.table("linear-64", found).splitlines()
    assert head.startswith("linear-64 (LoRA: ") and "with 16 tokens" in head and not blank
    assert columns == "| method | time, 4 | time, 16 | saved, 4 | saved, 16 |" and len(rows) == len(found[4])
    assert rows[0] == "| LoRA | 1.00 | 1.00 | 1.00 | 1.00 |" and all(row.count("|") == rule.count("|") for row in rows)
    del found[16]["DOFT"]
    assert any(row.startswith("| DOFT | ") and row.count(" - ") == 2
               for row in adapters.table("linear-64", found).splitlines())


@pytest.mark.full
def test_whole_steps_are_measured_side_by_side():
    command = [sys.executable, "benchmarks/training_step.py", "--models", "demo", "--methods", "wora", "--rounds", "1"]
    command += ["--accumulation", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "| method | 1 x | 1 x, recomputing |" in done.stdout
    assert "| lora | 1.00 | 1.00 |" in done.stdout and "| wora | " in done.stdout


@pytest.mark.full
def test_everything_that_goes_through_all_layers_is_measured(monkeypatch):
    monkeypatch.setattr(scale, "SHARES", (0.01, 0.05))
    found = list(scale.rows("flux_dev", "lora", scale.WORKS, 1))
    assert [row.work for row in found] == [work for work, _, _ in scale.WORKS]
    for row in found:
        assert 20 < row.layers[0] < row.layers[1] and all(second > 0 for size in row.seconds for second in size)
        assert row.line().startswith(f"| flux_dev | lora | {row.work} | 1.00 | ")


@pytest.mark.full
def test_every_tool_for_files_is_measured_as_a_process(tmp_path):
    """At a sixteenth of the width, where what a tool needs by itself is more than the file."""
    found = list(files.rows(files.KINDS["flux_dev"], ["inspect", "merge"], tmp_path, True, 280))
    assert [row.tool for row in found] == ["inspect", "merge"]
    for row in found:
        assert row.seconds > 0 and row.processor > 0 and row.file > 1e5 and not row.is_too_large, row.line()
        assert row.line().count("|") == files.HEAD.splitlines()[0].count("|")
    assert list(tmp_path.rglob("out*")) == [], "what tools write is removed"


@pytest.mark.full
def test_a_tool_for_files_that_needs_more_or_fails_is_an_error(monkeypatch, capsys, tmp_path):
    row = files.Row("a file", "convert", 1.0, 2.0, 700_000_000, 100_000_000, 230_000_000)
    monkeypatch.setattr(files, "rows", lambda *_: iter([row]))
    monkeypatch.setattr(sys, "argv", ["files.py", "--models", "sdxl", "--narrow"])
    assert files.main() == 1 and "a layer: convert" in capsys.readouterr().out
    monkeypatch.setattr(files, "command", lambda *_: ["inspect_adapter.py", str(tmp_path / "absent")])
    case = files.Case(files.KINDS["sdxl"], tmp_path / "absent", tmp_path, 1)
    with pytest.raises(ValueError, match="(?s)inspect failed: .*absent"):
        files.measure("inspect", case, tmp_path, 200)


@pytest.mark.parametrize("last, word", [(0.7e-3, "nothing"), (1.3e-3, "nothing"), (4e-3, "attach")])
def test_what_takes_longer_per_layer_the_more_there_are_is_an_error(monkeypatch, capsys, last, word):
    """Three rounds, in one of which the machine was busy with something else."""
    row = scale.Row("a model", "a method", "attach", [10, 20, 40], [[1e-3] * 3, [1e-3] * 3, [last, 9e-3, last]])
    monkeypatch.setattr(scale, "rows", lambda *_: iter([row]))
    monkeypatch.setattr(sys, "argv", ["scale.py", "--models", "sdxl", "--methods", "lora"])
    assert scale.main() == (word != "nothing")
    assert f"faster than the number of layers: {word}" in capsys.readouterr().out


def test_a_hardly_measurable_time_does_not_grow():
    assert not scale.Row("m", "m", "report", [10, 40], [[1e-6], [4e-6]]).grows
    assert scale.Row("m", "m", "report", [10, 40], [[1e-4], [4e-4]]).grows
