"""Resizing a file: the best pair of the rank, the same keys, nothing else changed."""

import runpy
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.tensorfile import CHECKSUM
from modules.tools import resize
from tests.export import foreign
from tests.export.foreign import conv, linear


def write(path, cases, metadata=None, dtype=torch.float32):
    tensors = {name + suffix: tensor.to(dtype) if tensor.dim() > 1 else tensor
               for name, case in cases.items() for suffix, tensor in case.tensors.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return tensors


def change(tensors, name):
    up, down = tensors[f"{name}.lora_up.weight"].double(), tensors[f"{name}.lora_down.weight"].double()
    alpha = tensors.get(f"{name}.alpha")
    return (1.0 if alpha is None else alpha.item() / len(down)) * up.flatten(1) @ down.flatten(1)


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["resize.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path("scripts/resize.py", run_name="__main__")
    return int(done.value.code or 0)


def without_checksum(metadata):
    return {key: value for key, value in metadata.items() if key != CHECKSUM}


@pytest.mark.parametrize("alpha", [None, 1.5, -2.0])
@pytest.mark.parametrize("rank", [1, 3, 6, 40])
def test_the_best_pair_of_a_rank(tmp_path, monkeypatch, capsys, rank, alpha):
    bases = {"lora_unet_a": linear(), "lora_unet_b": conv()}
    cases = {name: foreign.lora_of_kohya(base, 6, alpha) for name, base in bases.items()}
    before = write(tmp_path / "a.safetensors", cases, {"ss_network_dim": "6", "keep": "me"})
    assert run(monkeypatch, tmp_path / "a.safetensors", "--rank", rank, "--out", tmp_path / "b.safetensors") == 0
    after = load_file(tmp_path / "b.safetensors")
    assert after.keys() == before.keys()
    kept = min(rank, 6)
    for name in cases:
        whole = change(before, name)
        U, values, V = torch.linalg.svd(whole, full_matrices=False)
        best = (U[:, :kept] * values[:kept]) @ V[:kept]
        assert (change(after, name) - best).abs().max() < 1e-5 * whole.abs().max()
        assert after[f"{name}.lora_down.weight"].shape == (kept, *before[f"{name}.lora_down.weight"].shape[1:])
        expected = values[kept:].norm() / values.norm()
        assert f"{name}\t6\t{kept}\t{expected:.2%}" in capsys.readouterr().out if name == "lora_unet_a" else True
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert without_checksum(file.metadata()) == {"ss_network_dim": str(kept), "keep": "me"}


@pytest.mark.parametrize("wanted", [0.5, 0.1, 0.01])
def test_the_error_is_kept_and_no_rank_is_wasted(tmp_path, wanted):
    from modules.files.opening import read

    write(tmp_path / "a.safetensors", {"a": foreign.lora_of_kohya(linear(), 8)})
    row = resize.resized(read(tmp_path / "a.safetensors"), resize.to_error(wanted)).rows[0]
    energy = resize.resized(read(tmp_path / "a.safetensors"), resize.to_energy(1 - wanted**2)).rows[0]
    fewer = resize.resized(read(tmp_path / "a.safetensors"), resize.to_rank(row.after - 1)).rows[0]
    assert row.error <= wanted and energy.after == row.after
    assert row.after == 1 or fewer.error > wanted


@pytest.mark.parametrize("axis", ["input", "output"])
def test_only_magnitudes_of_outputs_were_made_for_comfyuis_norm(tmp_path, monkeypatch, capsys, axis):
    metadata = {"gimbal.comfyui_norm": "original", "gimbal.errors": "{}"}
    write(tmp_path / "a.safetensors", {"lora_unet_a": foreign.dora_of_onetrainer(linear(), axis)}, metadata)
    assert run(monkeypatch, tmp_path / "a.safetensors", "--rank", 2, "--out", tmp_path / "b.safetensors") == 0
    assert ("ComfyUI's norm" in capsys.readouterr().out) == (axis == "output")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        metadata = without_checksum(file.metadata())
    assert metadata == {"gimbal.comfyui_norm": "original"}, "errors of the old pairs are not told"


def test_everything_else_stays(tmp_path, monkeypatch, capsys):
    decomposed = foreign.dora_of_onetrainer(linear(), "input")
    other = foreign.of_lycoris("loha", linear(16), {"lora_dim": 2, "alpha": 1})
    cases = {"lora_unet_a": decomposed, "lora_unet_b": other}
    before = write(tmp_path / "a.safetensors", cases, dtype=torch.float16)
    assert run(monkeypatch, tmp_path / "a.safetensors", "--rank", 2) == 0
    after = load_file(tmp_path / "a_resized.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before if before[key].shape == after[key].shape)
    assert {key for key in before if before[key].shape != after[key].shape} == {
        "lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight"
    }
    assert {key: t.dtype for key, t in after.items()} == {key: t.dtype for key, t in before.items()}
    told = capsys.readouterr().out
    assert "magnitudes are kept" in told and "1 layers of another kind are unchanged (LoHa)" in told


def test_pefts_scale_goes_into_the_factors(tmp_path):
    from modules.files.opening import read

    cases = {"unet.a": foreign.lora_of_kohya(linear(), 4, None)}
    write(tmp_path / "a.safetensors", cases, {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 8}'})
    found = resize.resized(read(tmp_path / "a.safetensors"), resize.to_rank(4))
    assert "lora_adapter_metadata" not in found.metadata
    before = change({f"unet.a{suffix}": tensor for suffix, tensor in cases["unet.a"].tensors.items()}, "unet.a")
    assert (change(found.tensors, "unet.a") - 2 * before).abs().max() < 1e-5


@pytest.mark.parametrize("arguments, words", [
    (["--rank", "0"], "at least 1"), (["--energy", "1.5"], "between 0 and 1"), (["--error", "0"], "between 0 and 1"),
])
def test_bad_numbers_are_sentences(tmp_path, monkeypatch, capsys, arguments, words):
    write(tmp_path / "a.safetensors", {"a": foreign.lora_of_kohya(linear())})
    assert run(monkeypatch, tmp_path / "a.safetensors", *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_file_without_pairs_is_refused(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.safetensors", {"a": foreign.of_lycoris("loha", linear(16), {"lora_dim": 2, "alpha": 1})})
    assert run(monkeypatch, tmp_path / "a.safetensors", "--rank", "2") == 2
    assert "no low-rank layers to resize (1 LoHa)" in capsys.readouterr().err


def test_curve_and_powers():
    values = [torch.tensor([4.0, 3.0, 0.0]), torch.tensor([0.0, 0.0, 0.0])]
    assert resize.curve(values, [0, 1, 2]) == {0: 1.0, 1: 0.6, 2: 0.0}
    assert resize.powers(1) == [1] and resize.powers(12) == [1, 2, 4, 8, 12] and resize.powers(8) == [1, 2, 4, 8]


DTYPES = {"fp8": torch.float8_e4m3fn, "fp8 e5m2": torch.float8_e5m2, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("kind", ["linear", "convolution", "beside a magnitude", "scaled by peft"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_printed_error_is_that_of_what_is_written(tmp_path, monkeypatch, capsys, dtype, kind):
    """files.md 12: the errors of singular values alone were printed, and factors then cast to eight bits."""
    from modules.files.opening import read

    base = conv() if kind == "convolution" else linear()
    decomposed = kind == "beside a magnitude"
    case = foreign.dora_of_onetrainer(base, "input") if decomposed else foreign.lora_of_kohya(base, 6, 3.0)
    if kind == "scaled by peft":
        case.tensors.pop(".alpha")
    options = {"lora_adapter_metadata": '{"a.r": 6, "a.lora_alpha": 12}'} if kind == "scaled by peft" else None
    before = write(tmp_path / "a.safetensors", {"a.b": case}, options, DTYPES[dtype])
    rank = len(before["a.b.lora_down.weight"])
    kept = {rank - 1, rank} if kind == "scaled by peft" else {1, rank - 1}
    for count in kept:
        assert run(monkeypatch, tmp_path / "a.safetensors", "--rank", count) == 0
        printed = float(capsys.readouterr().out.splitlines()[1].split("\t")[3].rstrip("%")) / 100
        after = read(tmp_path / "a_resized.safetensors").tensors
        whole = change(before, "a.b") * (2 if kind == "scaled by peft" else 1)
        measured = ((change(after, "a.b") - whole).norm() / whole.norm()).item()
        assert measured > 1e-5 and abs(printed - measured) <= 0.1 * measured
        best = torch.linalg.svdvals(whole)[count:].norm() / whole.norm()
        assert measured <= 1.05 * best + 0.01, "no more is lost than the rank and 16 bits cost"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_that_keeps_its_rank_keeps_its_bytes(tmp_path, monkeypatch, capsys, dtype):
    before = write(tmp_path / "a.safetensors", {"a": foreign.lora_of_kohya(linear(), 4, 2.0)}, None, DTYPES[dtype])
    assert run(monkeypatch, tmp_path / "a.safetensors", "--rank", 9) == 0
    after = load_file(tmp_path / "a_resized.safetensors")
    assert all(after[key].dtype == tensor.dtype and torch.equal(after[key].view(torch.uint8), tensor.view(torch.uint8))
               for key, tensor in before.items() if tensor.dim() > 1)
    assert "a\t4\t4\t0.00%" in capsys.readouterr().out


def test_factors_beyond_the_numbers_of_the_file_are_refused(tmp_path, monkeypatch, capsys):
    case = foreign.lora_of_kohya(linear(), 4, None)
    for suffix in (".lora_up.weight", ".lora_down.weight"):
        case.tensors[suffix] = torch.full_like(case.tensors[suffix], 60000.0)
    write(tmp_path / "a.safetensors", {"a": case}, None, torch.float16)
    assert run(monkeypatch, tmp_path / "a.safetensors", "--rank", 1) == 2
    assert "a: its new factors are beyond the range of float16" in capsys.readouterr().err
