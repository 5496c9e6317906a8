"""benchmarks/step_size.py: which variants it finds, what it measures of them, and what it says."""

import pytest
import torch
from torch import nn

from benchmarks import step_size
from benchmarks.step_size import Moved, Variant, moved, variants, weighted
from modules import adapters
from modules.adapters.blocks import BlocksConfig
from modules.adapters.rotation import RotatedConfig
from modules.preset.section import Section, option

STEPS = 3


def test_every_method_has_variants_that_its_options_allow():
    for method, module in adapters.methods().items():
        found = list(variants(method))
        assert any(variant.middle and variant.calibrated for variant in found), method
        assert len({variant.words for variant in found}) == len(found), method
        for variant in found:
            config = module.Config(method=method, **variant.options)
            assert (config.step_size == "calibrated") == variant.calibrated


def test_sizes_are_tried_one_at_a_time_and_every_kind_of_a_section():
    class Options(Section):
        rank: int = option(8, why="")
        other: int = option(1, why="")
        rotation: BlocksConfig = BlocksConfig()

    ranks = [({"rank": size}, f"rank {size}", size == 16) for size in (4, 16, 64)]
    blocks = [({"rotation": {"block_size": n}}, f"block_size {n}", n == 64) for n in (16, 64, 256)]
    assert list(step_size.sized(Options)) == ranks + blocks
    kinds = {words.split()[0] for _, words, _ in step_size.sized(RotatedConfig)}
    assert {"blocks", "planes"} <= kinds


@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 48), lambda: nn.Conv2d(16, 24, 3)], ids=["linear", "conv"])
def test_a_first_step_of_what_is_calibrated_is_lr(make):
    layer, G = weighted(make(), 0)
    for method in ("lora", "oft"):
        variant = next(variant for variant in variants(method) if variant.calibrated)
        found = moved(variant, layer, G, STEPS, 0.1)
        assert found.first == pytest.approx(1, abs=0.15) and found.last and found.whole == pytest.approx(1, abs=0.15)


def test_raw_steps_are_not():
    layer, G = weighted(nn.Linear(64, 48), 0)
    (raw,) = [variant for variant in variants("lora") if not variant.calibrated]
    assert moved(raw, layer, G, 1, 0.1).first == pytest.approx(4 / 3**0.5, rel=0.2)
    assert moved(raw, layer, G, 1, 0.1).last is None


def test_weights_have_rows_and_channels_of_different_norms():
    layer, G = weighted(nn.Conv2d(64, 96, 3), 0)
    weight = torch.as_tensor(layer.weight).detach()
    assert G.shape == (96, 576)
    for norms in (weight.flatten(1).norm(dim=1), weight.transpose(0, 1).flatten(1).norm(dim=1)):
        assert 0.2 < norms.log().std() < 0.4


def test_the_table_names_the_extremes_of_what_is_calibrated():
    small = Variant("small", {}, "", True, True)
    large, raw = Variant("large", {}, "rank 4", True, False), Variant("raw", {}, "", False, True)
    found = {
        small: {"here": Moved(0.9, 1.0, 1.0), "there": Moved(0.95)},
        large: {"here": Moved(1.08, 1.5, 1.2)},
        raw: {"here": Moved(9.0, 9.0, 9.0), "there": None},
    }
    text = step_size.table(found, ["here", "there"], 100)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert cells[2:] == [
        ["small", "0.90 / 1.00 / 1.00", "0.95"],
        ["large, rank 4", "1.08 / 1.50 / 1.20", ""],
        ["raw", "9.00 / 9.00 / 9.00", "refused"],
    ]
    assert "First step, calibrated: 0.90 (small on here) to 1.08 (large rank 4 on here), a factor of 1.20" in text
    assert "Step 100, calibrated: 1.00 (small on here) to 1.50 (large rank 4 on here), a factor of 1.50" in text


def test_the_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    page = tmp_path / "methods.md"
    page.write_text(f"a\n{step_size.BEGIN}\n{step_size.END}\nb\n")
    monkeypatch.setattr(step_size, "PAGE", page)
    monkeypatch.setattr(step_size, "LAYERS", {"tiny": lambda: nn.Linear(16, 8)})
    monkeypatch.setattr("sys.argv", ["step_size.py", "--methods", "lora", "--steps", "2", "--write"])
    assert step_size.main() == 0
    said = capsys.readouterr().out
    assert said.count("\n| lora") == 2 and "by step 2" in said
    assert page.read_text() == f"a\n{step_size.BEGIN}\n{said.rstrip()}\n{step_size.END}\nb\n"
