"""Forge: which keys of a file its loader takes. See keys_comfyui.py."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import answering
import forge
import torch
from safetensors.torch import load_file

DEPTHS = {
    "sdxl": {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
             "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10},
    **dict.fromkeys(("flux", "chroma"), {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072}),
    "sd3": {"depth": 24},
}


class Patcher:
    """Notes what it is given."""

    def __init__(self, tensors, family):
        config = dict(DEPTHS.get(family) or {key: list(value) if isinstance(value, list) else value
                                             for key, value in forge.UNET[family].items()})
        config = {key: list(value) if isinstance(value, list) else value for key, value in config.items()}
        self.model = self.cond_stage_model = SimpleNamespace(
            state_dict=lambda: tensors, diffusion_model=SimpleNamespace(config=config),
            config=SimpleNamespace(huggingface_repo=forge.REPOSITORY[family]))
        self.tensors, self.patches = tensors, {}

    def clone(self):
        """Itself: one file, one patcher."""
        return self

    def add_patches(self, filename, patches, **options):
        """The names of the tensors that are there, as Forge's own."""
        there = {name: patch for name, patch in patches.items()
                 if (name if isinstance(name, str) else name[0]) in self.tensors}
        self.patches |= there
        return list(there)


@cache
def tensors(family, model, layers):
    """Names of the denoiser's and of the text encoders' tensors."""
    denoiser, texts = {}, {}
    encoders = {"text_encoder": "clip_h"} if model == "sd21" else forge.ENCODERS[family]
    for _, network, path, original, _ in json.loads(Path(layers).read_text(encoding="utf-8")):
        if network not in encoders:
            denoiser |= dict.fromkeys((f"diffusion_model.{original}", f"diffusion_model.{bias(original)}"))
        elif path != "encoder.embed_tokens":
            texts[f"{encoders[network]}.transformer.{path}.weight"] = None
    texts |= {f"{clip}.transformer.text_projection.weight": None for clip in encoders.values() if "clip" in clip}
    return denoiser, texts


def bias(weight):
    """The name of a layer's bias."""
    return f"{weight.removesuffix('.weight')}.bias"


def answer(request):
    """Load one file."""
    family = request["family"]
    denoiser, texts = (Patcher(found, family) for found in tensors(family, request["model"], request["layers"]))
    file = load_file(request["file"])
    for function in (forge.networks.model_lora_keys_unet, forge.networks.model_lora_keys_clip):
        function.__defaults__[0].clear()  # Forge adds to them: after another model it would know that one's names too
    forge.networks.load_lora_for_models(denoiser, texts, dict(file), 1.0, 1.0, filename="file")
    taken = {id(tensor) for patch in (*denoiser.patches.values(), *texts.patches.values()) for tensor in patch[1]
             if isinstance(tensor, torch.Tensor)}
    return {"read": sorted(key for key, tensor in file.items() if id(tensor) in taken)}


if __name__ == "__main__":
    answering.serve(answer)
