"""Weights in scaled fp8, in all layouts that ComfyUI reads: the value times its scale, in the number format wanted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modules.families.flux import Model as Flux
from modules.families.parts.names import Place
from modules.families.parts.original import packed_problems, read_weights
from modules.families.sd3 import Model as SD3
from modules.preset.schema import Base
from modules.tools.merge.checkpoint import Checkpoint
from tests.families import single_file_flux, single_file_sd3
from tests.families.using import CPU
from tests.hosts import programs

SMALL = torch.float8_e4m3fn
LAYOUTS = ("old", "old without marker", "comfy_quant", "metadata", "rows", "e5m2")


class Layers(nn.ModuleDict):
    """Some layers, none of which has to be kept in float32."""

    _keep_in_fp32_modules = None


def quantized(weight: Tensor, kind: torch.dtype = SMALL, rows: bool = False) -> tuple[Tensor, Tensor]:
    """A weight in 8 bits, and its scale: one, or one for each row."""
    top = weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()
    scale = (top / torch.finfo(kind).max).float()
    return (weight.float() / scale).to(kind), scale


def in_layout(tensors: dict[str, Tensor], layout: str, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors with all matrices below `prefix` quantized, and the metadata of the file."""
    found, layers = dict(tensors), {}
    kind, word = (torch.float8_e5m2, "float8_e5m2") if layout == "e5m2" else (SMALL, "float8_e4m3fn")
    for name, tensor in tensors.items():
        if not name.startswith(prefix) or not name.endswith(".weight") or tensor.dim() != 2:
            continue
        layer = name.removesuffix(".weight")
        found[name], scale = quantized(tensor, kind, layout == "rows")
        if layout.startswith("old"):
            found |= {f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(())}
        else:
            found |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.ones(())}
            layers[layer] = {"format": word}
    if layout == "old":
        found[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=SMALL)
    if layout == "metadata":
        return found, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    for layer, told in layers.items():
        found[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    return found, {}


def expected(name: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight as ComfyUI multiplies it (comfy_kitchen's `dequantize_per_tensor_fp8`)."""
    layer = name.removesuffix(".weight")
    scales = [tensors[one] for end in ("scale_weight", "weight_scale") if (one := f"{layer}.{end}") in tensors]
    return tensors[name].to(dtype) * scales[0].to(dtype) if scales else tensors[name].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_is_its_value_times_its_scale(layout, dtype, tmp_path):
    generator, path = torch.Generator().manual_seed(0), tmp_path / "x.safetensors"
    network = Layers({"a": nn.Linear(6, 4), "b": nn.Linear(6, 8, bias=False)})
    stored = {"qkv.weight": torch.randn(12, 6, generator=generator), "a.bias": torch.randn(4, generator=generator)}
    tensors, metadata = in_layout(stored, layout)
    save_file(tensors, path, metadata)
    places = {"a.weight": Place("qkv.weight", 0, 4), "b.weight": Place("qkv.weight", 4, 8), "a.bias": Place("a.bias")}
    assert packed_problems("base.path", path) == []
    read_weights(network.to("meta"), path, places, dtype, "")
    whole = expected("qkv.weight", tensors, dtype)
    found = network.state_dict()
    assert torch.equal(torch.cat([found["a.weight"], found["b.weight"]]), whole) and whole.dtype == dtype
    assert torch.equal(found["a.bias"], stored["a.bias"].to(dtype))
    assert (whole.float() - stored["qkv.weight"]).abs().max() < (0.4 if layout == "e5m2" else 0.2)


@pytest.mark.short("old")
@pytest.mark.parametrize("layout", ["old", "comfy_quant", "metadata"])
def test_a_whole_checkpoint_with_all_parts_in_scaled_fp8(layout, tmp_path):
    """As Comfy-Org's SD3.5: the transformer and T5."""
    folder, file = single_file_sd3.make_pair(tmp_path)
    tensors, path, told = load_file(file), tmp_path / "scaled.safetensors", {}
    for prefix in ("model.diffusion_model.", "text_encoders.t5xxl.transformer."):
        tensors, metadata = in_layout(tensors, layout, prefix)
        told |= json.loads(metadata.get("_quantization_metadata", '{"layers": {}}'))["layers"]
    save_file(tensors, path, {"_quantization_metadata": json.dumps({"layers": told})} if told else None)
    base = Base(path=str(path), config=str(folder))
    assert SD3.problems(base) == []
    model, plain = (SD3.load(one, CPU, torch.float32) for one in (base, Base(path=str(file), config=str(folder))))
    for network in ("transformer", "text_encoder_3", "text_encoder"):
        for name, tensor in plain.networks[network].state_dict().items():
            found = model.networks[network].state_dict()[name]
            close = tensor.abs().max() * 0.07
            assert (found - tensor).abs().max() <= close, name
            assert network == "text_encoder" or tensor.dim() != 2 or "pos_embed" in name or not found.equal(tensor)


def test_a_text_encoder_in_scaled_fp8(tmp_path):
    """As t5xxl_fp8_e4m3fn_scaled.safetensors."""
    folder, file = single_file_flux.make_pair(tmp_path)
    model = Flux.load(Base(path=str(folder)), CPU, torch.float32)
    state = {name: t.clone() for name, t in model.pipeline.text_encoder_2.state_dict().items() if "embed_t" not in name}
    tensors, _ = in_layout(state, "old")
    save_file(tensors, tmp_path / "t5.safetensors")
    base = Base(path=str(file), config=str(folder), texts=(str(tmp_path / "t5.safetensors"),))
    assert Flux.problems(base) == []
    found = Flux.load(base, CPU, torch.bfloat16).pipeline.text_encoder_2.state_dict()
    for name in state:
        assert torch.equal(found[name], expected(name, tensors, torch.bfloat16)), name
    assert found["encoder.embed_tokens.weight"].data_ptr() == found["shared.weight"].data_ptr()


@pytest.mark.parametrize("change, words", [
    ({"a.weight.absmax": torch.ones(2)}, "nf4"),
    ({"a.weight": torch.zeros(4, 6, dtype=torch.int8)}, "I8"),
    ({"a.weight_scale": torch.ones(4, 3)}, "a scale for each block"),
    ({"a.weight_scale_2": torch.ones(())}, "nvfp4"),
    ({"a.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}, "nvfp4"),
    ({"a.comfy_quant": torch.tensor(list(b"{"), dtype=torch.uint8)}, "unknown format"),
    ({"a.comfy_quant": torch.tensor(list(b"[]"), dtype=torch.uint8)}, "unknown format"),
])
def test_other_formats_are_refused(change, words, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.zeros(4, 6).to(SMALL), **change}, path)
    (problem,) = packed_problems("base.path", path)
    assert words in problem and "base.quantization" in problem and "\n" not in problem


def test_metadata_that_is_none_is_refused(tmp_path):
    for text in ("[]", "{", '{"layers": 3}', '{"layers": {"a": {"format": "int8_tensorwise"}}}'):
        path = tmp_path / "x.safetensors"
        save_file({"a.weight": torch.zeros(4, 6).to(SMALL)}, path, {"_quantization_metadata": text})
        assert len(packed_problems("base.path", path)) == 1, text


@pytest.mark.short("metadata")
@pytest.mark.parametrize("layout", ["old", "comfy_quant", "metadata"])
def test_merging_into_scaled_weights_is_refused(layout, tmp_path):
    folder, file = single_file_flux.make_pair(tmp_path)
    tensors, metadata = in_layout(load_file(file), layout, "model.diffusion_model.")
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(ValueError, match="quantized weights"):
        Checkpoint(Flux.skeleton(Base(path=str(folder))), tmp_path / "x.safetensors")


# -- against ComfyUI --------------------------------------------------------------------------------------------------


def comfyui() -> tuple[Path, dict[str, str]] | None:
    """A ComfyUI whose package comfy_kitchen is here, and the environment to run it in."""
    place = programs.checkouts()
    folders = [path for path in programs.folders("comfyui") if (path / "comfy/quant_ops.py").is_file()]
    if place is None or not folders or not (place / "packages/comfy_kitchen").is_dir():
        return None
    return folders[0], {**os.environ, "PYTHONPATH": str(place / "packages"), "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(comfyui() is None, reason="GIMBAL_HOSTS has no ComfyUI with comfy_kitchen in packages")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["old", "comfy_quant", "metadata", "e5m2"])
def test_comfyui_makes_the_same_of_the_same_file(layout, dtype, tmp_path):
    generator, found = torch.Generator().manual_seed(1), comfyui()
    assert found is not None
    stored = {f"{name}.weight": torch.randn(12, 6, generator=generator) * 3 for name in ("qkv", "x.mlp", "shared")}
    tensors, metadata = in_layout(stored, layout)
    file, out, (folder, environment) = tmp_path / "x.safetensors", tmp_path / "out.safetensors", found
    save_file(tensors, file, metadata)
    script = programs.DRIVERS / "scaled_comfyui.py"
    subprocess.run([sys.executable, str(script), str(folder), str(file), dtype, str(out)], check=True, env=environment,
                   timeout=300)
    network = Layers({"qkv": nn.Linear(6, 12, False), "x": Layers({"mlp": nn.Linear(6, 12, False)}),
                             "shared": nn.Embedding(12, 6)}).to("meta")
    read_weights(network, file, {name: Place(name) for name in stored}, getattr(torch, dtype), "")
    with safe_open(out, "pt") as theirs:
        assert set(theirs.keys()) == stored.keys()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, theirs.get_tensor(name)), name
