"""Bases that are not what they are given as: models of other families, parts of a file, damaged scales."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modules import families
from modules.families.parts.names import Place
from modules.families.parts.original import misfit, packed_problems, read_weights
from modules.families.parts.split import described
from modules.families.zimage import Model as ZImage
from modules.preset.schema import Base
from modules.tensorfile import read_header

KINDS = {
    "sd15": ("StableDiffusionPipeline", "unet", "UNet2DConditionModel", 1),
    "sdxl": ("StableDiffusionXLPipeline", "unet", "UNet2DConditionModel", 2),
    "sd3": ("StableDiffusion3Pipeline", "transformer", "SD3Transformer2DModel", 3),
    "flux": ("FluxPipeline", "transformer", "FluxTransformer2DModel", 2),
    "chroma": ("ChromaPipeline", "transformer", "ChromaTransformer2DModel", 1),
    "flux2": ("Flux2KleinPipeline", "transformer", "Flux2Transformer2DModel", 1),
    "krea2": ("Krea2Pipeline", "transformer", "Krea2Transformer2DModel", 1),
    "qwenimage": ("QwenImagePipeline", "transformer", "QwenImageTransformer2DModel", 1),
    "anima": ("AnimaModularPipeline", "transformer", "CosmosTransformer3DModel", 1),
    "qwenimage21": ("QwenImage21Pipeline", "transformer", "QwenImage21Transformer2DModel", 1),
    "zimage": ("ZImagePipeline", "transformer", "ZImageTransformer2DModel", 1),
}
"""Of each family: its pipeline, its denoiser, and how many text encoders it has."""


def index_of(family: str) -> dict:
    """The index of a folder, with the parts that the pipeline has."""
    pipeline, denoiser, kind, encoders = KINDS[family]
    found: dict = {"_class_name": pipeline, denoiser: ["diffusers", kind], "vae": ["diffusers", "AutoencoderKL"],
                   "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    for number in ("", "_2", "_3")[:encoders]:
        found |= {f"text_encoder{number}": ["transformers", "CLIPTextModel"],
                  f"tokenizer{number}": ["transformers", "CLIPTokenizer"]}
    return found | ({"safety_checker": [None, None], "feature_extractor": [None, None]} if family == "sd15" else {})


@pytest.mark.parametrize("family", KINDS)
def test_a_folder_of_another_family_is_one_sentence(family, tmp_path):
    """diffusers loads a folder of FLUX.1 as a Chroma pipeline, with its own transformer, and SDXL as SD 1."""
    assert set(KINDS) == set(families.names())
    for other in KINDS:
        folder = tmp_path / other
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps(index_of(other)))
        found = families.load_class(family).problems(Base(path=str(folder)))
        if other != family and {family, other} != {"sdxl", "sd15"}:
            (problem,) = found
            assert problem.startswith(f"base.path: {folder}") and "another kind of model" in problem, problem
            assert KINDS[other][2] in problem and KINDS[family][2] in problem and "complete copy" not in problem
        elif other == "sdxl" and family == "sd15":
            assert "another kind of model" in found[0] and "text_encoder_2" in found[0]
        else:
            assert not any("another kind" in problem for problem in found)


def test_a_configuration_of_another_family_is_one_sentence(tmp_path):
    """It came as an error of Python: a layer's name, or an attribute that the other transformer has not."""
    (tmp_path / "model_index.json").write_text(json.dumps(index_of("flux2")))
    for part in ("transformer", "vae", "text_encoder", "scheduler", "tokenizer"):
        (tmp_path / part).mkdir()
        name = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")
        (tmp_path / part / name).write_text("{}")
    path = tmp_path / "chroma.safetensors"
    save_file({"distilled_guidance_layer.layers.0.in_layer.weight": torch.zeros(2, 2)}, path)
    (problem,) = families.load_class("chroma").problems(Base(path=str(path), config=str(tmp_path)))
    assert problem.startswith("base.config: ") and "another kind of model" in problem


# -- further tensors --------------------------------------------------------------------------------------------------


def network(blocks: int) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(blocks))})


def test_further_blocks_are_refused_and_left_overs_are_not(tmp_path):
    """A file with more blocks than the configuration was read without them, in families whose files have left-overs."""
    path, places = tmp_path / "x.safetensors", {f"layers.{n}.weight": Place(f"x.layers.{n}.weight") for n in range(2)}
    tensors = {f"x.{name}": tensor for name, tensor in network(3).state_dict().items()}
    save_file(tensors, path)
    assert "unknown x.layers.2.weight" in misfit(network(2), read_header(path), places, "x.", ".*")
    with pytest.raises(ValueError, match=r"unknown x.layers.2.weight"):
        read_weights(network(2), path, places, torch.float32, "x.", ".*")
    del tensors["x.layers.2.weight"]
    save_file({**tensors, "x.norm_final.weight": torch.ones(4), "x.more": torch.ones(1)}, path)
    assert misfit(network(2), read_header(path), places, "x.", ".*") == ""
    assert "unknown x.more" in misfit(network(2), read_header(path), places, "x.", ZImage.UNUSED)
    save_file({**tensors, "x.norm_final.weight": torch.ones(4)}, path)
    assert misfit(network(2), read_header(path), places, "x.", ZImage.UNUSED) == ""


def test_a_scale_of_nothing_is_unknown(tmp_path):
    path, places = tmp_path / "x.safetensors", {"layers.0.weight": Place("layers.0.weight")}
    tensors = {"layers.0.weight": torch.ones(4, 4), "layers.0.input_scale": torch.ones(()), "scaled_fp8": torch.ones(2)}
    save_file(tensors, path)
    assert misfit(network(1), read_header(path), places, "") == ""
    save_file({**tensors, "layers.9.scale_weight": torch.ones(())}, path)
    assert "unknown layers.9.scale_weight" in misfit(network(1), read_header(path), places, "")


# -- scales -----------------------------------------------------------------------------------------------------------

SMALL = torch.float8_e4m3fn
SAID = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
BLOCKS = {"b.0.a.weight": torch.ones(4, 4).to(SMALL), "b.1.a.weight": torch.ones(4, 4).to(SMALL)}


@pytest.mark.parametrize("tensors, words", [
    ({"b.0.a.comfy_quant": SAID}, "b.0.a.weight is in scaled fp8, but there is no scale"),
    ({"b.1.a.scale_weight": torch.ones(())}, "b.0.a.weight is in scaled fp8, but there is no scale"),
    ({"b.0.a.scale_weight": torch.tensor(float("nan")), "b.1.a.scale_weight": torch.ones(())}, "not finite"),
    ({"b.0.a.scale_weight": torch.zeros(1), "b.1.a.scale_weight": torch.ones(())}, "zero"),
    ({}, ""),
    ({"b.0.a.scale_weight": torch.ones(()), "b.1.a.scale_weight": torch.ones(())}, ""),
])
def test_scales_that_cannot_be_right(tensors, words, tmp_path):
    """Weights were read without their scale, hundreds of times too large."""
    path = tmp_path / "x.safetensors"
    save_file({**BLOCKS, **tensors}, path)
    found = packed_problems("base.texts", path)
    assert len(found) == bool(words)
    assert all(words in one and one.startswith(f"base.texts: {path} is damaged") for one in found), found


def test_weights_that_the_metadata_says_are_scaled(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    told = {"_quantization_metadata": json.dumps({"layers": {"b.0.a": {"format": "float8_e4m3fn"}}})}
    save_file(BLOCKS, path, told)
    assert len(packed_problems("base.path", path)) == 1


# -- files of other programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, words", [
    ("flux1-dev-Q4_K_S.gguf", "is a GGUF file"),
    ("model-00001-of-00003.safetensors", "is one of 3 files"),
    ("model.safetensors.index.json", "the list of several files"),
])
def test_files_that_other_programs_read(name, words, tmp_path):
    """They were said to be damaged, or to lack layers of another family."""
    path, whole = tmp_path / name, tmp_path / "x.safetensors"
    save_file({"model.layers.0.self_attn.q_norm.weight": torch.ones(2)}, path)
    save_file({"noise_refiner.0.attention.q_norm.weight": torch.ones(2)}, whole)
    for option, base in (("path", Base(path=str(path))), ("texts", Base(path=str(whole), texts=(str(path),))),
                         ("vae", Base(path=str(whole), vae=str(path)))):
        (problem,) = ZImage.problems(base)
        assert problem.startswith(f"base.{option}: {path} ") and words in problem and "; give " in problem, problem


def test_one_file_of_one_is_a_whole_file(tmp_path):
    path = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"x": torch.ones(2)}, path)
    assert not any("one of" in problem for problem in ZImage.problems(Base(path=str(path))))


@pytest.mark.parametrize("tensor, words", [
    ("text_model.embeddings.token_embedding.weight", "text encoder (CLIP)"),
    ("encoder.block.0.layer.0.SelfAttention.k.weight", "text encoder (T5)"),
    ("model.layers.0.self_attn.q_norm.weight", "text encoder (Qwen or Mistral)"),
])
def test_another_text_encoder_is_named(tensor, words):
    """Files were "no text encoder of this model but a text encoder", without which."""
    assert words in described([tensor])


def test_a_model_on_the_hub_as_configuration(tmp_path):
    """It was a folder that lacks its index, which did not say what to do."""
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(2)}, path)
    (problem,) = ZImage.problems(Base(path=str(path), config="Tongyi-MAI/Z-Image-Turbo"))
    assert problem.startswith("base.config: Tongyi-MAI/Z-Image-Turbo is ") and "hf download Tongyi-MAI" in problem
