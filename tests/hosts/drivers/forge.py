"""Forge (stable-diffusion-webui-forge): its extension's `load_lora_for_models`, its patchers and LoraLoader.

See answering.py. Forge asks models for no more than parameters under its names, so the models are trees of parameters.
"""

import answering

FOLDER = answering.folder()

import sys  # noqa: E402

sys.argv = [sys.argv[0], "--always-cpu"]
sys.path.insert(1, str(FOLDER / "packages_3rdparty"))

import diffusers  # noqa: E402
import transformers  # noqa: E402

answering.stub("torchvision", "gradio", "cv2", "kornia", "huggingface_guess", "bitsandbytes", "xformers",
               "sentencepiece")
answering.stub_first("modules", "network")

import contextlib  # noqa: E402
import io  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from functools import cache  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

assert diffusers and transformers  # imported before anything is stubbed: they look for packages themselves
from modules import shared  # noqa: E402

NOWHERE = tempfile.mkdtemp(prefix="gimbal_forge_")
shared.cmd_opts = SimpleNamespace(lora_dir=NOWHERE)
shared.walk_files = lambda *_, **__: []
sys.path.insert(0, str(FOLDER / "extensions-builtin/sd_forge_lora"))

import networks  # noqa: E402
from backend.patcher.base import ModelPatcher  # noqa: E402
from backend.patcher.lora import merge_lora_to_weight  # noqa: E402

CPU = torch.device("cpu")
ENCODERS = {
    "sd15": {"text_encoder": "clip_l"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "chroma": {"text_encoder": "t5xxl"},
}
REPOSITORY = {
    "sd15": "runwayml/stable-diffusion-v1-5", "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers", "flux": "black-forest-labs/FLUX.1-dev",
    "chroma": "Chroma",
}
UNET = {
    "sd15": {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
             "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1},
    "sdxl": {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 1, 1, 2, 2],
             "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "transformer_depth_middle": 2},
}
"""What Forge finds in checkpoints; the tiny models' depths."""


class KModel(torch.nn.Module):
    """Parameters under given names."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            place = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, torch.nn.Module())
                place = place._modules[part]
            place.register_parameter(last, torch.nn.Parameter(tensor.clone(), requires_grad=False))


class Clip:
    """Forge's CLIP without a tokenizer."""

    def __init__(self, model):
        self.cond_stage_model = model
        self.patcher = ModelPatcher(model, CPU, CPU)

    def clone(self):
        found = Clip.__new__(Clip)
        found.cond_stage_model, found.patcher = self.cond_stage_model, self.patcher.clone()
        return found

    def add_patches(self, *args, **kwargs):
        return self.patcher.add_patches(*args, **kwargs)


def config(family, tensors):
    """What Forge knows of the denoiser."""
    if family in UNET:
        return UNET[family]
    blocks = {name.split(".")[1] for name in tensors if name.startswith("double_blocks.")}
    singles = {name.split(".")[1] for name in tensors if name.startswith("single_blocks.")}
    width = len(tensors["img_in.weight"]) if family == "flux" else 0
    return {"depth": len(blocks), "depth_single_blocks": len(singles), "hidden_size": width}


@cache
def models(base, family, dtype):
    """The denoiser's name, denoiser and text encoders as Forge has them, and all tensors as they are before."""
    parts = {}
    for name, tensor in load_file(base).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    name = next(part for part in parts if part in ("unet", "transformer"))
    denoiser = KModel({f"diffusion_model.{key}": tensor for key, tensor in parts[name].items()})
    denoiser.diffusion_model.config = config(family, parts[name])
    denoiser.config = SimpleNamespace(huggingface_repo=REPOSITORY[family])
    texts = {f"{theirs}.transformer.{key}": tensor for ours, theirs in ENCODERS[family].items()
             for key, tensor in parts.get(ours, {}).items() if tensor.is_floating_point()}
    texts = KModel(texts)
    return name, denoiser, texts, state(name, family, denoiser, texts)


def answer(request):
    """Load and apply one file, and take it off again as Forge does."""
    family = request["family"]
    name, denoiser, texts, before = models(request["base"], family, vars(torch)[request["dtype"]])
    file, strength, said = load_file(request["file"]), request["strength"], io.StringIO()
    with contextlib.redirect_stdout(said):
        unet, clip = networks.load_lora_for_models(
            ModelPatcher(denoiser, CPU, CPU), Clip(texts), file, strength, strength, filename="file")
        try:
            unet.refresh_loras()
            clip.patcher.refresh_loras()
            answering.changed(before, state(name, family, denoiser, texts), request["out"])
        finally:
            for model in (denoiser, texts):
                model.lora_loader.refresh({}, CPU, force_refresh=True)
    lines = [line for line in said.getvalue().splitlines() if "[LORA] Loaded" not in line or "(skipped 0 keys)" not in
             line]
    return {"unread": unread(file, denoiser, texts), "errors": lines}


def layers(request):
    """Apply a file to single layers by their names: the weights, and what was said of each."""
    weights, file = load_file(request["base"]), load_file(request["file"])
    after, said = {}, {}
    for name, weight in weights.items():
        try:
            patches, _ = networks.load_lora(file, {name: f"{name}.weight"})
            given = [[request["strength"], patch, 1.0, None, None] for patch in patches.values()]
            after[name] = merge_lora_to_weight(given, weight.clone(), name) if given else weight
        except Exception as error:  # what ends the loading of the file
            said[name] = f"{type(error).__name__}: {error}"
    answering.changed(weights, after, request["out"])
    return {"layers": said}


def unread(file, denoiser, texts):
    """The keys that neither map of names takes."""
    _, left = networks.load_lora(file, networks.model_lora_keys_unet(denoiser, {}))
    _, left = networks.load_lora(left, networks.model_lora_keys_clip(texts, {}))
    return sorted(left)


def state(name, family, denoiser, texts):
    """All tensors by our networks' names."""
    back = {theirs: ours for ours, theirs in ENCODERS[family].items()}
    found = {f"{name}.{key.removeprefix('diffusion_model.')}": tensor.detach().clone()
             for key, tensor in denoiser.state_dict().items()}
    for key, tensor in texts.state_dict().items():
        part, _, rest = key.partition(".transformer.")
        found[f"{back[part]}.{rest}"] = tensor.detach().clone()
    return found


if __name__ == "__main__":
    os.chdir(FOLDER)
    answering.serve(answer, layers)
