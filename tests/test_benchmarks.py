"""The benchmarks that cannot show their numbers on every machine still run."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import full_size, rotations

ROOT = Path(__file__).parents[1]
ROW = {"model": "a model", "preset": "a preset", "base": "nf4", "resolution": 64, "seconds": 0.25, "peak": 2048.0}


@pytest.mark.slow
@pytest.mark.parametrize("base, preset", [("demo/base", "wora_demo"), ("demo/flux_base", "doft_flux_demo")])
def test_full_size_measures_a_base_on_disk(base, preset):
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
