"""Files that are whole as safetensors and odd inside, disks that are full, results beside their bases."""

import json
import runpy
import struct
import sys
from pathlib import Path

import pytest
import torch
from peft import DeloraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modules import tensorfile
from modules.adapters.layers import as_layer
from modules.files import kinds, opening, writer
from modules.tools import inspect_file, resize
from modules.tools.merge import command
from tests.export import foreign
from tests.export.foreign import linear


def case(make, **changed):
    """The tensors of `make` by part, some of them replaced or left out (None)."""
    parts = {kinds.split("x" + suffix)[2]: tensor for suffix, tensor in make.tensors.items()}  # pyright: ignore
    return {part: tensor for part, tensor in (parts | changed).items() if tensor is not None}


def lora(**changed):
    return case(foreign.lora_of_kohya(linear()), **changed)


ODD = {
    "alpha of many numbers": (lora(alpha=torch.ones(3)), "its alpha has 3 values"),
    "alpha of none": (lora(alpha=torch.ones(0)), "its alpha has 0 values"),
    "whole numbers": (lora(up=torch.ones(12, 3, dtype=torch.int8)), "its up is stored as int8"),
    "truth values": (lora(up=torch.ones(12, 3, dtype=torch.bool)), "its up is stored as bool"),
    "complex numbers": (lora(down=torch.ones(3, 16, dtype=torch.complex64)), "its down is stored as complex64"),
    "a scalar": (lora(up=torch.tensor(1.0)), "its up is a single value"),
    "a vector": (lora(up=torch.ones(12)), "are not matrices"),
    "rank 0": (lora(up=torch.ones(12, 0), down=torch.ones(0, 16)), "is empty"),
    "no outputs": (lora(up=torch.ones(0, 3)), "its up is empty"),
    "a foreign magnitude": (lora(magnitude=torch.ones(7, 1)), "its magnitude has 7 values along the output"),
    "half a pair beside a bias": (lora(down=None, bias=torch.ones(12)), "with its up alone no update can be computed"),
    "a rest of another kind": (lora(hada_w1_a=torch.ones(12, 2)), "with its hada_w1_a alone no update can be computed"),
    "3-D factors": (case(foreign.of_peft(DeloraConfig(r=3, target_modules=["layer"]), linear()),
                         delora_A=torch.ones(3, 16, 1)), "are not matrices"),
    "a norm of another size": (case(foreign.of_onetrainer(linear(), 4, True, "norm"), initial_norm=torch.ones(5)),
                               "have shapes that do not match"),
}


@pytest.mark.parametrize("parts, words", ODD.values(), ids=ODD)
def test_odd_tensors_are_one_sentence(parts, words):
    layer = as_layer(linear(), "unet.layer")
    with pytest.raises(ValueError, match="^unet.layer: [^\n]*" + words):
        kinds.terms(parts, layer, layer.dense(), writer.About())


def test_the_scripts_without_a_base_say_it_too(tmp_path):
    tensors = foreign.named({"lora_unet_a": foreign.lora_of_kohya(linear())})
    tensors["lora_unet_a.lora_up.weight"] = torch.ones(12, 3, dtype=torch.int8)
    save_file(tensors, tmp_path / "a.safetensors")
    file = opening.read(tmp_path / "a.safetensors")
    assert "its up is stored as int8" in inspect_file.inspect(file).damaged[0]
    with pytest.raises(ValueError, match="lora_unet_a: its up is stored as int8"):
        resize.resized(file, resize.to_rank(2))


def test_rotations_with_a_magnitude_of_the_input_are_described(tmp_path):
    tensors = foreign.named({"lora_unet_a": foreign.oft_of_kohya(linear(), 3, 0.5)})
    save_file({**tensors, "lora_unet_a.dora_scale": torch.ones(1, 24)}, tmp_path / "a.safetensors")
    assert "with input magnitude" in inspect_file.inspect(opening.read(tmp_path / "a.safetensors")).text()


def test_numbers_beyond_float32_are_finite(tmp_path):
    save_file({"lora_unet_a.diff": torch.full((2, 2), 1e300, dtype=torch.float64)}, tmp_path / "a.safetensors")
    assert opening.read(tmp_path / "a.safetensors").tensors["lora_unet_a.diff"].dtype == torch.float64


def test_peft_s_options_are_for_peft_s_file_alone(tmp_path):
    tensors = {f"base_model.model.a.lora_{name}.weight": torch.randn(shape) for name, shape in
               (("A", (4, 8)), ("B", (6, 4)))}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 12}))
    file = opening.read(tmp_path / "adapter_model.safetensors")
    found = resize.resized(file, resize.to_rank(2))
    save_file(found.tensors, tmp_path / "adapter_model_resized.safetensors", found.metadata or None)
    again = opening.read(tmp_path / "adapter_model_resized.safetensors")
    assert file.config and not again.config  # its factors have the scale in them
    up, down = (again.tensors[f"base_model.model.a.lora_{letter}.weight"] for letter in "BA")
    whole = 3 * tensors["base_model.model.a.lora_B.weight"] @ tensors["base_model.model.a.lora_A.weight"]
    wanted = torch.linalg.svdvals(whole)[:2]
    assert torch.allclose(torch.linalg.svdvals(up @ down)[:2], wanted, rtol=1e-4)


def test_resizing_makes_the_folder(tmp_path, monkeypatch):
    save_file(foreign.named({"lora_unet_a": foreign.lora_of_kohya(linear())}), tmp_path / "a.safetensors")
    new = tmp_path / "new" / "b.safetensors"
    monkeypatch.setattr(sys, "argv", ["resize", str(tmp_path / "a.safetensors"), "--rank", "2", "--out", str(new)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path("scripts/resize.py", run_name="__main__")
    assert len(load_file(new)["lora_unet_a.lora_down.weight"]) == 2


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(tensorfile, "save_file", full)
    with pytest.raises(OSError, match=r"a.safetensors cannot be written \(I/O error: No space left"):
        opening.save({}, tmp_path / "a.safetensors", None)
    assert not list(tmp_path.iterdir())


# -- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [
    {"a": ([4], [0, 8]), "b": ([2], [8, 16])},  # fewer bytes than the shape has
    {"a": ([2], [0, 8]), "b": ([2], [0, 16])},  # over each other
    {"b": ([2], [8, 16])},  # a hole, as one name given twice leaves
    {"a": ([-2], [0, 8]), "b": ([2], [8, 16])},
    {"a": (["2"], [0, 8]), "b": ([2], [8, 16])},
    {"a": ([2], [0.0, 8]), "b": ([2], [8, 16])},
    {"a": ([2], [16, 8]), "b": ([2], [8, 16])},
])
def test_headers_that_cannot_be(tmp_path, entries):
    described = {name: {"dtype": "F32", "shape": shape, "data_offsets": offsets}
                 for name, (shape, offsets) in entries.items()}
    text = json.dumps(described).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(ValueError, match="a.safetensors is damaged"):
        tensorfile.read_header(path)


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "much"])
def test_strengths_that_are_none(tmp_path, strength):
    path = tmp_path / "a.safetensors"
    path.touch()
    with pytest.raises(ValueError, match=f"{strength} is not a strength; give a number"):
        command.parse(f"{path}:{strength}")
