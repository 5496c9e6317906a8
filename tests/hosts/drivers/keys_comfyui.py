"""ComfyUI: which keys of a file its loaders take, with its own models in full size and without weights.

See answering.py. Requests: `file`, `model` (of tests/full_size.py) and `layers`, its layers as JSON. Answers `read`.
"""

import answering

FOLDER = answering.folder()
answering.stub("torchvision", "torchaudio", "comfy_aimdo", "comfy_kitchen", "scipy", "av", "kornia", "torchsde",
               "spandrel", "aiohttp", "yaml_stub")

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True  # before the device is chosen

import json  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

CLASSES = {"sd15": "SD15", "sd21": "SD20", "sdxl": "SDXL", "sd35_medium": "SD3", "sd35_large": "SD3",
           "flux_dev": "Flux", "flux_schnell": "FluxSchnell", "chroma1_hd": "Chroma",
           "zimage": "ZImage", "zimage_turbo": "ZImage",
           "flux2_dev": "Flux2", "flux2_klein_4b": "Flux2", "flux2_klein_9b": "Flux2",
           "qwen_image": "QwenImage", "qwen_image_2512": "QwenImage", "krea2": "Krea2", "anima": "Anima"}
CLIPS = {"sd15": ("clip_l",), "sd21": ("clip_h",), "sdxl": ("clip_l", "clip_g"), "flux_dev": ("clip_l", "t5xxl"),
         "flux_schnell": ("clip_l", "t5xxl"), "chroma1_hd": ("t5xxl",), "zimage": ("qwen3_4b",),
         "zimage_turbo": ("qwen3_4b",), "flux2_dev": ("mistral3_24b",), "flux2_klein_4b": ("qwen3_4b",),
         "flux2_klein_9b": ("qwen3_8b",), "qwen_image": ("qwen25_7b",), "qwen_image_2512": ("qwen25_7b",),
         "krea2": ("qwen3vl_4b",), "anima": ("qwen3_06b",)}
META = torch.device("meta")


@cache
def names(model, layers):
    """ComfyUI's map of names to tensors, without those whose tensors the model has not."""
    rows = json.loads(Path(layers).read_text(encoding="utf-8"))
    denoiser = {f"diffusion_model.{original}": torch.empty(shape, device=META)
                for _, network, _, original, shape in fused(rows) if not network.startswith("text_encoder")}
    config = comfy.model_detection.detect_unet_config(dict(denoiser), "diffusion_model.")
    chosen = vars(comfy.supported_models)[CLASSES[model]](config)
    chosen.unet_config |= config | {"dtype": torch.float32}
    with META:
        found = chosen.get_model({}, "diffusion_model.", device=META)
    known = comfy.lora.model_lora_keys_unet(found, {})
    clips = CLIPS.get(model, ("clip_l", "clip_g", "t5xxl"))
    texts = {}
    for _, network, path, *_ in rows:
        if network.startswith("text_encoder") and path != "encoder.embed_tokens":
            number = int(network.removeprefix("text_encoder").lstrip("_") or 1)
            texts[f"{clips[number - 1]}.transformer.{path}.weight"] = None
    texts |= {f"{clip}.transformer.text_projection.weight": None for clip in clips if clip.startswith("clip")}
    known = comfy.lora.model_lora_keys_clip(SimpleNamespace(state_dict=lambda: texts), known)
    there = found.state_dict().keys() | texts.keys()
    return {name: place for name, place in known.items() if (place if isinstance(place, str) else place[0]) in there}


def fused(rows):
    """The layers with query, key and value in one, as the original checkpoint has them."""
    by_name = {}
    for row in rows:
        if row[1].startswith("text_encoder"):
            continue
        if row[3] in by_name and row[3].rpartition(".")[2] == "weight":
            by_name[row[3]][4][0] += row[4][0]
        else:
            by_name.setdefault(row[3], [*row[:4], list(row[4])])
    return by_name.values()


def answer(request):
    """Load one file."""
    file = comfy.utils.load_torch_file(request["file"], safe_load=True)
    converted = comfy.lora_convert.convert_lora(file)
    patches = comfy.lora.load_lora(converted, names(request["model"], request["layers"]))
    taken = set()
    for patch in patches.values():
        weights = patch[1] if isinstance(patch, tuple) else patch.weights
        taken |= {id(tensor) for tensor in weights if isinstance(tensor, torch.Tensor)}
    return {"version": version(), "read": sorted(key for key, tensor in file.items() if id(tensor) in taken)}


def version():
    """ComfyUI's own, or empty."""
    path = FOLDER / "comfyui_version.py"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.partition("__version__ = ")[2].strip().strip("\"'")


if __name__ == "__main__":
    answering.serve(answer)
