"""ComfyUI: what its linear layers and embeddings make of a file with quantized weights.

    python scaled_comfyui.py FOLDER-OF-COMFYUI FILE DTYPE OUT

OUT gets the weights of all layers of FILE that are quantized there, in DTYPE. Needs its package comfy_kitchen, which no
stub stands for. See answering.py.
"""

import json
import sys

import answering

FOLDER = answering.folder()
answering.stub("torchvision", "torchaudio", "comfy_aimdo", "scipy", "av", "kornia", "torchsde", "spandrel", "aiohttp",
               "yaml_stub")

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True  # before the device is chosen

import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def main(file: str, dtype: str, out: str) -> None:
    """Every layer of the file as a layer of its own."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors, _ = comfy.utils.convert_old_quants(load_file(file), "", metadata)
    ops = comfy.ops.mixed_precision_ops({}, getattr(torch, dtype))
    layers = [name.removesuffix(".comfy_quant") for name in tensors if name.endswith(".comfy_quant")]
    found = {}
    for layer in layers:
        inside = {name.removeprefix(f"{layer}."): t for name, t in tensors.items() if name.startswith(f"{layer}.")}
        rows, columns = inside["weight"].shape
        table = layer.endswith("shared")
        module = ops.Embedding(rows, columns, device="meta") if table else ops.Linear(
            columns, rows, bias=False, device="cpu")
        module.load_state_dict(inside, strict=False)
        found[f"{layer}.weight"] = module.weight.dequantize().contiguous()
    save_file(found, out)


if __name__ == "__main__":
    main(*sys.argv[-3:])
    answering.CHANNEL.write(json.dumps({"done": True}) + "\n")
