"""No tool for files keeps more in memory than twice the file and one layer of the base."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modules import tensorfile
from modules.adapters.base import Terms
from modules.adapters.layers import as_layer
from modules.export import export, fuse
from modules.families.parts.names import Place
from modules.files import distance, opening, reading, rows
from modules.files.change import Change
from modules.preset.schema import Export
from modules.tools import inspect_file, resize, verify
from modules.tools.merge import into_base
from tests.export.setup import Model
from tests.live import Live

MANY, SIDE, RANK = 150, 32, 4
WIDE = 768


class Layers(Model):
    """A network of equal layers."""

    def __init__(self, count: int, side: int, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        made = (nn.Linear(side, side, bias=False, dtype=dtype) for _ in range(count))
        self.networks = {"unet": nn.Sequential(*made).requires_grad_(False)}


def pairs(path, count: int, side: int, dtype=torch.float16) -> opening.AdapterFile:
    """A file of kohya's names for `Layers`."""
    torch.manual_seed(1)
    found = {}
    for number in range(count):
        name = f"lora_unet_{number}"
        found[f"{name}.lora_up.weight"] = torch.randn(side, RANK).to(dtype)
        found[f"{name}.lora_down.weight"] = torch.randn(RANK, side).to(dtype)
        found[f"{name}.alpha"] = torch.tensor(2.0).to(dtype)
    save_file(found, path)
    return opening.read(path)


def converted(file, model, out, host="diffusers", kept=False):
    changes = reading.changes(file, model, kept=kept)
    return export.write(out, model, changes, Export(host=host), lambda written: {})


@pytest.mark.full
@pytest.mark.parametrize("host", ["diffusers", "kohya", "comfyui"])
def test_of_many_layers_one_at_a_time_is_computed(tmp_path, host):
    file, model = pairs(tmp_path / "a.safetensors", MANY, SIDE), Layers(MANY, SIDE)
    layer = 4 * SIDE * SIDE
    peaks = {}
    for kept in (False, True):
        with Live() as live:
            converted(file, model, tmp_path / f"{kept}.safetensors", host, kept)
        peaks[kept] = live.peak
    assert peaks[False] <= file.size + 16 * layer < 2 * file.size
    assert peaks[True] > 2 * file.size, "what is kept in float32 is seen"
    before, after = (load_file(tmp_path / f"{kept}.safetensors") for kept in (True, False))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture
def blocks(monkeypatch):
    """Small blocks of rows, so that a layer has many."""
    for room in (rows, into_base):
        monkeypatch.setattr(room, "BLOCK", 1 << 14)


@pytest.mark.parametrize("host", ["diffusers", "kohya", "comfyui"])
def test_a_large_layer_is_converted_in_blocks(tmp_path, blocks, host):
    file, model = pairs(tmp_path / "a.safetensors", 1, WIDE), Layers(1, WIDE, torch.bfloat16)
    with Live() as live:
        report = converted(file, model, tmp_path / "b.safetensors", host)
    assert live.peak < 2 * WIDE * WIDE, "less than the layer itself has in the base"
    (error,) = report.errors.values()
    assert 0 <= error.weight < 2e-3


@pytest.mark.parametrize("host", ["diffusers", "kohya", "comfyui", "lycoris"])
def test_a_large_layer_is_verified_in_blocks(tmp_path, blocks, monkeypatch, host):
    file, model = pairs(tmp_path / "a.safetensors", 1, WIDE), Layers(1, WIDE, torch.bfloat16)
    found = reading.place(file, model)
    with Live() as live:
        (row,) = verify.check(found, verify.by_arithmetic(found, host))
    assert live.peak < 2 * WIDE * WIDE
    monkeypatch.setattr(rows, "BLOCK", 1 << 30)
    (whole,) = verify.check(found, verify.by_arithmetic(found, host))
    for one, other in ((row.exact.error, whole.exact.error), (row.half.error, whole.half.error)):
        assert one is not None and other is not None
        assert one.weight == pytest.approx(other.weight, abs=1e-6)
        assert one.change == pytest.approx(other.change, abs=1e-6)


def test_a_large_tensor_is_merged_in_blocks(blocks):
    W = torch.randn(WIDE, WIDE).bfloat16()
    new, first = W.clone(), 0.01 * torch.randn(WIDE, 1)
    target = ("unet.a", "weight")

    def changed(layer, kind, rows, start):
        return rows + first[start : start + len(rows)]

    source = into_base.summed([(into_base.Source(frozenset({target}), changed, frozenset({target})), 0.5)])
    with Live() as live:
        assert into_base._change(source, target, Place("a"), W, new, "a")
    assert live.peak < W.nbytes and torch.equal(new, (W.float() + 0.5 * (W.float() + first - W.float())).bfloat16())


def test_inspecting_reads_headers_and_a_corner(tmp_path, monkeypatch):
    side, start = 1280, "lora_unet_down_blocks_2_attentions_0_transformer_blocks_9_attn1_to_"  # of SDXL alone
    tensors = {}
    for name in (f"{start}{letter}" for letter in "qkv"):
        tensors |= {f"{name}.lora_up.weight": torch.randn(side, RANK).half(), f"{name}.alpha": torch.ones(()),
                    f"{name}.lora_down.weight": torch.randn(RANK, side).half()}
    save_file(tensors, tmp_path / "a.safetensors")
    looked = []
    monkeypatch.setattr(tensorfile, "is_finite", lambda tensor: looked.append(tensor.numel()) or True)
    file = opening.read(tmp_path / "a.safetensors", values=False)
    assert not looked
    with Live() as live:
        text = inspect_file.inspect(file).text()
    assert "LoRA: 3 layers" in text and "comfyui: loads all of it" in text
    assert live.peak < 8 * side * side, "less than one layer in the numbers that are computed with"
    assert sum(looked) == 2 * side * RANK + 1, "one example's tensors"


def test_what_inspecting_uses_has_to_be_finite(tmp_path):
    save_file({"lora_unet_a.lora_up.weight": torch.full((8, 2), float("inf")),
               "lora_unet_a.lora_down.weight": torch.ones(2, 8)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="lora_unet_a.lora_up.weight has non-finite values"):
        inspect_file.inspect(opening.read(tmp_path / "a.safetensors", values=False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(dtype, value):
    for place in (0, 5, 5000, 9998):
        tensor = torch.randn(9999).to(dtype)
        assert tensorfile.is_finite(tensor)
        tensor = tensor.float()
        tensor[place] = value
        assert not tensorfile.is_finite(tensor.to(dtype))


def test_resizing_keeps_no_more_than_the_new_tensors(tmp_path):
    file = pairs(tmp_path / "a.safetensors", MANY, SIDE)
    with Live() as live:
        resize.resized(file, resize.to_rank(RANK - 1))
    assert live.peak < 1.5 * file.size


def test_blocks_are_the_layer(blocks):
    torch.manual_seed(0)
    several = [as_layer(nn.Linear(40, rows).requires_grad_(False), f"unet.{rows}") for rows in (1000, 31, 700)]
    changes = {layer.name: Change(layer, Terms(up=torch.randn(layer.out_features, 3), down=torch.randn(3, 40)))
               for layer in several[::2]}
    fused = fuse.FusedChange(fuse.Fused(several, [True, True, False], "all"), changes)
    for change in (changes["unet.1000"], fused):
        found = list(change.blocks())
        assert len(found) > 1 and [b.stop for b in found[:-1]] == [b.start for b in found[1:]]
        assert torch.equal(torch.cat([block.W for block in found]), change.base())
        assert (torch.cat([block.adapted for block in found]) - change.adapted()).abs().max() < 1e-5
    whole, parts = distance.Comparison(), distance.Comparison()
    whole.add(fused.adapted(), fused.base() * 1.1, fused.base())
    for block in fused.blocks():
        parts.add(block.adapted, block.W * 1.1, block.W)
    assert parts.error().weight == pytest.approx(whole.error().weight, rel=1e-5)
    assert parts.error().change == pytest.approx(whole.error().change, rel=1e-5)
