"""ComfyUI: a model of the family, `load_lora_for_models`, and its model patcher. See answering.py."""

import answering

FOLDER = answering.folder()
answering.stub("torchvision", "torchaudio", "comfy_aimdo", "comfy_kitchen", "scipy", "av", "kornia", "torchsde",
               "spandrel", "aiohttp", "yaml_stub")

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True  # before the device is chosen

import importlib.util  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import comfy.lora  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

CPU = torch.device("cpu")
LOG = answering.Log()
logging.getLogger().addHandler(LOG)
CLASSES = {"sd15": "SD15", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux", "chroma": "Chroma", "zimage": "ZImage",
           "flux2": "Flux2", "qwenimage": "QwenImage", "krea2": "Krea2", "anima": "Anima"}
ENCODERS = {
    "sd15": {"text_encoder": "clip_l"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "chroma": {"text_encoder": "t5xxl"},
    "zimage": {"text_encoder": "qwen3_4b"},
    "qwenimage": {"text_encoder": "qwen25_7b"},
    "krea2": {"text_encoder": "qwen3vl_4b"},
    "anima": {"text_encoder": "qwen3_06b"},
}
SIZES = {2560: "qwen3_4b", 4096: "qwen3_8b", 5120: "mistral3_24b"}
"""The text encoder of a family that has several, by its width."""


class Tree(torch.nn.Module):
    """Modules that have nothing but parameters, under given names: ComfyUI asks text encoders for no more."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            place = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, torch.nn.Module())
                place = place._modules[part]
            place.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))


class Operations(comfy.ops.disable_weight_init):
    """ComfyUI's own layers, with group norms that fit fewer channels than 32."""

    class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
        def __init__(self, num_groups, num_channels, *args, **kwargs):
            super().__init__(min(num_groups, 4), num_channels, *args, **kwargs)


class Clip:
    """The part of comfy.sd.CLIP that loading adapter files asks for."""

    def __init__(self, model):
        self.cond_stage_model = model
        self.patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)

    def clone(self):
        found = Clip.__new__(Clip)
        found.cond_stage_model, found.patcher = self.cond_stage_model, self.patcher.clone()
        return found

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        return self.patcher.add_patches(patches, strength_patch, strength_model)


def denoiser(family, tensors, tiny=True):
    """ComfyUI's own model of the family, in the sizes of the tensors; with their weights if it is tiny."""
    state = {f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    config = comfy.model_detection.detect_unet_config(state, "diffusion_model.")
    dtype = next(iter(tensors.values())).dtype
    if family == "flux" and tiny:
        width = config["hidden_size"] // 2
        config |= {"num_heads": 2, "axes_dim": [width - 2 * (width // 4), width // 4, width // 4]}
        config["out_channels"] = len(tensors["final_layer.linear.weight"]) // config["patch_size"] ** 2
    if family in ("sd15", "sdxl") and tiny:
        config |= {"num_heads": 1, "num_head_channels": -1}
    chosen = vars(comfy.supported_models)[CLASSES[family]](config)
    chosen.unet_config |= config
    chosen.unet_config["dtype"] = dtype
    chosen.custom_operations = Operations
    model = chosen.get_model(state, "diffusion_model.", device=CPU if tiny else "meta")
    if not tiny:
        return model
    LOG.taken()
    model.load_model_weights(dict(state), "diffusion_model.")
    assert not LOG.lines, LOG.lines
    return model


@cache
def model(base, family, dtype):
    """The denoiser's patcher and the text encoders, as ComfyUI has them."""
    tensors = {name: tensor.to(vars(torch)[dtype]) if tensor.is_floating_point() else tensor
               for name, tensor in load_file(base).items()}
    parts = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    name = next(part for part in parts if part in ("unet", "transformer"))
    patcher = comfy.model_patcher.ModelPatcher(denoiser(family, parts[name]), load_device=CPU, offload_device=CPU)
    texts = {f"{theirs}.transformer.{key}": tensor for ours, theirs in ENCODERS[family].items()
             for key, tensor in parts.get(ours, {}).items() if tensor.dim()}
    return SimpleNamespace(name=name, patcher=patcher, clip=Clip(Tree(texts)), tensors=tensors)


def patched(patcher, way, dtype, texts):
    """All patched tensors. Ways: "loaded" as when a model is moved to the device for good, where a GPU computes in
    float16; "on the fly" as in the default dynamic VRAM mode on NVIDIA, in the numbers of a layer's input: those of the
    model, and float32 in text encoders (`SDClipModel.forward` embeds tokens so, whatever the weights are)."""
    found = {}
    for key in patcher.patches:
        weight, _, _ = comfy.model_patcher.get_key_weight(patcher.model, key)
        if way == "on the fly":
            seen = weight.detach().to(torch.float32 if texts else weight.dtype, copy=True)
            found[key] = comfy.model_patcher.LowVramPatch(key, patcher.patches)(seen)
            continue
        computed = torch.float32 if dtype == "float32" else torch.float16
        comfy.model_management.LORA_COMPUTE_DTYPES[CPU] = computed
        found[key] = patcher.patch_weight_to_device(key, device_to=CPU, return_weight=True)
    return found


def answer(request):
    """Load and apply one file; or, for a request with shapes, the names that a model has."""
    if "shapes" in request:
        return names(request)
    found = model(request["base"], request["family"], request["dtype"])
    for number, path in enumerate(request.get("nodes", [])):
        load_node(Path(path), number)
    LOG.taken()
    file, metadata = comfy.utils.load_torch_file(request["file"], safe_load=True, return_metadata=True)
    strength = request["strength"]
    patcher, clip = comfy.sd.load_lora_for_models(found.patcher, found.clip, file, strength, strength)
    said = LOG.taken()
    after = {f"{found.name}.{key.removeprefix('diffusion_model.')}": tensor
             for key, tensor in patched(patcher, request["way"], request["dtype"], False).items()}
    back = {theirs: ours for ours, theirs in ENCODERS[request["family"]].items()}
    for key, tensor in patched(clip.patcher, request["way"], request["dtype"], True).items():
        part, _, rest = key.partition(".transformer.")
        after[f"{back[part]}.{rest}"] = tensor
    answering.changed(found.tensors, after, request["out"])
    unread = [line.partition("not loaded: ")[2] for line in said if "lora key not loaded" in line]
    errors = [line for line in said if "lora key not loaded" not in line] + LOG.taken()
    return {"version": version(), "unread": unread, "errors": errors}


def names(request):
    """The names that ComfyUI knows for a model of these shapes, each with the shape of what it stands for."""
    tensors = {}
    for name, shape in request["shapes"].items():
        part, _, rest = name.partition(".")
        tensors.setdefault(part, {})[rest] = torch.empty(shape, device="meta")
    part = next(one for one in tensors if one in ("unet", "transformer"))
    model = denoiser(request["family"], tensors[part], tiny=False)
    context = [tensor.shape[1] for key, tensor in tensors[part].items() if key.endswith("attn2.to_k.weight")]
    encoders = {"text_encoder": "clip_h"} if context[:1] == [1024] else ENCODERS.get(request["family"])
    if encoders is None:
        encoders = {"text_encoder": SIZES[tensors["text_encoder"]["model.embed_tokens.weight"].shape[1]]}
    texts = Tree({f"{theirs}.transformer.{key}": tensor for ours, theirs in encoders.items()
                  for key, tensor in tensors.get(ours, {}).items()})
    found = comfy.lora.model_lora_keys_clip(texts, comfy.lora.model_lora_keys_unet(model, {}))
    shapes = {key: list(tensor.shape) for one in (model, texts) for key, tensor in one.state_dict().items()}
    known = {}
    for name, target in found.items():
        key, part = (target, None) if isinstance(target, str) else (target[0], target[1])
        if key in shapes:
            shape = list(shapes[key])
            if part is not None:
                shape[part[0]] = part[2]
            known[name] = shape
    return {"known": known}


def layers(request):
    """Apply a file to single layers by their names: the weights, and what was said of each."""
    for number, path in enumerate(request.get("nodes", [])):
        load_node(Path(path), number)
    weights, file = load_file(request["base"]), load_file(request["file"])
    after, said = {}, {}
    for name, weight in weights.items():
        LOG.taken()
        own = {key: tensor for key, tensor in file.items() if key.startswith(f"{name}.")}
        try:
            patches = comfy.lora.load_lora(own, {name: f"{name}.weight"})
            given = [(request["strength"], patch, 1.0, None, None) for patch in patches.values()]
            after[name] = comfy.lora.calculate_weight(given, weight.clone(), name) if given else weight
        except Exception as error:  # what stops a picture
            said[name] = f"{type(error).__name__}: {error}"
        said.setdefault(name, "; ".join(LOG.taken()))
    answering.changed(weights, after, request["out"])
    return {"layers": said}


@cache
def load_node(path, number):
    """Import a custom node as a package of its own."""
    name = f"custom_node_{number}"
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def version():
    """ComfyUI's own, or empty."""
    path = FOLDER / "comfyui_version.py"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.partition("__version__ = ")[2].strip().strip("\"'")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    answering.serve(answer, layers)
