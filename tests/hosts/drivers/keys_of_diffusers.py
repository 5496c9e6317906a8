"""diffusers with peft: `load_lora_weights` on networks in full size and without weights. See keys_comfyui.py.

Answers `layers`, those that were given values, as "network.path".
"""

import answering

answering.folder()

import json  # noqa: E402
from pathlib import Path  # noqa: E402

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from diffusers.loaders import lora_pipeline  # noqa: E402

MIXINS = {"sd15": "StableDiffusionLoraLoaderMixin", "sdxl": "StableDiffusionXLLoraLoaderMixin",
          "sd3": "SD3LoraLoaderMixin", "flux": "FluxLoraLoaderMixin",
          "chroma": "FluxLoraLoaderMixin", "zimage": "ZImageLoraLoaderMixin",
          "flux2": "Flux2LoraLoaderMixin", "qwenimage": "QwenImageLoraLoaderMixin",
          "krea2": "Krea2LoraLoaderMixin", "anima": "AnimaLoraLoaderMixin", "qwenimage21": "QwenImageLoraLoaderMixin"}


def pipeline(folder, family):
    """An object with the networks and the family's loader."""
    index = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    mixin = vars(lora_pipeline)[MIXINS[family]]
    parts = {}
    with torch.device("meta"):
        for name in mixin._lora_loadable_modules:
            library, kind = index[name]
            if library == "diffusers":
                config = getattr(diffusers, kind).load_config(folder, subfolder=name)
                parts[name] = getattr(diffusers, kind).from_config(config)
            else:
                config = transformers.AutoConfig.from_pretrained(f"{folder}/{name}")
                parts[name] = getattr(transformers, kind)(config)
    found = type("Pipeline", (mixin,), {"components": parts, "hf_device_map": None})()
    for name, part in parts.items():
        vars(found)[name] = emptied(part)
    return found


def emptied(network):
    """The network with one number for all of each weight: adapters on no device would have no numbers either."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(torch.zeros(()).expand(weight.shape), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)
    return network


KEPT = {}
"""The last request's networks, by folder and family: making them takes longer than loading a file."""


def answer(request):
    """Load one file, and unload it. Where either fails, the networks are not used again."""
    key = request["folder"], request["family"]
    found = KEPT.pop(key, None) or pipeline(*key)
    KEPT.clear()
    found.load_lora_weights(request["file"])
    told = {"version": diffusers.__version__, "layers": sorted(given_values(found))}
    found.unload_lora_weights()
    KEPT[key] = found
    return told


def given_values(found):
    """Layers whose adapter is not zero, as "network.path"."""
    layers = set()
    for part, network in found.components.items():
        for name, tensor in network.named_parameters():
            path, mark, _ = name.partition(".lora_B.")
            if mark and not tensor.is_meta and tensor.abs().max() > 0:
                layers.add(f"{part}.{path}")
    return layers


if __name__ == "__main__":
    answering.serve(answer)
