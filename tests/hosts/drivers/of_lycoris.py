"""LyCORIS: `create_lycoris_from_weights` and `merge_to`, one network at a time. See answering.py."""

import answering

answering.folder()

import logging  # noqa: E402
from functools import cache  # noqa: E402
from importlib.metadata import version  # noqa: E402

import diffusers  # noqa: E402
import lycoris  # noqa: E402
import torch  # noqa: E402
from lycoris.modules import get_module  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

LOG = answering.Log()
for name in ("", "LyCORIS"):
    logging.getLogger(name).addHandler(LOG)
PREFIXES = {
    "sd15": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sd3": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux": {"text_encoder": "lora_te1"},
}
"""What users tell LyCORIS of text encoders (its option `lora_prefix`); denoisers have its own prefix."""


class Clip(torch.nn.Module):
    """A text encoder whose layers are called as transformers 4 calls them."""

    def __init__(self, model):
        super().__init__()
        self.text_model = model


@cache
def base(folder, dtype):
    """The base's networks by name, and their tensors as they are before."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype),
                                                           local_files_only=True)
    parts = {name: part for name, part in pipeline.components.items()
             if name in ("unet", "transformer") or name.startswith("text_encoder") and part is not None}
    return parts, state(parts)


def answer(request):
    """Load and merge one file, and put everything back."""
    parts, before = base(request["folder"], request["dtype"])
    LOG.taken()
    try:
        unread = merged(request, parts)
        answering.changed(before, state(parts), request["out"])
    finally:
        answering.restore(before, state(parts, copied=False))
    return {"version": version("lycoris-lora"), "unread": unread, "errors": LOG.taken()}


def merged(request, parts):
    """Merge, and give the keys that were not used."""
    weights, taken = load_file(request["file"]), set()
    for name, part in parts.items():
        prefix = PREFIXES[request["family"]].get(name, "" if name.startswith("text") else "lycoris")
        if not prefix:
            continue
        is_bare = prefix != "lycoris" and not any(key.startswith("text_model.") for key in part.state_dict())
        lycoris.LycorisNetwork.LORA_PREFIX = prefix
        with torch.no_grad():
            own = {key: tensor for key, tensor in weights.items() if key.startswith(prefix + "_")}
            if not own:
                continue
            network, _ = lycoris.create_lycoris_from_weights(1.0, "", Clip(part) if is_bare else part, own)
            network.merge_to(request["strength"])
        for one in network.loras:
            kind, _ = get_module(weights, one.lora_name)
            taken |= {f"{one.lora_name}.{suffix}" for suffix in type(one).weight_list} if kind else set()
    return sorted(set(weights) - taken)


def layers(request):
    """Apply a file to single layers by their names: the weights, and what was said of each."""
    weights, file = load_file(request["base"]), load_file(request["file"])
    lycoris.LycorisNetwork.LORA_PREFIX = "lycoris"
    after, said = {}, {}
    for name, weight in weights.items():
        layer = torch.nn.Conv2d(*weight.shape[1::-1], weight.shape[2], padding=weight.shape[2] // 2, bias=False) \
            if weight.dim() == 4 else torch.nn.Linear(*weight.shape[::-1], bias=False)
        layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        whole = torch.nn.Module()
        whole.add_module(name.removeprefix("lycoris_"), layer)
        own = {key: tensor for key, tensor in file.items() if key.startswith(f"{name}.")}
        try:
            with torch.no_grad():
                network, _ = lycoris.create_lycoris_from_weights(1.0, "", whole, own)
                network.merge_to(request["strength"])
            after[name] = layer.weight
        except Exception as error:  # what ends the loading of the file
            said[name] = f"{type(error).__name__}: {error}"
    answering.changed(weights, after, request["out"])
    return {"layers": said}


def state(parts, copied=True):
    """All tensors by our networks' names."""
    return {f"{part}.{name}": tensor.detach().clone() if copied else tensor for part, found in parts.items()
            for name, tensor in found.state_dict().items()}


if __name__ == "__main__":
    answering.serve(answer, layers)
