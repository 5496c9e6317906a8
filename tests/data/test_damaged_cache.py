"""Damaged files in the caches are noticed, said and made anew, and never trained on; killed runs leave nothing that
counts."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modules.data.cache import LatentCache, Store, TextCache, read_entry
from modules.disk import PARTIAL
from tests.data.encoder import Encoder, pictures_of


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite(change):
    """Another program's change of the tensors, which leaves the metadata as they are."""

    def damage(path):
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = change(safetensors.torch.load(path.read_bytes()))
        path.write_bytes(safetensors.torch.save(tensors, metadata))

    return damage


def overwrite(tensors):
    """An entry with a right checksum all the same."""
    return lambda path: Store(path.parents[1]).put(path.stem, tensors)


def folder_instead(path):
    path.unlink()
    (path / "mine").mkdir(parents=True)


def pipe_instead(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "not ours": lambda path: path.write_bytes(b"x" * 99),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": flip_a_bit,
    "a tensor is missing": rewrite(lambda tensors: {}),
    "another name": rewrite(lambda tensors: {"x": next(iter(tensors.values()))}),
    "another shape": rewrite(lambda tensors: {name: t[..., :1].clone() for name, t in tensors.items()}),
    "another dtype": rewrite(lambda tensors: {name: t.half() for name, t in tensors.items()}),
    "turned": rewrite(lambda tensors: {name: t.flip(-1) for name, t in tensors.items()}),
    "not a number": rewrite(lambda tensors: {name: t * float("nan") for name, t in tensors.items()}),
    "no checksum": lambda path: path.write_bytes(
        safetensors.torch.save(safetensors.torch.load(path.read_bytes()))),
    "a folder": folder_instead,
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a pipe": pipe_instead,
}

LATENT_DAMAGES = {
    "nothing, well said": overwrite({}),
    "the shape of another bucket": overwrite({"latents": torch.zeros(6, 4, 4)}),
    "half precision": overwrite({"latents": torch.zeros(6, 16, 16, dtype=torch.float16)}),
    "infinite, well said": overwrite({"latents": torch.full((6, 16, 16), float("inf"))}),
}


@pytest.mark.parametrize("damage", DAMAGES | LATENT_DAMAGES)
def test_damaged_latents_are_encoded_again(options, caplog, damage):
    pictures = pictures_of(options)
    reference = LatentCache(options, Encoder())
    reference.fill(pictures)
    paths = sorted(Path(options.cache_folder).rglob("*.safetensors"))
    intact = {path: path.read_bytes() for path in paths}
    for path in paths:
        (DAMAGES | LATENT_DAMAGES)[damage](path)
    model = Encoder()
    with caplog.at_level(logging.WARNING):
        got = LatentCache(options, model).get(pictures[0], False)
        assert torch.equal(got, reference.get(pictures[0], False)), "in training"
        assert model.images == 1 and len(caplog.records) == 1
        LatentCache(options, model).fill(pictures)
    assert model.images == len(pictures) and len(caplog.records) == len(pictures)
    assert {Path(record.args[0]) for record in caplog.records} == set(paths)
    assert {path: path.read_bytes() for path in paths} == intact, "as they were, to the byte"
    again = Encoder()
    LatentCache(options, again).fill(pictures)
    assert again.images == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_texts_are_encoded_again(options, caplog, damage):
    reference = TextCache(options, Encoder()).get(["cat", "dog"])
    paths = sorted(Path(options.cache_folder, "texts").rglob("*.safetensors"))
    DAMAGES[damage](paths[0])
    model = Encoder()
    with caplog.at_level(logging.WARNING):
        got = TextCache(options, model).get(["cat", "dog"])
    assert all(torch.equal(got[name], reference[name]) for name in reference) and model.texts == 1
    assert [Path(record.args[0]) for record in caplog.records] == [paths[0]]


def test_an_entry_in_another_s_place_is_damaged(options, caplog):
    """A whole file under a wrong name, as a repaired file system may leave it."""
    reference = TextCache(options, Encoder()).get(["cat", "dog"])
    first, second = Path(options.cache_folder, "texts").rglob("*.safetensors")
    first.write_bytes(second.read_bytes())
    assert torch.equal(TextCache(options, Encoder()).get(["cat", "dog"])["ids"], reference["ids"])
    assert len(caplog.records) == 1


def test_flipped_bits_are_noticed(tmp_path):
    Store(tmp_path).put("key", {"x": torch.arange(3.0), "y": torch.ones(2, 1, dtype=torch.bfloat16)})
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError):
            read_entry(path, "key")


def test_files_that_cannot_be_read_are_made_again(options, caplog, monkeypatch):
    reference = TextCache(options, Encoder()).get(["cat"])
    (path,) = Path(options.cache_folder, "texts").rglob("*.safetensors")
    read_bytes = Path.read_bytes

    def refuse(self):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    got, model = TextCache(options, Encoder()).get(["cat"]), Encoder()
    assert torch.equal(got["pooled"], reference["pooled"])
    monkeypatch.undo()
    TextCache(options, model).fill(["cat"])
    assert model.texts == 0 and [Path(record.args[0]) for record in caplog.records] == [path]


def test_a_file_in_place_of_a_folder_is_moved_aside(options):
    TextCache(options, Encoder()).fill(["cat"])
    (path,) = Path(options.cache_folder, "texts").rglob("*.safetensors")
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("mine")
    TextCache(options, Encoder()).fill(["cat"])
    assert path.is_file()
    assert [aside.read_text() for aside in path.parents[1].glob("*.aside")] == ["mine"], "nothing is lost"


def test_what_is_cached_does_not_depend_on_autocast(options):
    """A file that is damaged during a training is encoded again in the middle of a step."""

    class Linear(Encoder):
        def encode_texts(self, captions):
            values = torch.linspace(0.1, 0.9, 8).expand(len(captions), 8)
            return {"hidden": values @ torch.linspace(-1, 1, 8 * 8).reshape(8, 8)}

    expected = TextCache(options, Linear()).get(["cat"])
    with torch.autocast("cpu", torch.bfloat16):
        got = TextCache(options.model_copy(update={"cache": False}), Linear()).get(["cat"])
    assert got["hidden"].dtype == torch.float32 and torch.equal(got["hidden"], expected["hidden"])


def test_partial_files_of_killed_runs_go(options):
    TextCache(options, Encoder()).fill(["cat"])
    (entry,) = Path(options.cache_folder, "texts").rglob("*.safetensors")
    old, young, future = (entry.with_name(f"{entry.name}.{name}{PARTIAL}") for name in ("old", "young", "future"))
    strangers = [entry.with_name("notes.txt"), entry.with_name(f"folder{PARTIAL}")]
    strangers[1].mkdir()
    for path in (old, young, future, strangers[0]):
        path.write_bytes(b"half")
    now = time.time()
    for path, age in ((old, 25 * 3600), (entry, 99 * 3600), (strangers[0], 99 * 3600), (future, -99 * 3600)):
        os.utime(path, (now - age, now - age))
    TextCache(options, Encoder())
    assert not old.exists()
    assert all(path.exists() for path in (young, future, entry, *strangers)), "another run may be writing"


@pytest.mark.full
def test_a_killed_writer_leaves_nothing_that_is_read(options):
    """The process dies between writing and renaming; the next run finds no entry and its partial file is no entry."""
    code = (
        "import os, signal; from pathlib import Path; from modules.data.cache import TextCache\n"
        "from modules.preset.data_options import Data; from tests.data.encoder import Encoder\n"
        "Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"TextCache(Data(cache_folder={options.cache_folder!r}), Encoder()).fill(['cat'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False, timeout=120)
    left = [path for path in Path(options.cache_folder).rglob("*") if path.is_file()]
    assert done.returncode == -signal.SIGKILL and [path.suffix for path in left] == [PARTIAL]
    model = Encoder()
    TextCache(options, model).fill(["cat"])
    assert model.texts == 1
