"""Headers of safetensors files that say what cannot be: one sentence, before the library sees them."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from modules import tensorfile
from modules.files import opening
from modules.tensorfile import LONGEST_HEADER, opened, read_header
from modules.tools import inspect_file

SOUND = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path, header, data: bytes = bytes(8), length: int | None = None):
    """A file with this header, an object or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


ENTRIES = [
    {"shape": [2] + [1] * 199}, {"shape": [2**40, 2**40]}, {"shape": [-2]}, {"shape": [True, 2]}, {"shape": ["2"]},
    {"shape": 2}, {"shape": None}, {"shape": [2.0]}, {"shape": [10**400]}, {"dtype": "F33"}, {"dtype": None},
    {"dtype": ["F32"]},
    {"dtype": "F64"}, {"dtype": "\x1b[2J"}, {"data_offsets": [0]}, {"data_offsets": [0, 8, 9]},
    {"data_offsets": [8, 0]},
    {"data_offsets": [-8, 0]}, {"data_offsets": [0.0, 8.0]}, {"data_offsets": [0, 10**30]}, {"data_offsets": None},
    {"data_offsets": [False, 8]},
]  # fmt: skip


@pytest.mark.parametrize("change", ENTRIES, ids=repr)
def test_entries_that_cannot_be(tmp_path, change):
    refused(written(tmp_path / "x.safetensors", {"a": {**SOUND, **change}}))


@pytest.mark.parametrize(
    "header",
    [b"null", b"[]", b"{", b"", b"[" * 100_000, b"\xff\xfe{\0}\0", b'{"a": 1, "a": 2}', {"a": None}, {"a": [SOUND]},
     {"a": SOUND, "__metadata__": {"x": 1}}, {"a": SOUND, "__metadata__": ["x"]}, {"a": SOUND, "__metadata__": "x"},
     {"a": SOUND, "b": SOUND}, {"a\x1b[2J": SOUND}, {"a\nb": SOUND}, {"\u202ea": SOUND}, {"\ud800": SOUND},
     {"x" * 1000: SOUND}, {}],
    ids=lambda header: repr(header)[:40],
)  # fmt: skip
def test_headers_that_cannot_be(tmp_path, header):
    refused(written(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("length", [0, 1, 7, 2**63, 2**31, LONGEST_HEADER + 1])
def test_lengths_that_cannot_be(tmp_path, length):
    refused(written(tmp_path / "x.safetensors", {"a": SOUND}, length=length))


@pytest.mark.parametrize("content", [b"", b"\0", bytes(8), bytes(100), b"\x02" + bytes(7) + b"{}"])
def test_files_that_are_none(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    if content != b"\x02" + bytes(7) + b"{}":  # a file without tensors, which is one
        refused(tmp_path / "x.safetensors")


def refused(path) -> None:
    """Every way in says so, in one line without control characters."""
    for read in (read_header, opening.read):
        with pytest.raises(ValueError) as caught:
            read(path)
        said = str(caught.value)
        assert str(path) in said and said.isprintable() and len(said) < 600
    with pytest.raises(ValueError), opened(path):
        pytest.fail("it was opened")


def test_what_the_library_writes_is_read(tmp_path):
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn)
    tensors = {f"t{n}": torch.zeros(n, 3, dtype=dtype) for n, dtype in enumerate(kinds)}
    tensors["scalar"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "x.safetensors", {"a": "b"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"a": "b"}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert {name: entry.shape for name, entry in header.tensors.items()} == shapes
    with opened(tmp_path / "x.safetensors") as file:
        assert set(file.keys()) == set(tensors)


def test_a_header_is_that_of_the_file_as_it_is_now(tmp_path):
    """Headers are kept: neither what a caller does to one nor what the file was before is in the next."""
    path, times = tmp_path / "a.safetensors", None
    for value in ("one", "two"):
        save_file({"w": torch.ones(2)}, path, {"is": value})
        times = times or (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        os.utime(path, ns=times)  # as in a copy that keeps them
        header = read_header(path)
        assert header.metadata == {"is": value} and list(header.tensors) == ["w"]
        header.metadata["is"] = "ours"
        header.tensors.clear()
    assert read_header(path).metadata == {"is": "two"} and list(read_header(path).tensors) == ["w"]
    other = path.rename(tmp_path / "b.safetensors")
    assert read_header(other).path == other
    other.write_bytes(other.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        read_header(other)


@pytest.mark.parametrize("steers", ["\x1b[2J", "a\nowned", "\u202e", "\x07", "\x9b2J"])
def test_metadata_do_not_steer_the_terminal(tmp_path, steers):
    """Every text that inspecting prints of a file, in the place where it prints it."""
    keys = ("gimbal.method", "gimbal.base", "ss_sd_model_name", "gimbal.step", "gimbal.trigger", "software", "format",
            "ss_training_comment", "ss_network_module", "modelspec.title")  # fmt: skip
    metadata = dict.fromkeys(keys, f"x{steers}y") | {
        "ss_tag_frequency": json.dumps({steers: {steers: 3}}),
        "ss_dataset_dirs": json.dumps({steers: {"img_count": 2}}),
        "ot_config": json.dumps({"base_model_name": steers}),
    }  # fmt: skip
    tensors = {"lora_unet_x.lora_up.weight": torch.ones(4, 1), "lora_unet_x.lora_down.weight": torch.ones(1, 4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    text = inspect_file.inspect(opening.read(tmp_path / "x.safetensors")).text()
    assert steers not in text and "x" + json.dumps(steers)[1:-1] + "y" in text
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("other", [
    {"a": torch.tensor([1.0, float("nan"), -0.0])}, {"a": torch.tensor([1.0, float("nan"), 0.0]), "b": torch.ones(1)},
    {"a": torch.tensor([[1.0, float("nan"), 0.0]])}, {"a": torch.tensor([1.0, float("nan"), 0.0]).half()}, {}])
def test_what_a_file_holds_byte_for_byte(tmp_path, other):
    own = {"a": torch.tensor([1.0, float("nan"), 0.0])}
    tensorfile.write(own, tmp_path / "file.safetensors", {})
    assert tensorfile.holds(tmp_path / "file.safetensors", own)
    assert not tensorfile.holds(tmp_path / "file.safetensors", other)


def test_a_name_may_be_as_long_as_is_said_and_no_longer(tmp_path):
    longest = "x" * tensorfile.LONGEST_NAME
    assert list(read_header(written(tmp_path / "x.safetensors", {longest: SOUND})).tensors) == [longest]
    with pytest.raises(ValueError, match="too long for a name"):
        read_header(written(tmp_path / "x.safetensors", {longest + "x": SOUND}))
