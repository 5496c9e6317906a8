"""Merging adapters' files into a base on disk: the same as both in memory, and nothing else is touched."""

import json
import re
import runpy
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules import tensorfile
from modules.adapters.base import Adapted, detach
from modules.export.export import export
from modules.families import load_class
from modules.families.parts.names import DENOISER
from modules.files.facts import Facts
from modules.preset.schema import Base
from modules.tools.merge import command
from modules.tools.merge.checkpoint import Checkpoint
from modules.tools.merge.into_base import Options, Source, merge_into, summed
from tests.export.setup import preset, randomise, trained
from tests.families.rows import FAMILIES

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[2] / "scripts" / "merge.py"
LORA = ("lora", {"rank": 3, "alpha": 2.0})
INPUT = ("wora", {"rank": 2, "axis": "input"})
OUTPUT = ("dora", {"rank": 2, "axis": "output"})
PLANES = ("doft", {"rotation": {"kind": "planes", "planes": 1}})
LAYERS = {
    "sdxl": ["unet.conv_in", "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
             "unet.up_blocks.0.upsamplers.0.conv", "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
             "text_encoder.encoder.layers.0.mlp.fc1", "text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj"],
    "flux": ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k",
             "transformer.single_transformer_blocks.1.proj_mlp", "transformer.single_transformer_blocks.1.attn.to_v",
             "transformer.single_transformer_blocks.0.proj_out", "transformer.norm_out.linear"],
}
TEXT = "text_encoder.encoder.layers.0.mlp.fc1"
PAIRS = {
    "sdxl": (("comfyui", LORA), ("comfyui", INPUT), ("kohya", OUTPUT), ("diffusers", PLANES)),
    "flux": (("kohya", LORA), ("comfyui", INPUT), ("kohya", OUTPUT), ("diffusers", LORA)),
}
"""Hosts whose files are merged, two of them at a time."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    return {name: FAMILIES[name].make_pair(tmp_path_factory.mktemp(name)) for name in LAYERS}


def loaded(family: str, path: Path, config: Path | None = None) -> Any:
    return load_class(family).load(Base(path=str(path), config=str(config or "")), CPU, torch.float32)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{key}": tensor for prefix, network in model.networks.items()
            for key, tensor in network.state_dict().items()}


def make_file(model: Any, family: str, host: str, variant: tuple, seed: int, path: Path) -> dict[str, torch.Tensor]:
    """An adapter's file, and its adapted weights by layer; the model is left as it was."""
    layers: dict[str, Adapted] = trained(model, *variant, LAYERS[family])
    for number, adapted in enumerate(layers.values()):
        randomise(adapted, 100 * seed + number)
    export(model, layers, preset(*variant, host=host, dtype="float32"), Facts(), path)
    wanted = {name: adapted.adapted_weight().clone() for name, adapted in layers.items()}
    for network in model.networks.values():
        detach(network)
    return wanted


def run(*arguments: Any) -> int:
    """The script's exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["merge.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(end.value.code or 0)


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("first, second", [(0, 1), (2, 3)])
@pytest.mark.parametrize("family", LAYERS)
def test_two_files_merged_are_both_applied_in_memory(bases, tmp_path, capsys, family, first, second, single):
    folder, file = bases[family]
    model = loaded(family, folder)
    base, expected = weights(model), {}
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for number, strength in ((first, 1.0), (second, -0.7)):
        host, variant = PAIRS[family][number]
        adapted = make_file(model, family, host, variant, number, paths[number != first])
        for name, weight in adapted.items():
            key = f"{name}.weight"
            expected[key] = expected.get(key, base[key]) + strength * (weight - base[key])
    out = tmp_path / ("merged.safetensors" if single else "merged")
    config = ["--config", folder] if single else []
    source = file if single else folder
    assert run(source, "--adapter", paths[0], "--adapter", f"{paths[1]}:-0.7", "--out", out, *config) == 0
    assert re.search(r"[6-9] layers changed", capsys.readouterr().out)
    found = weights(loaded(family, out, folder if single else None))
    assert found.keys() == base.keys() and len(expected) == len(LAYERS[family])
    for name, tensor in found.items():
        if name in expected:
            wanted = expected[name]
            assert not torch.equal(wanted, base[name])
            assert (tensor - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name
        elif "single_transformer_blocks.1.attn" in name or "transformer_blocks.0.attn.to_" in name:
            assert (tensor - base[name]).abs().max() <= 1e-6 * base[name].abs().max(), name  # beside changed rows
        else:
            assert torch.equal(tensor, base[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, *(p.name for p in paths)])


@pytest.fixture
def doubled(bases) -> tuple[Checkpoint, Source, str]:
    """The checkpoint, a source that doubles one weight, and that weight's name in the file."""
    folder, file = bases["flux"]
    model = load_class("flux").skeleton(Base(path=str(file), config=str(folder)))
    layer = "transformer.transformer_blocks.0.attn.to_k"
    source = Source(frozenset({(layer, "weight")}), lambda layer, kind, W: 2 * W)
    return Checkpoint(model, file), source, f"{DENOISER}double_blocks.0.img_attn.qkv.weight"


def test_only_the_changed_rows_change_and_only_they_are_read(doubled, tmp_path, monkeypatch):
    base, source, name = doubled
    read, tensor = [], tensorfile.Header.tensor
    monkeypatch.setattr(tensorfile.Header, "tensor", lambda self, name: (read.append(name), tensor(self, name))[1])
    merge_into(base, tmp_path / "x.safetensors", source, Options())
    before, after = load_file(base.path), load_file(tmp_path / "x.safetensors")
    assert read == [name] and before.keys() == after.keys()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    q, k, v = before[name].chunk(3)
    assert changed == [name] and torch.equal(after[name], torch.cat([q, 2 * k, v]))


def test_metadata_are_kept_but_for_hashes(doubled, tmp_path):
    base, source, _ = doubled
    told = {"modelspec.title": "Old", "modelspec.hash_sha256": "0x1", "format": "pt"}
    save_file(load_file(base.path), tmp_path / "old.safetensors", told)
    old = Checkpoint(base.model, tmp_path / "old.safetensors")
    merge_into(old, tmp_path / "x.safetensors", source, Options(facts={"gimbal.merged": "[]"}))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"modelspec.title": "Old", "format": "pt", "gimbal.merged": "[]"}


def test_the_result_says_what_it_is_made_of(bases, tmp_path):
    folder, file = bases["flux"]
    make_file(loaded("flux", folder), "flux", *PAIRS["flux"][0], 0, tmp_path / "one.safetensors")
    out = tmp_path / "x.safetensors"
    assert run(file, "--adapter", f"{tmp_path / 'one.safetensors'}:0.5", "--out", out, "--config", folder) == 0
    with safe_open(out, "pt") as merged:
        told = merged.metadata()
    (made,) = json.loads(told["gimbal.merged"])
    assert (made["file"], made["strength"]) == ("one.safetensors", 0.5) and len(made["sha256"]) == 64
    assert told["modelspec.merged_from"] == f"{file.stem}, test" and told["gimbal.merged_base"] == file.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_one_rounding_to_the_bases_own_numbers(doubled, tmp_path, dtype):
    base, source, name = doubled
    small = {key: t.to(dtype) if key.startswith(DENOISER) else t for key, t in load_file(base.path).items()}
    save_file(small, tmp_path / "small.safetensors")
    stored = Checkpoint(base.model, tmp_path / "small.safetensors")
    third = Source(source.targets, lambda layer, kind, W: W + W / 3)
    merge_into(stored, tmp_path / "x.safetensors", summed([(third, 1.0), (third, 0.7)]), Options())
    found, (q, k, v) = load_file(tmp_path / "x.safetensors"), small[name].float().chunk(3)
    wanted = torch.cat([q, k + (k + k / 3 - k) + 0.7 * (k + k / 3 - k), v]).to(dtype)
    assert found[name].dtype == dtype and torch.equal(found[name].float(), wanted.float())


def test_other_numbers_for_networks_but_not_for_the_vae(bases, tmp_path):
    for path, config in ((bases["flux"][0], ""), (bases["flux"][1], str(bases["flux"][0]))):
        model = load_class("flux").skeleton(Base(path=str(path), config=config))
        source = Source(frozenset({(TEXT, "bias")}), lambda layer, kind, b: b + 1)
        out = tmp_path / path.name
        merge_into(Checkpoint(model, path), out, source, Options(torch.bfloat16))
        merged = loaded("flux", out, bases["flux"][0] if config else None)
        base = weights(loaded("flux", bases["flux"][0]))
        for name, tensor in weights(merged).items():
            assert torch.equal(tensor, (base[name] + (name == f"{TEXT}.bias")).bfloat16().float()), name
        files = [out] if out.is_file() else list(out.rglob("*.safetensors"))
        dtypes = {(key if config else file.parent.name + "." + key).split(".")[0]: tensor.dtype
                  for file in files for key, tensor in load_file(file).items()}
        assert dtypes.pop("vae") == torch.float32 and set(dtypes.values()) == {torch.bfloat16}
    said = json.loads((tmp_path / "base" / "text_encoder" / "config.json").read_text())
    assert "bfloat16" in (said.get("dtype"), said.get("torch_dtype"))


def test_shards_and_variants_of_a_folder(bases, tmp_path):
    folder, pipeline = tmp_path / "base", loaded("flux", bases["flux"][0]).pipeline
    shutil.copytree(bases["flux"][0], folder)
    shutil.rmtree(folder / "transformer")
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="60KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    save_file({"x": torch.ones(1)}, folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (folder / "everything.safetensors").write_bytes(b"x")
    model = load_class("flux").skeleton(Base(path=str(folder)))
    layer = "transformer.transformer_blocks.0.attn.to_k"
    source = Source(frozenset({(layer, "weight")}), lambda layer, kind, W: 2 * W)
    merge_into(Checkpoint(model, folder), tmp_path / "out", source, Options())
    before, after = (weights(loaded("flux", path)) for path in (folder, tmp_path / "out"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [f"{layer}.weight"]
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    }
    stem = "transformer/diffusion_pytorch_model"
    assert left == {f"{stem}.fp16.safetensors", f"{stem}.bin", "everything.safetensors"}


def test_norms_of_lycoris_files(bases, tmp_path):
    folder, _ = bases["sdxl"]
    norm, given = "unet.down_blocks.1.attentions.0.norm", {}
    for kind in ("w", "b"):
        given[f"lora_unet_input_blocks_4_1_norm.{kind}_norm"] = torch.randn(16)
    save_file(given, tmp_path / "norms.safetensors")
    assert run(folder, "--adapter", f"{tmp_path / 'norms.safetensors'}:2", "--out", tmp_path / "out") == 0
    before, after = weights(loaded("sdxl", folder)), weights(loaded("sdxl", tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{norm}.weight", f"{norm}.bias"}
    for kind, tensor in zip(("weight", "bias"), given.values(), strict=True):
        torch.testing.assert_close(after[f"{norm}.{kind}"], before[f"{norm}.{kind}"] + 2 * tensor)


def test_tables_and_parts_of_a_fused_projection(tmp_path):
    """Of the second generation, whose text encoder is OpenCLIP's in a single checkpoint."""
    folder, file = FAMILIES["sd2"].make_pair(tmp_path)
    names = ["text_encoder.embeddings.token_embedding", "text_encoder.encoder.layers.1.self_attn.v_proj"]
    model = loaded("sd15", folder)
    layers = trained(model, *LORA, names)
    export(model, layers, preset(*LORA, dtype="float32"), Facts(), tmp_path / "a.safetensors")
    for source, config in ((folder, ()), (file, ("--config", folder))):
        out = tmp_path / f"out_{source.name}"
        assert run(source, "--adapter", tmp_path / "a.safetensors", "--out", out, *config) == 0
        found = weights(loaded("sd15", out, folder if config else None))
        for name, adapted in layers.items():
            wanted = adapted.adapted_weight()
            assert (found[f"{name}.weight"] - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name


# -- what can be wrong ------------------------------------------------------------------------------------------------


def test_layers_of_a_text_encoder_that_the_file_lacks_are_named(bases, tmp_path, capsys):
    folder, file = bases["flux"]
    alone = {n.removeprefix(DENOISER): t for n, t in load_file(file).items() if n.startswith(DENOISER)}
    save_file(alone, tmp_path / "alone.safetensors")
    pair = {"lora_up.weight": torch.ones(32, 1), "lora_down.weight": torch.ones(1, 16)}
    text = {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.{key}": tensor for key, tensor in pair.items()}
    block = {f"transformer.x_embedder.{key}": tensor.clone() for key, tensor in pair.items()}
    save_file(text | block, tmp_path / "a.safetensors")
    words = [tmp_path / "alone.safetensors", "--adapter", tmp_path / "a.safetensors", "--config", folder, "--out"]
    assert run(*words, tmp_path / "x.safetensors") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and TEXT in error and "1 of the adapted layers" in error and "--skip-absent" in error
    assert run(*words, tmp_path / "x.safetensors", "--skip-absent") == 0
    assert TEXT in capsys.readouterr().out
    after = load_file(tmp_path / "x.safetensors")
    assert [name for name in alone if not torch.equal(alone[name], after[name])] == ["img_in.weight"]
    save_file(text, tmp_path / "a.safetensors")
    assert run(*words, tmp_path / "y.safetensors", "--skip-absent") == 2 and TEXT in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("row", FAMILIES)
def test_the_family_is_found_out(row, tmp_path):
    folder, file = FAMILIES[row].make_pair(tmp_path)
    for base in (Base(path=str(folder)), Base(path=str(file), config=str(folder))):
        assert command.family_of(base) == FAMILIES[row].family


@pytest.mark.parametrize("text, path, strength", [
    ("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.5", "a.safetensors", 0.5),
    ("C:/a.safetensors", "C:/a.safetensors", 1.0), ("C:/a.safetensors:-1", "C:/a.safetensors", -1.0),
])
def test_strengths(text, path, strength):
    assert command.parse(text) == command.Adapter(Path(path), strength)


def test_bad_input_is_one_sentence(bases, tmp_path, capsys):
    folder, file = bases["flux"]
    pair = {"transformer.x_embedder.lora_A.weight": torch.ones(1, 16),
            "transformer.x_embedder.lora_B.weight": torch.ones(32, 1)}
    a = tmp_path / "a.safetensors"
    save_file(pair, a)
    (tmp_path / "there").mkdir()
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-5])
    save_file({"lora_unet_no_such_layer.diff": torch.ones(1), **pair}, tmp_path / "more.safetensors")
    out, config = ["--out", tmp_path / "x"], ["--config", folder]
    for arguments, words in (
        ([folder, "--adapter", a, "--out", tmp_path / "there"], "exists already"),
        ([folder, "--adapter", a, "--out", tmp_path / "no" / "x"], "not a folder"),
        ([tmp_path / "none", "--adapter", a, *out], "does not exist"),
        ([tmp_path / "there", "--adapter", a, *out], "model_index.json"),
        ([tmp_path / "cut.safetensors", "--adapter", a, *config, *out, "--family", "flux"], "damaged"),
        ([folder, "--adapter", tmp_path / "b.safetensors", *out], "no such file"),
        ([folder, "--adapter", f"{a}:strong", *out], "strong is not a strength"),
        ([folder, "--adapter", a, *out, "--dtype", "int4"], "--dtype int4"),
        ([folder, "--adapter", a, *out, "--family", "x"], "--family x"),
        ([folder, "--adapter", tmp_path / "more.safetensors", *out], "--skip-unknown"),
        ([bases["sdxl"][0], "--adapter", a, *out], "FLUX"),
        ([a, "--adapter", a, *config, *out], "give --family"),
    ):
        assert run(*arguments) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words in error, error
        assert not (tmp_path / "x").exists() and not (tmp_path / "x.partial").exists()


@pytest.mark.parametrize("place", ["merged", "unet/merged"])
def test_a_base_stays_as_it_is(bases, tmp_path, place):
    folder = bases["sdxl"][0]
    make_file(loaded("sdxl", folder), "sdxl", "comfyui", LORA, 0, tmp_path / "a.safetensors")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="is inside the base"):
        command.merge(str(folder), [command.parse(str(tmp_path / "a.safetensors"))], folder / place, command.Choice())
    assert sorted(folder.rglob("*")) == before


def test_what_fails_leaves_nothing(doubled, bases, tmp_path, monkeypatch):
    base, source, name = doubled
    huge = Source(source.targets, lambda layer, kind, W: W * 1e9)
    with pytest.raises(ValueError, match=f"{name} has values beyond the range of float16.*--dtype float32"):
        merge_into(base, tmp_path / "x.safetensors", huge, Options(torch.float16))
    diverged = Source(source.targets, lambda layer, kind, W: W * float("nan"))
    with pytest.raises(ValueError, match="non-finite"):
        merge_into(base, tmp_path / "x.safetensors", diverged, Options())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(ValueError, match="0.0 GB free"):
        merge_into(base, tmp_path / "x.safetensors", source, Options())
    packed = {**load_file(base.path), f"{DENOISER}x.scale_weight": torch.ones(1)}
    save_file(packed, tmp_path / "packed.safetensors")
    with pytest.raises(ValueError, match="quantized weights"):
        Checkpoint(base.model, tmp_path / "packed.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["packed.safetensors"]
    monkeypatch.undo()
    folder, cut = tmp_path / "folder", bases["flux"][0]
    shutil.copytree(cut, folder)
    next((folder / "text_encoder_2").glob("*.safetensors")).rename(folder / "text_encoder_2" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="save_pretrained"):
        Checkpoint(load_class("flux").skeleton(Base(path=str(folder))), folder)


def test_a_base_of_another_width_is_refused(doubled, tmp_path):
    base, source, name = doubled
    save_file({**load_file(base.path), name: torch.ones(96, 16)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"attn.to_k: the base.s weight has .*\(32, 16\), but \(32, 32\).*--config"):
        merge_into(Checkpoint(base.model, tmp_path / "wide.safetensors"), tmp_path / "x", source, Options())
