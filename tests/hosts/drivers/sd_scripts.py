"""sd-scripts: `create_network_from_weights` and `merge_to` of its LoRA modules. See answering.py.

The networks are sd-scripts' own classes in full size and without weights, in which the tiny tensors then take the
place of the large ones; what the tiny model lacks is taken out.
"""

import answering

FOLDER = answering.folder()

import diffusers  # noqa: E402
import transformers  # noqa: E402

answering.stub("torchvision", "cv2", "imagesize", "toml", "voluptuous", "ftfy", "open_clip", "altair", "easygui")

import logging  # noqa: E402
from functools import cache  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

LOG = answering.Log()
logging.getLogger().addHandler(LOG)
assert diffusers and transformers  # imported before anything is stubbed: they look for packages themselves
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Clip(torch.nn.Module):
    """A text encoder whose layers are called as transformers 4 calls them, which sd-scripts asks for."""

    def __init__(self, model):
        super().__init__()
        self.text_model = model


def text_encoder(folder, part, tensors):
    """transformers' model with the tensors."""
    found = transformers.AutoConfig.from_pretrained(f"{folder}/{part}")
    kind = getattr(transformers, found.architectures[0])
    model = kind(found)
    if kind is transformers.CLIPTextModel:
        model = model if "text_model" in model._modules else Clip(model)
    return fitted(model, tensors)


def fitted(model, tensors):
    """The model with these tensors in place of its own; parts for which there are none are taken out."""
    left = dict(tensors)
    for path, module in list(model.named_modules()):
        for name in list(module._parameters):
            full = f"{path}.{name}".lstrip(".")
            if full in left:
                module._parameters[name] = torch.nn.Parameter(left.pop(full).clone(), requires_grad=False)
            elif module._parameters[name] is not None:
                module._parameters[name] = None
        sized(module)
    for path, module in reversed(list(model.named_modules())):
        parent, _, last = path.rpartition(".")
        is_layer = isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        if is_layer and all(one is None for one in module._parameters.values()):
            del model.get_submodule(parent)._modules[last]
    buffers = {name for name, _ in model.named_buffers()}
    unknown = {name for name in left if name not in buffers and left[name].dim()}
    assert not unknown, f"sd-scripts' model has no {sorted(unknown)[:5]}"
    return model


def sized(module):
    """Make what a layer says of its size true."""
    weight = module._parameters.get("weight")
    if weight is None:
        return
    if isinstance(module, torch.nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, torch.nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[:2]


def denoiser(family):
    """sd-scripts' own network of the family, on no device, and its module for adapters."""
    with torch.device("meta"):
        if family == "sdxl":
            from library.sdxl_original_unet import SdxlUNet2DConditionModel
            from networks import lora

            return SdxlUNet2DConditionModel(), lora
        if family == "sd15":
            from library.original_unet import UNet2DConditionModel
            from networks import lora

            return UNet2DConditionModel(sample_size=64, cross_attention_dim=768), lora
        if family == "flux":
            from library import flux_models
            from networks import lora_flux

            return flux_models.Flux(flux_models.configs["dev"].params), lora_flux
        if family == "chroma":
            from library import chroma_models
            from networks import lora_flux

            return chroma_models.Chroma(chroma_models.chroma_params), lora_flux
        from library import sd3_models
        from networks import lora_sd3

        params = sd3_models.SD3Params(2, 24, 36864, 384, 2048, "rms", list(range(13)), 4096, 1536, "3-5-medium")
        return sd3_models.create_sd3_mmdit(params), lora_sd3


@cache
def model(base, folder, family, dtype):
    """Denoiser and text encoders by name, the module for adapters, and all tensors as they are before."""
    tensors = {}
    for name, tensor in load_file(base).items():
        part, _, rest = name.partition(".")
        tensors.setdefault(part, {})[rest] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    network, module = denoiser(family)
    name = next(part for part in tensors if part not in ENCODERS)
    texts = {part: text_encoder(folder, part, tensors[part]) for part in ENCODERS if part in tensors}
    parts = {name: fitted(network, tensors[name]), **texts}
    return parts, module, state(parts)


def answer(request):
    """Load and merge one file, and put everything back."""
    dtype, family = vars(torch)[request["dtype"]], request["family"]
    parts, module, before = model(request["base"], request["folder"], family, dtype)
    LOG.taken()
    try:
        unread = merged(request, parts, module, dtype)
        answering.changed(before, state(parts), request["out"])
    finally:
        answering.restore(before, state(parts, copied=False))
    return {"unread": unread, "errors": LOG.taken()}


def merged(request, parts, module, dtype):
    """Merge, and give the keys that were not used."""
    encoders = [part for name, part in parts.items() if name in ENCODERS]
    texts = encoders if len(encoders) > 1 else encoders[0]
    denoising = next(part for name, part in parts.items() if name not in ENCODERS)
    network, weights = module.create_network_from_weights(
        request["strength"], request["file"], None, texts, denoising, for_inference=True)
    network.merge_to(texts, denoising, weights, dtype, torch.device("cpu"))
    taken = {f"{one.lora_name}.{key}" for one in network.text_encoder_loras + network.unet_loras
             for key in ("lora_up.weight", "lora_down.weight", "alpha")}
    return sorted(set(weights) - taken)


def state(parts, copied=True):
    """All tensors by our networks' names."""
    return {f"{part}.{name}": tensor.clone() if copied else tensor for part, found in parts.items()
            for name, tensor in found.state_dict().items() if not tensor.is_meta}


if __name__ == "__main__":
    answering.serve(answer)
