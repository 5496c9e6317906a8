"""Our own files of products and of butterflies through every script: inspected, converted, merged, and right each time;
resizing says what it cannot do."""

from pathlib import Path

import pytest
import torch

from modules.adapters.base import detach
from modules.export.export import export
from modules.families import load_class
from modules.files.facts import Facts
from modules.preset.schema import Base
from modules.tools.apply import apply_file
from tests import tiny_sd15
from tests.export.setup import preset, trained
from tests.export.test_foreign_files import BLOCK, run

LAYERS = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.2")
WRITTEN = {
    "comfyui LoHa": ("loha", {"rank": 3}, "comfyui", "LoHa"),
    "kohya LoKr": ("lokr", {"rank": 1, "factor": 4}, "kohya", "LoKr"),
    "lycoris BOFT": ("boft", {"block_size": 4}, "lycoris", "BOFT"),
}
"""The method with its options, whom the file is for, and a word that inspecting says."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_sd15.make_folder(tmp_path_factory.mktemp("sd15"))


def loaded(path: Path):
    return load_class("sd15").load(Base(path=str(path)), torch.device("cpu"), torch.float32)


def assert_weights(model, wanted: dict[str, torch.Tensor]) -> None:
    for name, weight in wanted.items():
        found = model.networks["unet"].get_submodule(name.removeprefix("unet.")).weight
        assert (found - weight).abs().max() <= 1e-5 * weight.abs().max(), name


@pytest.mark.full
@pytest.mark.short("lycoris BOFT")
@pytest.mark.parametrize("name", WRITTEN)
def test_inspected_converted_merged_and_resized(base, tmp_path, monkeypatch, capsys, name):
    method, options, host, word = WRITTEN[name]
    model = loaded(base)
    layers = trained(model, method, options, [f"unet.{layer}" for layer in LAYERS])
    report = export(model, layers, preset(method, options, host=host, dtype="float32", form="compact"), Facts(),
                    tmp_path / "ours.safetensors")
    wanted = {layer: adapted.adapted_weight().detach() for layer, adapted in layers.items()}
    assert len(wanted) == 3 and not report.approximate
    for network in model.networks.values():
        detach(network)

    code, text, complaint = run(monkeypatch, capsys, "inspect_adapter.py", report.path)
    assert code == 0 and word in text and "3 layers" in text and "written by: Gimbal" in text, text + complaint

    for other in ("comfyui", "comfyui_node", "lycoris"):
        out = tmp_path / f"{other}.safetensors"
        words = ("--base", base, "--host", other, "--dtype", "fp32", "--out", out)
        code, _, complaint = run(monkeypatch, capsys, "convert.py", report.path, *words)
        assert code == 0, complaint
        converted = loaded(base)
        apply_file(converted, out, other)
        assert_weights(converted, wanted)

    merged = tmp_path / "merged"
    code, _, complaint = run(monkeypatch, capsys, "merge.py", base, "--adapter", report.path, "--out", merged)
    assert code == 0, complaint
    assert_weights(loaded(merged), wanted)

    code, _, complaint = run(monkeypatch, capsys, "resize.py", report.path, "--rank", 1)
    assert code == 2 and f"no low-rank layers to resize (3 {word})" in complaint
