"""Files that we write today are those that tests/data/hosts.json was measured with; docs/exports.md says what it says.

It needs none of the programs. Where it fails, the exporter has changed: run them again with
`python -m tests.hosts.run --write` and `python -m tests.hosts.table`, and look at what became wrong.
"""

import pytest

from tests import export_matrix
from tests.hosts import bases, demo_files, files, measuring, run, table

ALL = [(family, label) for family in bases.MAKE for label in files.methods()]
CASES = [(family, label) for f, family in enumerate(bases.MAKE) for m, label in enumerate(files.methods())
         if (f + m) % len(bases.MAKE) == 0]
"""Each method with one family in turn."""
FEW = tuple("-".join(case) for case in CASES[::6])


@pytest.fixture(scope="module")
def recorded():
    return table.record()["files"]


@pytest.mark.short(*FEW)
@pytest.mark.parametrize("family, label", CASES)
def test_what_we_write_is_what_was_measured(family, label, recorded):
    for name, written in run.files_of(family, label).items():
        assert name in recorded, f"{name} was never given to the programs: python -m tests.hosts.run --write"
        assert measuring.is_same(written, recorded[name]), (
            f"{name} is not the file that the real programs were measured with ({written}, recorded {recorded[name]}): "
            "python -m tests.hosts.run --write")


def test_nothing_is_recorded_that_we_do_not_write(recorded):
    assert {tuple(name.split(" / ")[:2]) for name in recorded} == set(ALL)


def test_a_change_of_a_file_is_noticed(tmp_path):
    """Another name, another scale, another sign, another order; not another last digit."""
    import torch
    from safetensors.torch import save_file

    path, tensors = tmp_path / "file.safetensors", {"a.up": torch.randn(6, 2), "a.down": torch.randn(2, 5)}

    def mark(changed):
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path)
        return measuring.fingerprint(path)

    first = mark(tensors)
    assert measuring.is_same(mark({name: tensor * (1 + 1e-6) for name, tensor in tensors.items()}), first)
    flipped = {"a.up": tensors["a.up"] * torch.tensor([1.0, -1.0]),
               "a.down": tensors["a.down"] * torch.tensor([[1.0], [-1.0]])}
    assert measuring.is_same(mark(flipped), first)
    for other in (
        {"b.up": tensors["a.up"], "a.down": tensors["a.down"]}, {**tensors, "a.up": tensors["a.up"] * 1.01},
        {**tensors, "a.up": tensors["a.up"].half()}, {**tensors, "a.down": tensors["a.down"].abs()},
        {**tensors, "a.up": tensors["a.up"].T},
    ):
        assert not measuring.is_same(mark(other), first)


def test_no_cell_is_empty():
    """Every program that ran has figures or a reason for every method, family, number format and strength."""
    programs = table.record()["programs"]
    assert programs
    for name, found in programs.items():
        if "not run" in found:
            assert found["not run"], name
            continue
        for family in bases.MAKE:
            for label in files.methods():
                cells = found["cells"][family][label]
                for dtype in measuring.DTYPES:
                    for strength in measuring.STRENGTHS:
                        there = [cell for key, cell in cells.items() if key.startswith(f"{dtype} x {strength:g}")]
                        assert there and all(there), (name, family, label, dtype, strength)


def test_the_page_says_what_was_measured():
    assert export_matrix.PAGE.read_text(encoding="utf-8").endswith(table.section())


def test_the_page_says_of_the_demo_presets_what_was_measured():
    assert demo_files.section() in export_matrix.PAGE.read_text(encoding="utf-8")


def test_a_demo_file_that_loses_more_than_rounding_says_so():
    """Every shipped demo preset that was measured is within the bound, or its file has the number."""
    presets = demo_files.record()["presets"]
    assert presets.keys() <= set(demo_files.demos())
    for name, found in presets.items():
        for number in demo_files.DTYPES:
            assert found[number]["within"] or demo_files.is_told(found[number]), (name, number, found[number])
