"""A GPU that torch cannot use is said before the run, with what to install."""

import sys

import pytest
import torch

from modules.preset import files
from modules.training import check, graphics
from tests.training.runs import Place

THERE, NOT_THERE = {"NVIDIA": lambda: True}, {"NVIDIA": lambda: False}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("cuda, said", [(None, "was built without support"), ("13.0", "finds no usable GPU")])
def test_a_gpu_that_is_not_used_is_said_with_the_command(monkeypatch, cuda, said):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    sentence = graphics.unused("cpu", THERE)
    assert said in sentence and graphics.SITE in sentence
    if cuda is None:
        assert f"torch=={torch.__version__.split('+')[0]} --index-url https://download.pytorch.org/" in sentence


@pytest.mark.parametrize("device, drivers", [("cuda", THERE), ("mps", THERE), ("cpu", NOT_THERE)])
def test_nothing_is_said_where_nothing_is_wrong(device, drivers):
    assert graphics.unused(device, drivers) == ""


@pytest.mark.parametrize(
    "name, value", [("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1"), ("ACCELERATE_USE_CPU", "true")]
)
def test_nothing_is_said_when_the_cpu_was_asked_for(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert graphics.unused("cpu", THERE) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script as the driver's program")
def test_the_check_says_it_when_the_drivers_program_is_installed(place: Place, tmp_path, monkeypatch):
    """As on Linux and Windows: nvidia-smi comes with the driver."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    found = check.examine(files.resolve(place.command("gpu")[1]).preset, "cpu")
    assert any("NVIDIA GPU driver is installed" in note for note in found.notes)
