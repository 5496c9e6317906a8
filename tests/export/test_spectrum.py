"""Spectra of changes: the published definitions, by dense SVDs; files with and without a base; two files together."""

import json
import math
import runpy
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modules.adapters.base import Terms, detach
from modules.adapters.layers import as_layer
from modules.files import opening, singular_values
from modules.files.singular_values import Spectrum
from modules.tools.spectrum import measure
from tests.export import foreign
from tests.export.foreign import conv, linear
from tests.export.setup import label, write


def orthonormal(rows: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64)).Q


def with_values(values, seed=0, out=12, fan_in=16):
    """A pair whose product has these singular values."""
    count = len(values)
    up = orthonormal(out, count, seed) * torch.tensor(values, dtype=torch.float64)
    return singular_values.of_pair(Terms(up=up, down=orthonormal(fan_in, count, seed + 1).mT))


def by_definition(D: torch.Tensor) -> tuple[float, float, float, float]:
    """Spectral norm, Frobenius norm, stable rank, effective rank."""
    values = torch.linalg.svdvals(D.double()).tolist()
    values = [value for value in values if value > 1e-7 * max(values)]
    square, total = sum(value**2 for value in values), sum(values)
    entropy = -sum(value / total * math.log(value / total) for value in values)
    return values[0], math.sqrt(square), square / values[0] ** 2, math.exp(entropy)


def all_of(one: Spectrum) -> tuple[float, float, float, float]:
    return one.spectral_norm, one.frobenius_norm, one.stable_rank, one.effective_rank


@pytest.mark.parametrize("values, stable, effective", [
    ([3.0], 1, 1), ([2.0, 2.0, 2.0], 3, 3), ([4.0, 2.0], 1.25, 3 / 2 ** (2 / 3)), ([0.0, 0.0], 0, 0),
])
def test_ranks_count_directions(values, stable, effective):
    found = singular_values.spectrum(with_values(values))
    assert all_of(found)[2:] == pytest.approx((stable, effective), abs=1e-9)
    assert found.spectral_norm == pytest.approx(max(values)) and found.rank == len(values)


def file_of(folder, name, **cases):
    path = folder / f"{name}.safetensors"
    save_file(foreign.named(cases), path)
    return opening.read(path)


@pytest.mark.parametrize("base, alpha", [(linear(), 1.5), (conv(), None)])
def test_a_pair_needs_no_base(tmp_path, base, alpha):
    case = foreign.lora_of_kohya(base, 3, alpha)
    found = measure([file_of(tmp_path, "a", lora_unet_a=case)]).spectra[0].layers["lora_unet_a"]
    assert all_of(found) == pytest.approx(by_definition((case.weight - base.weight).flatten(1)), rel=1e-4)
    assert found.rank == 3


VARIANTS = [
    ("doft", {"rotation": {"kind": "blocks", "block_size": 4}}), ("dora", {"rank": 3}), ("loha", {"rank": 2}),
    ("lora", {"rank": 3}),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: label(variant))
def test_with_a_base_every_kind_is_the_change_of_the_weight(tmp_path, variant):
    model, trained, report, _ = write(tmp_path, variant, host="comfyui_node", dtype="float32")
    wanted = {name: (adapted.adapted_weight() - adapted.base.weight).detach() for name, adapted in trained.items()}
    for network in model.networks.values():
        detach(network)
    found = measure([opening.read(report.path)], model).spectra[0].layers
    assert found.keys() == wanted.keys()
    for name, D in wanted.items():
        assert all_of(found[name])[:3] == pytest.approx(by_definition(D.flatten(1))[:3], rel=1e-3), name


def test_what_needs_a_base_is_said(tmp_path):
    decomposed = foreign.dora_of_onetrainer(linear(), "output")
    found = measure([file_of(tmp_path, "a", a=foreign.lora_of_kohya(linear()), b=decomposed)]).spectra[0]
    assert list(found.layers) == ["a"] and list(found.left_out.values()) == [1]
    assert "1 layers (LoRA with output magnitude (DoRA); give the base with --base)" in found.text()
    with pytest.raises(ValueError, match="no plain low-rank pairs .* --base"):
        measure([file_of(tmp_path, "b", b=decomposed)])


# -- two files ---------------------------------------------------------------------------------------------------------


def test_stacking_equal_and_orthogonal_changes():
    basis, inputs = orthonormal(12, 4, 0), orthonormal(16, 4, 1)
    one, other = (singular_values.of_pair(Terms(up=basis[:, part] * 2, down=inputs[:, part].mT))
                  for part in (slice(0, 2), slice(2, 4)))
    same, apart = singular_values.stacked(one, one), singular_values.stacked(one, other)
    assert (same.outputs, same.inputs, same.growth) == pytest.approx((1, 1, 2))
    assert (apart.outputs, apart.inputs, apart.growth) == pytest.approx((0, 0, 1), abs=1e-12)
    zero = singular_values.stacked(one, with_values([0.0]))
    assert (zero.outputs, zero.growth, zero.directions) == (0, pytest.approx(1), (2, 0))


@pytest.mark.parametrize("values", [[3.0, 1.0, 0.5], [float(n) for n in range(12, 0, -1)]], ids=["few", "full rank"])
def test_overlap_and_growth_by_dense_matrices(values):
    one, other = with_values(values), with_values([5.0, 4.0, 3.0, 0.1], seed=7)
    first, second = (a.left * a.values @ a.right for a in (one, other))
    found = singular_values.stacked(one, other)
    bases = []
    for D in (first, second):
        U, S, Vh = torch.linalg.svd(D)
        count = next(n for n in range(1, 13) if S[:n].square().sum() >= singular_values.SHARE * S.square().sum())
        bases.append((U[:, :count], Vh[:count]))
    (U, V), (other_U, other_V) = bases
    least = min(len(V), len(other_V))
    assert found.directions == (len(V), len(other_V))
    assert found.outputs == pytest.approx(((U.mT @ other_U).norm() ** 2 / least).item())
    assert found.inputs == pytest.approx(((V @ other_V.mT).norm() ** 2 / least).item())
    norm = torch.linalg.matrix_norm(first + second, 2).item()
    alone = max(torch.linalg.matrix_norm(D, 2).item() for D in (first, second))
    assert (found.spectral_norm, found.growth) == pytest.approx((norm, norm / alone))


# -- the note and the script -------------------------------------------------------------------------------------------


def test_only_changes_that_could_have_more_directions_are_noted():
    one, flat = with_values([1.0, 0.1, 0.1, 0.1]), with_values([1.0, 1.0, 1.0, 1.0])
    narrow, zero = with_values([1.0, 0.1]), with_values([0.0] * 4)

    def note(*found):
        return singular_values.note([singular_values.spectrum(each) for each in found])

    assert "2 of 3 layers" in note(one, one, flat, zero, narrow)
    assert not note(one, flat) and not note(narrow, narrow) and not note(zero) and not note()


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["inspect_adapter.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path("scripts/inspect_adapter.py", run_name="__main__")
    return int(done.value.code or 0), *capsys.readouterr()


def test_the_script_shows_both_files_and_their_note(tmp_path, monkeypatch, capsys):
    thin = foreign.lora_of_kohya(linear(), 4)
    thin.tensors[".lora_up.weight"][:, 1:] *= 1e-3
    file_of(tmp_path, "a", lora_unet_a=thin)
    file_of(tmp_path, "b", lora_unet_a=foreign.lora_of_kohya(linear(), 4, seed=9), lora_unet_b=thin)
    words = (tmp_path / "a.safetensors", "--spectrum", "--with", tmp_path / "b.safetensors")
    code, text, _ = run(monkeypatch, capsys, *words)
    assert code == 0 and "nearly of rank 1 (median stable rank 1.00)" in text and "1 layers in common" in text
    code, text, _ = run(monkeypatch, capsys, *words, "--json")
    found = json.loads(text)["spectrum"]
    assert code == 0 and found["files"][0]["layers"]["lora_unet_a"]["stable_rank"] < 1.01
    assert found["files"][0]["note"] and found["stacked"].keys() == {"lora_unet_a"}
    code, text, _ = run(monkeypatch, capsys, words[0], "--json")
    assert code == 0 and "spectrum" not in json.loads(text)


@pytest.mark.parametrize("words, complaint", [
    (["--with", "x"], "--with has no effect without --spectrum"),
    (["--spectrum", "--skip-unknown"], "--skip-unknown has no effect without --base"),
])
def test_options_without_effect_are_refused(tmp_path, monkeypatch, capsys, words, complaint):
    file_of(tmp_path, "a", lora_unet_a=foreign.lora_of_kohya(linear(), 4))
    code, _, said = run(monkeypatch, capsys, tmp_path / "a.safetensors", *words)
    assert code == 2 and complaint in said


def test_files_without_a_common_name_need_their_base(tmp_path):
    files = [file_of(tmp_path, name, **{name: foreign.lora_of_kohya(linear())}) for name in ("a", "b")]
    with pytest.raises(ValueError, match="name no layer alike"):
        measure(files)


def test_terms_without_rotation_or_magnitude_need_no_weight():
    layer = as_layer(nn.Linear(16, 12), "layer")
    D = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    changed = singular_values.singular(Terms(difference=D), layer, lambda: pytest.fail("it was read"))
    found = singular_values.spectrum(changed)
    assert all_of(found) == pytest.approx(by_definition(D), rel=1e-6)
