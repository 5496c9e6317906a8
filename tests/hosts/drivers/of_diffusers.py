"""diffusers, which loads with peft: `load_lora_weights`, `fuse_lora`, `unload_lora_weights`. See answering.py."""

import answering

answering.folder()

import logging  # noqa: E402
import warnings  # noqa: E402
from functools import cache  # noqa: E402
from importlib.metadata import version  # noqa: E402

import diffusers  # noqa: E402
import torch  # noqa: E402

LOG = answering.Log()
diffusers.utils.logging.enable_propagation()
diffusers.utils.logging.set_verbosity_warning()
logging.getLogger().addHandler(LOG)


@cache
def pipeline(folder, dtype):
    """The base, its networks by name, and their tensors as they are before."""
    found = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype),
                                                        local_files_only=True)
    parts = {name: part for name, part in found.components.items()
             if name in ("unet", "transformer") or name.startswith("text_encoder") and part is not None}
    return found, parts, state(parts)


def answer(request):
    """Load and fuse one file, and put everything back."""
    found, parts, before = pipeline(request["folder"], request["dtype"])
    LOG.taken()
    try:
        with warnings.catch_warnings(record=True) as said:
            found.load_lora_weights(request["file"])
            # By itself FLUX's pipeline fuses the transformer alone, though the text encoder's part works unfused.
            found.fuse_lora([name for name in found._lora_loadable_modules if name in parts],
                            lora_scale=request["strength"])
        found.unload_lora_weights()
        answering.changed(before, state(parts), request["out"])
    finally:
        found.unload_lora_weights()
        answering.restore(before, state(parts, copied=False))
    lines = LOG.taken() + [str(one.message) for one in said if "peft" in str(one.message).lower()]
    return {"version": f"{version('diffusers')}, peft {version('peft')}", "errors": lines}


def state(parts, copied=True):
    """All tensors by our networks' names."""
    return {f"{part}.{name}": tensor.detach().clone() if copied else tensor for part, found in parts.items()
            for name, tensor in found.state_dict().items()}


if __name__ == "__main__":
    answering.serve(answer)
