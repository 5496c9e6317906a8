"""What is written beside the tensors."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from modules import tensorfile
from modules.export import metadata
from modules.export.export import export
from modules.files import opening
from modules.files.facts import Facts, facts_of
from modules.preset import files
from modules.preset.schema import Preset
from tests.export.setup import Model, preset, trained

LORA = ("lora", {"rank": 3, "alpha": 2.0})


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str
    bucket: tuple[int, int] = (512, 768)
    repeats: int = 3


PICTURES = [Picture(Path("/home/ann/secret_cats/1.png"), "zwx, a cat , red"), Picture(
    Path("/home/ann/secret_cats/2.png"), "zwx, a dog")]
DATA = {"folders": ["/home/ann/secret_cats"], "trigger": "zwx", "cache_folder": "/home/ann/cache"}


def written(folder: Path, variant=LORA, data=DATA, base=None, **options) -> tuple[dict[str, str], Preset, Path]:
    model, chosen = Model(), preset(*variant, data=data, base=base or {"path": "/home/ann/base_xl"}, **options)
    facts = facts_of(PICTURES, chosen, step=10, epoch=2, started=1e9, finished=1e9 + 60, prompts=["a cat"])
    layers = trained(model, *variant, ["unet.wide", "unet.conv"])
    report = export(model, layers, chosen, facts, folder / "test.safetensors")
    with safe_open(report.path, "pt") as file:
        return file.metadata(), chosen, report.path


def test_what_managers_read(tmp_path):
    found, _, _ = written(tmp_path, author="Ann", license="CC0")
    expected = {
        "modelspec.sai_model_spec": "1.0.1", "modelspec.title": "test", "modelspec.author": "Ann",
        "modelspec.license": "CC0", "modelspec.trigger_phrase": "zwx", "modelspec.architecture": "test/lora",
        "modelspec.date": "2001-09-09T01:47:40+00:00", "modelspec.resolution": "1024x1024",
        "ss_output_name": "test", "ss_sd_model_name": "base_xl", "ss_network_module": "networks.lora",
        "ss_network_dim": "3", "ss_network_alpha": "1.0", "ss_base_model_version": "test", "ss_steps": "10",
        "ss_num_train_images": "6", "ss_trigger_words": "zwx", "gimbal.base": "base_xl", "gimbal.step": "10",
        "gimbal.method": "lora", "gimbal.base_hash": "0" * 64,
    }
    assert expected.items() <= found.items()
    assert json.loads(found["ss_tag_frequency"]) == {"secret_cats": {"zwx": 2, "a cat": 1, "a dog": 1, "red": 1}}
    assert json.loads(found["ss_dataset_dirs"]) == {"secret_cats": {"n_repeats": 3, "img_count": 2}}
    assert json.loads(found["gimbal.prompts"]) == ["a cat"]
    assert json.loads(found["gimbal.versions"])["torch"] == torch.__version__


def test_network_module_of_magnitudes(tmp_path):
    found, _, _ = written(tmp_path, ("dora", {"rank": 3}))
    assert found["ss_network_module"] == "lycoris.kohya"
    assert json.loads(found["ss_network_args"]) == {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}


def test_file_opens_as_preset(tmp_path):
    _, chosen, path = written(tmp_path)
    assert files.resolve(str(path)).preset == chosen


def test_privacy(tmp_path):
    found, chosen, path = written(tmp_path, dataset_names=False)
    everything = json.dumps(found)
    for secret in ("/home", "secret_cats", "a cat", "a dog", "/cache"):
        assert secret not in everything
    assert found["modelspec.trigger_phrase"] == "zwx"
    again = files.resolve(str(path)).preset
    assert again.data.folders == () and again.adapter == chosen.adapter


@pytest.mark.parametrize("path, name, kept", [("stabilityai/sdxl", "stabilityai/sdxl", True), ("/a/b.safetensors",
                                              "b.safetensors", False), ("../b", "b", False)])
def test_base_name(tmp_path, path, name, kept):
    found, _, _ = written(tmp_path, base={"path": path}, dataset_names=False)
    assert found["ss_sd_model_name"] == name
    assert json.loads(found["gimbal.preset"])["base"]["path"] == (path if kept else "")


def test_hashes_as_kohya_computes_them(tmp_path):
    found, _, path = written(tmp_path)
    data = io.BytesIO(save(load_file(path), {key: value for key, value in found.items() if key.startswith("ss_")}))
    data.seek(0x100000)
    assert found["sshs_legacy_hash"] == hashlib.sha256(data.read(0x10000)).hexdigest()[:8]
    data.seek(0)
    data.seek(8 + int.from_bytes(data.read(8), "little"))
    assert found["sshs_model_hash"] == hashlib.sha256(data.read()).hexdigest()
    assert metadata.file_hashes(path)["sshs_model_hash"] == found["sshs_model_hash"]


def test_a_written_file_is_hashed_once_of_each_sort(tmp_path, monkeypatch):
    """For kohya's two hashes and for the checksum its bytes are gone through once, however often it is looked at."""
    made, sums, checksum = [], [], tensorfile.checksum

    def sha256(content=b""):
        made.append(content)
        return hashlib.sha256(content)

    monkeypatch.setattr(metadata, "hashlib", SimpleNamespace(sha256=sha256))
    monkeypatch.setattr(tensorfile, "checksum", lambda *given: sums.append(given) or checksum(*given))
    written(tmp_path)
    assert len(made) == 2 and len(sums) == 1


def test_a_disk_that_changes_what_is_written_is_seen(tmp_path, monkeypatch):
    save = opening.save

    def flipping(tensors, path, told):
        save(tensors, path, told)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(opening, "save", flipping)
    with pytest.raises(OSError, match="the bytes read back from the disk differ"):
        written(tmp_path)


def test_facts_round_trip():
    facts = facts_of(PICTURES, preset(*LORA), 1, 2, 3.0, 4.0, ["x"])
    assert Facts.from_json(facts.json()) == facts


def test_local_paths_in_entries_of_lists_are_left_out():
    tokens = [{"token": "sks", "file": "/home/somebody/sks.safetensors", "vectors": 2}]
    preset = Preset.model_validate({"family": "sdxl", "adapter": {"method": "lora"}, "targets": {"tokens": tokens}})
    (found,) = metadata.without_paths(preset)["targets"]["tokens"]
    assert (found["token"], found["vectors"], found["file"]) == ("sks", 2, "")
