"""OneTrainer: its loader of adapter files and its adapter modules. See answering.py.

A trainer has no strength and merges nothing: the weight is read off what a module makes of single inputs. Its settings
(kind, rank, axis, layers) are those that a user would choose for the file; a layer filter is given to the text encoders
too, for which OneTrainer itself has none and wants every layer in the file.
"""

import answering

answering.folder()

import diffusers  # noqa: E402
import transformers  # noqa: E402

answering.stub("torchvision", "bitsandbytes", "gguf", "cv2", "mgds", "scalene", "nvidia", "triton", "tensorboard",
               "dadaptation", "kornia_rs", "prodigyopt", "customtkinter", "requests", "yaml", "einops_exts", "pooch",
               "open_clip")
answering.stub_first("diffusers.quantizers.gguf.utils", "modules.util.multi_gpu_util")

import importlib  # noqa: E402
import re  # noqa: E402

import torch  # noqa: E402
from modules.module.FusedModule import discover_fused_groups  # noqa: E402
from modules.module.LoRAModule import LoRAModuleWrapper  # noqa: E402
from modules.util.config.TrainConfig import TrainConfig  # noqa: E402
from modules.util.enum.ModelType import ModelType, PeftType  # noqa: E402
from modules.util.ModelNames import ModelNames  # noqa: E402

assert transformers  # imported before anything is stubbed: it looks for packages itself
FAMILIES = {
    "sd15": ("StableDiffusion", "stableDiffusion", "STABLE_DIFFUSION_15", ("text_encoder",)),
    "sdxl": ("StableDiffusionXL", "stableDiffusionXL", "STABLE_DIFFUSION_XL_10_BASE",
             ("text_encoder_1", "text_encoder_2")),
    "sd3": ("StableDiffusion3", "stableDiffusion3", "STABLE_DIFFUSION_35",
            ("text_encoder_1", "text_encoder_2", "text_encoder_3")),
    "flux": ("Flux", "flux", "FLUX_DEV_1", ("text_encoder_1", "text_encoder_2")),
}
KINDS = {"hada_": PeftType.LOHA, "lokr_": PeftType.LOKR, "oft_": PeftType.OFT_2}


class Clip(torch.nn.Module):
    """A text encoder whose layers are called as transformers 4 calls them, which OneTrainer has."""

    def __init__(self, model):
        super().__init__()
        self.text_model = model


def model(folder, family):
    """OneTrainer's model with the base's networks; and these by our names."""
    name, _, kind, encoders = FAMILIES[family]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found = getattr(importlib.import_module(f"modules.model.{name}Model"), f"{name}Model")(getattr(ModelType, kind))
    parts = {part: network for part, network in pipeline.components.items()
             if part in ("unet", "transformer") or part.startswith("text_encoder") and network is not None}
    for part, network in list(parts.items()):
        network.requires_grad_(False)
        if type(network).__name__ == "CLIPTextModel" and "text_model" not in network._modules:
            network = parts[part] = Clip(network)
        number = part.removeprefix("text_encoder").lstrip("_")
        theirs = encoders[int(number or 1) - 1] if part.startswith("text") else part
        setattr(found, theirs, network)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.stride, module.padding = (1, 1), tuple(size // 2 for size in module.kernel_size)
    return found, parts


def settings(tensors):
    """What a user sets for a file."""
    config = TrainConfig.default_values()
    kinds = {kind for key in tensors for start, kind in KINDS.items() if f".{start}" in key}
    config.peft_type = kinds.pop() if len(kinds) == 1 else PeftType.LORA
    downs = [tensor for key, tensor in tensors.items() if "lora_down" in key]
    config.lora_rank = len(downs[0]) if downs else 2
    scales = [tensor for key, tensor in tensors.items() if key.endswith("dora_scale")]
    config.lora_decompose = bool(scales)
    config.lora_decompose_output_axis = bool(scales) and len(scales[0]) > 1
    seconds = [tensor for key, tensor in tensors.items() if key.endswith("lokr_w2_b")]
    config.lokr_dim = len(seconds[0]) if seconds else 2
    config.lokr_full_matrix = not seconds
    config.lokr_decompose_factor = 4
    values = [tensor.shape[1] for key, tensor in tensors.items() if key.endswith("oft_R.weight")]
    config.oft_block_size = round((1 + (1 + 8 * values[0]) ** 0.5) / 2) if values else 32
    config.oft_scaled = any(key.endswith("scaled_oft") for key in tensors)
    config.train_device = "cpu"
    return config


def weight(module, before):
    """The weight that a module's forward pass has, from what it makes of single inputs."""
    shape = before.shape
    if before.dim() == 2:
        inputs, at = torch.eye(shape[1]), (Ellipsis,)
    else:
        inputs = torch.eye(before[0].numel()).reshape(-1, *shape[1:])
        at = (..., shape[2] // 2, shape[3] // 2)
    with torch.no_grad():
        found = module(inputs) - module(torch.zeros_like(inputs))
    return found[at].T.reshape(shape)


def answer(request):
    """Load one file."""
    if request["strength"] != 1 or request["dtype"] != "float32":
        return {"absent": "OneTrainer trains on: it has no strength and merges no weights, which 16 bits would round"}
    family = request["family"]
    name, room, _, _ = FAMILIES[family]
    found, parts = model(request["folder"], family)
    loader = getattr(importlib.import_module(f"modules.modelLoader.{room}.{name}LoRALoader"), f"{name}LoRALoader")()
    names = ModelNames()
    names.lora = request["file"]
    try:
        loader.load(found, names)
    except Exception:  # it has printed why, and raises something that does not say it
        loader._LoRALoaderMixin__load_safetensors(found, request["file"])
        raise
    tensors = found.lora_state_dict
    bare = isinstance(parts.get("text_encoder"), Clip)
    config, before, after, taken = settings(tensors), {}, {}, set()
    for part, network in parts.items():
        before |= {f"{part}.{key}": tensor for key, tensor in network.state_dict().items()}
        fusion = found.fusion_groups() if part == "transformer" else None
        paths, fused = layers(part, network, tensors, fusion)
        if not paths:
            continue
        config.layer_filter_regex = True
        filters = [f"^{re.escape(path)}$" for path in paths]
        wrapper = LoRAModuleWrapper(network, part, config, filters, fusion_spec=fusion, fuse=fused)
        wrapper.load_state_dict(tensors)
        wrapper.hook_to_module()
        taken |= set(wrapper.state_dict())
        for path in paths:
            key = f"{part}.{path}.weight"
            after[key] = weight(network.get_submodule(path), before[key])
    before, after = ({key.replace("text_encoder.text_model.", "text_encoder.") if bare else key: tensor
                      for key, tensor in one.items()} for one in (before, after))
    answering.changed(before, after, request["out"])
    return {"unread": sorted(set(tensors) - taken), "errors": []}


def layers(part, network, tensors, fusion):
    """The layers of a network that the file has something for, and whether it has query, key and value as one."""
    found = {path: module for path, module in network.named_modules()
             if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    there = {key.rpartition(".lora_")[0].removeprefix(f"{part}.") for key in tensors if key.startswith(f"{part}.")}
    there |= {re.sub(r"\.(alpha|dora_scale|(hada|lokr|oft)_.*)$", "", key).removeprefix(f"{part}.") for key in tensors}
    paths = set(found) & there
    groups = discover_fused_groups(fusion, found, True) if fusion else ()
    together = {leaf for name, leaves, _ in groups if name in there for leaf in leaves}
    return sorted(paths | together), bool(together)


if __name__ == "__main__":
    answering.serve(answer)
