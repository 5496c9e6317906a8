"""sd-scripts: which keys of a file `create_network_from_weights` and `merge_to` take. See keys_comfyui.py."""

from functools import cache
from pathlib import Path

import answering
import sd_scripts
import torch
import transformers
from networks import oft, oft_flux
from safetensors.torch import load_file

TARGETS = tuple(oft.OFTNetwork.UNET_TARGET_REPLACE_MODULE_ATTN_ONLY), tuple(
    oft.OFTNetwork.UNET_TARGET_REPLACE_MODULE_ALL_LINEAR)
"""It adds to these lists, so that a second file of one process would get the first one's layers too."""


@cache
def model(family, folder):
    """Its networks in full size, without weights."""
    network, module = sd_scripts.denoiser(family)
    texts = [torch.nn.Module()] if family == "chroma" else []  # it has a stand-in for the CLIP
    with torch.device("meta"):
        for part in sd_scripts.ENCODERS:
            if (Path(folder) / part).exists():
                config = transformers.AutoConfig.from_pretrained(f"{folder}/{part}")
                found = getattr(transformers, config.architectures[0])(config)
                is_bare = type(found).__name__ == "CLIPTextModel" and "text_model" not in found._modules
                texts.append(sd_scripts.Clip(found) if is_bare else found)
    return network, texts, module


def answer(request):
    """Load one file. Merging asks for every layer's tensors, so it is done as well, on no device."""
    network, texts, module = model(request["family"], request["folder"])
    file = load_file(request["file"])
    if next((key for key in file if key.startswith(("lora", "oft"))), "").startswith("oft"):
        return rotations(file, network, oft_flux if request["family"] in ("flux", "chroma") else oft)
    given = texts if len(texts) > 1 else texts[0]
    renamed = dict(file)  # it may rename keys
    found, weights = module.create_network_from_weights(1.0, "", None, given, network, weights_sd=renamed,
                                                        for_inference=True)
    found.merge_to(given, network, weights, torch.float32, torch.device("meta"))
    taken = {f"{one.lora_name}.{key}" for one in found.text_encoder_loras + found.unet_loras
             for key in ("lora_up.weight", "lora_down.weight", "alpha")}
    ids = {id(tensor) for key, tensor in weights.items() if key in taken}
    return {"read": sorted(key for key, tensor in file.items() if id(tensor) in ids)}


def rotations(file, network, module):
    """The same by the module for names that begin with `oft`, as flux_minimal_inference.py chooses it. Its layers are
    loaded as `merge_to` loads them, and their weights, which are on no device, have to fit."""
    for kept, name in zip(TARGETS, ("ATTN_ONLY", "ALL_LINEAR"), strict=True):
        setattr(oft.OFTNetwork, f"UNET_TARGET_REPLACE_MODULE_{name}", list(kept))
    found, weights = module.create_network_from_weights(1.0, "", None, None, network, weights_sd=dict(file),
                                                        for_inference=True)
    taken = set()
    for one in found.unet_ofts:
        own = {key[len(one.oft_name) + 1:]: key for key in weights if key.startswith(one.oft_name)}
        unknown = one.load_state_dict({name: weights[key] for name, key in own.items()}, False).unexpected_keys
        taken |= {key for name, key in own.items() if name not in unknown}
        one.org_module[0].weight.reshape(one.num_blocks, one.block_size, -1)
    return {"read": sorted(taken)}


if __name__ == "__main__":
    answering.serve(answer)
