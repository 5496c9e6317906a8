"""Files that must not be written, or must not be believed."""

import pytest
import torch
from safetensors.torch import save_file

from modules.export import read_back
from modules.export.export import export
from modules.files import keys
from modules.files.facts import Facts
from tests.export.setup import Model, preset, trained

LORA = ("lora", {"rank": 3, "alpha": 2.0})


def test_unknown_and_missing_keys(tmp_path):
    path = tmp_path / "foreign.safetensors"
    up, down = torch.ones(4, 1), torch.ones(1, 4)
    spelling = {"unet.a": "lora_unet_a"}
    pair = {"lora_unet_a.lora_up.weight": up, "lora_unet_a.lora_down.weight": down}
    save_file({**pair, "lora_unet_b.diff": up + 1}, path)
    with pytest.raises(ValueError, match="lora_unet_b.diff"):
        read_back.read(path, spelling, keys.KOHYA)
    save_file({"lora_unet_a.lora_up.weight": up, "lora_unet_a.lora_magnitude_vector.weight": down}, path)
    with pytest.raises(ValueError, match="lora_magnitude_vector"):
        read_back.read(path, spelling, keys.KOHYA)
    save_file({"lora_unet_a.lora_up.weight": up}, path)
    with pytest.raises(ValueError, match="unet.a is incomplete"):
        read_back.read(path, spelling, keys.KOHYA)
    with pytest.raises(ValueError, match="share one name"):
        read_back.read(path, {"unet.a": "lora_unet_a", "unet.b": "lora_unet_a"}, keys.KOHYA)


def test_overflow_is_refused_with_advice(tmp_path):
    model = Model()
    layers = trained(model, *LORA, ["unet.wide"])
    with torch.no_grad():
        layers["unet.wide"].adapter.up.mul_(1e12)
    with pytest.raises(ValueError, match="unet.wide.*float16.*export.dtype float32"):
        export(model, layers, preset(*LORA), Facts(), tmp_path / "test.safetensors")
    with torch.no_grad():
        layers["unet.wide"].adapter.up.fill_(float("nan"))
    with pytest.raises(ValueError, match="unet.wide.*non-finite"):
        export(model, layers, preset(*LORA), Facts(), tmp_path / "test.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_is_rejected_and_kept(tmp_path, monkeypatch):
    path = tmp_path / "test.safetensors"
    path.write_bytes(b"the previous export")
    model = Model()
    layers = trained(model, *LORA, ["unet.wide"])
    monkeypatch.setattr(keys, "balanced", lambda up, down: (up, 1.01 * down))
    with pytest.raises(ValueError, match=r"unet.wide: .*float32.*test.rejected.safetensors"):
        export(model, layers, preset(*LORA), Facts(), path)
    assert path.read_bytes() == b"the previous export"
    assert {p.name for p in tmp_path.iterdir()} == {"test.safetensors", "test.rejected.safetensors"}


def test_half_precision_extremes_survive_balancing(tmp_path):
    """Factors of 1e-6 and 1e6, whose product is ordinary."""
    model = Model()
    layers = trained(model, *LORA, ["unet.wide"])
    with torch.no_grad():
        layers["unet.wide"].adapter.up.mul_(1e6)
        layers["unet.wide"].adapter.down.mul_(1e-6)
    export(model, layers, preset(*LORA), Facts(), tmp_path / "test.safetensors")
