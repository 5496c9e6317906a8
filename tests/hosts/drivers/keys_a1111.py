"""A1111: which keys of a file its extension takes. See keys_comfyui.py."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import a1111
import answering
import torch


@cache
def model(family, layers):
    """A1111's `shared.sd_model` in full size, without weights."""
    parts = {}
    for _, network, path, original, shape in json.loads(Path(layers).read_text(encoding="utf-8")):
        is_second = family == "sdxl" and network == "text_encoder_2"
        name = f"{path}.weight" if network.startswith("text") and not is_second else original
        size = [3 * shape[0], *shape[1:]] if name.endswith(("in_proj_weight", "qkv.weight")) else shape
        parts.setdefault(network, {})[name] = torch.empty(size, device="meta")
    trees = {part: a1111.tree(found) for part, found in parts.items()}
    denoiser = next(part for part in trees if not part.startswith("text"))
    found = SimpleNamespace(is_sdxl=family == "sdxl", model=a1111.under("diffusion_model", trees[denoiser]))
    if family == "sdxl":
        first, second = a1111.under("transformer", trees["text_encoder"]), a1111.under("model", trees["text_encoder_2"])
        found.conditioner = SimpleNamespace(embedders=[SimpleNamespace(wrapped=first), SimpleNamespace(wrapped=second)])
        return found
    if family == "sd15":
        found.cond_stage_model = SimpleNamespace(wrapped=a1111.under("transformer", trees["text_encoder"]))
        return found
    found.cond_stage_model = torch.nn.Module()
    for name, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"), ("t5xxl", "text_encoder_3")):
        found.cond_stage_model.add_module(name, a1111.under("transformer", trees[part]))
    from modules.models.sd3.sd3_model import SD3Inferencer

    deep = SimpleNamespace(model=SimpleNamespace(depth=len(trees[denoiser].joint_blocks._modules)))
    found.diffusers_weight_mapping = lambda: SD3Inferencer.diffusers_weight_mapping(deep)
    return found


def answer(request):
    """Load one file."""
    absent = a1111.missing(request["family"], "float32")
    if absent:
        return {"version": a1111.version(), "absent": absent, "read": []}
    a1111.devices.dtype = torch.float32
    a1111.shared.sd_model = model(request["family"], request["layers"])
    a1111.networks.assign_network_names_to_compvis_modules(a1111.shared.sd_model)
    a1111.FILE.clear()
    a1111.USED.clear()
    net = a1111.networks.load_network("file", SimpleNamespace(filename=request["file"], name="file"))
    embeddings = {key for key in a1111.FILE if key.split(".")[0] == "bundle_emb" and net.bundle_embeddings}
    read = {key for key, tensor in a1111.FILE.items() if id(tensor) in a1111.USED}
    return {"version": a1111.version(), "read": sorted(read | embeddings)}


if __name__ == "__main__":
    answering.serve(answer)
