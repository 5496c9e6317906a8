"""Embeddings as files and inside of the adapter file, read and written by the programs' own code."""

import ast
import logging
import os
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from modules.adapters.base import detach
from modules.export import token_files
from modules.export.export import export
from modules.files import embeddings
from modules.files.facts import Facts
from modules.preset.schema import Preset
from modules.training.setup import attach_all
from tests.export.setup import randomise
from tests.hosts import bases, programs

TOKENS = {"<sks>": {"clip_l": torch.randn(3, 16), "clip_g": torch.randn(3, 16)},
          "zwx": {"clip_l": torch.randn(1, 16), "clip_g": torch.randn(1, 16)}}
ALONE = {"zwx": {"clip_l": torch.randn(2, 16)}}


def own(kind: str, file: str, *wanted: str, **names: Any) -> dict[str, Any]:
    """Functions and classes of a program's file, compiled from its source; `names`: what they take from elsewhere."""
    folders = programs.folders(kind)
    if not folders:
        pytest.skip(f"GIMBAL_HOSTS has no {kind} (see tests/hosts/programs.py)")
    path = folders[-1] / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
                 and node.name in wanted]
    assert len(tree.body) == len(wanted), f"{path} has not {wanted}"
    found: dict[str, Any] = {"torch": torch, "os": os, **names}
    exec(compile(tree, str(path), "exec"), found)
    return found


@pytest.mark.parametrize("tokens", [TOKENS, ALONE], ids=["two encoders", "one"])
def test_comfyui_reads_the_files(tmp_path, tokens):
    load = own("comfyui", "comfy/sd1_clip.py", "load_embed", "bundled_embed", "expand_directory_list",
               logging=logging, traceback=traceback)["load_embed"]
    token_files.write(tmp_path / "any.safetensors", tokens, {})
    folder = token_files.folder_of(tmp_path / "any.safetensors")
    for token, vectors in tokens.items():
        for key, tensor in vectors.items():
            name = token_files.file_name(token)
            assert torch.equal(load(name, str(folder), tensor.shape[1], key), tensor), (name, key)


def test_comfyui_reads_a_bundle_in_an_adapter_file(tmp_path):
    load = own("comfyui", "comfy/sd1_clip.py", "load_embed", "bundled_embed", "expand_directory_list",
               logging=logging, traceback=traceback)["load_embed"]
    path = tmp_path / "lora.safetensors"
    safetensors.torch.save_file({**token_files.bundle(dict([*TOKENS.items()][:1])), "x.alpha": torch.ones(1)}, path)
    for key, tensor in TOKENS["<sks>"].items():
        assert torch.equal(load("lora", str(tmp_path), 16, key), tensor)


@pytest.mark.parametrize("tokens", [TOKENS, ALONE], ids=["two encoders", "one"])
def test_a1111_reads_the_files_and_what_it_divides_of_a_bundle(tokens):
    names = {"devices": SimpleNamespace(device="cpu")}
    read = own("a1111", "modules/textual_inversion/textual_inversion.py", "create_embedding_from_data", "Embedding",
               **names)["create_embedding_from_data"]
    bundle = token_files.bundle(tokens)
    for token, vectors in tokens.items():
        divided = {}
        for key, tensor in bundle.items():  # as `load_network` divides the part behind the first dot
            name, part = key.partition(".")[2].split(".", 1)
            divided |= {part: tensor} if name == token else {}
        for data in (token_files.in_file(vectors), divided):
            found = read(dict(data), token)
            assert found.vectors == len(vectors["clip_l"]) and found.shape == sum(t.shape[1] for t in vectors.values())
            many = found.vec if isinstance(found.vec, dict) else {"clip_l": found.vec}
            assert all(torch.equal(many[key], tensor) for key, tensor in vectors.items())


@pytest.mark.parametrize("kind, tokens", [("StableDiffusionXL", TOKENS), ("StableDiffusion", ALONE)])
def test_onetrainer_writes_the_same_keys(tmp_path, kind, tokens):
    """Its saver on the same vectors; and its embedding files are read."""
    room = kind[0].lower() + kind[1:]
    place, names = f"modules/modelSaver/{room}/{kind}", {"Tensor": torch.Tensor, f"{kind}Model": Any}
    bundled = own("onetrainer", f"{place}LoRASaver.py", "_get_state_dict", **names)["_get_state_dict"]
    alone = own("onetrainer", f"{place}EmbeddingSaver.py", "_to_state_dict", copy=dict, **names,
                **{f"{kind}ModelEmbedding": Any})["_to_state_dict"]

    def embedding(token: str, vectors: dict[str, torch.Tensor]) -> SimpleNamespace:
        word = {"place" + "holder": token}  # its name for it
        parts = [SimpleNamespace(**word, vector=tensor, output_vector=None) for tensor in vectors.values()]
        found = {f"text_encoder_{number}_embedding": part for number, part in enumerate(parts, 1)}
        return SimpleNamespace(text_encoder_embedding=parts[0], **found)

    made = {token: embedding(token, vectors) for token, vectors in tokens.items()}
    off = ("text_encoder_1_lora", "text_encoder_2_lora", "text_encoder_lora", "unet_lora", "lora_state_dict")
    model = SimpleNamespace(**dict.fromkeys(off), additional_embeddings=[*made.values()],
                            train_config=SimpleNamespace(bundle_additional_embeddings=True))
    theirs, ours = bundled(None, model), token_files.bundle(tokens)
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
    for token, vectors in tokens.items():
        for name, tensors in (("bundle", theirs), ("alone", alone(None, made[token], None, torch.float32))):
            path = tmp_path / f"{name}.safetensors"
            safetensors.torch.save_file(tensors, path)
            found = embeddings.read(path, token, [*vectors])
            assert all(torch.equal(found[key], tensor) for key, tensor in vectors.items())


def test_onetrainer_loads_the_adapter_file_and_keeps_the_embeddings(tmp_path):
    if not programs.folders("onetrainer"):
        pytest.skip("GIMBAL_HOSTS has no OneTrainer (see tests/hosts/programs.py)")
    base = bases.base("sdxl")
    preset = Preset.model_validate({
        "family": "sdxl", "base": {"path": str(base.folder)}, "adapter": {"method": "lora", "rank": 2},
        "export": {"host": "kohya", "dtype": "float32"}, "targets": {"layers": "attention"}})
    model = base.model
    layers, problems = attach_all(model, preset)
    assert not problems
    for number, adapted in enumerate(layers.values()):
        randomise(adapted, number, 0.05)
    path: Path = tmp_path / "bundled.safetensors"
    export(model, layers, preset, Facts(), path, TOKENS)
    meant = {name: adapted.adapted_weight() for name, adapted in layers.items()}
    for network in model.networks.values():
        detach(network)  # the base is that of other tests too
    effect = programs.program("onetrainer").effect(path, "sdxl", "float32", 1.0)
    assert not effect.failed and set(effect.unread) == set(token_files.bundle(TOKENS)), effect
    both = effect.weights.keys() & meant.keys()
    assert both
    for name in both:
        torch.testing.assert_close(effect.weights[name], meant[name], rtol=1e-4, atol=1e-5)
