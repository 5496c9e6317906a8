"""Describes keys of unsupported adapters and other files, and what to do about them, by their names."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from modules.files import kinds

EXTRAS = (
    (r"bundle_emb\.", "an embedding that OneTrainer put into the file"),
    (r"(emb_params|string_to_param|(clip_[lgh]|t5(xxl)?)$)", "an embedding (textual inversion)"),
    (r"_aux\.", "an auxiliary value of a slider trainer"),
    (r".*\.hra_u\b", "a peft HRA adapter"),
    (r".*\.boft_[RS]\b", "a peft BOFT adapter"),
    (r".*\.fourierft_spectrum\b", "a peft FourierFT adapter"),
    (r".*\.(randlora|pvera|road|c3a|miss|bone|shira|waveft|vblora|gralora|hira|psoft|tinylora|osf|lily|frod|glora)_",
     "a peft adapter of an unsupported kind"),
    (r".*token_adapter\.", "token embeddings trained with peft (trainable tokens)"),
    (r".*\.(rank_mask|scalar)$", "a mask or factor of an unknown trainer"),
    (r".*\.original_module\.", "peft's copy of the base layer"),
)
"""`(pattern at the beginning of a key, what it is)`, for keys beside others or alone."""

MIXED = r"xlora_|(.*\.)?internal_xlora_"
"""The beginning of keys of X-LoRA's classifier."""

WHOLE_FILES = (
    (r"(emb_params|string_to_param|clip_[lg]$|t5xxl$)",
     "an embedding (textual inversion), which changes no layer; programs load it as an embedding"),
    (r"lllite_", "a ControlNet-LLLite, a separate network beside the model; programs load it as a ControlNet"),
    (r"lora_controlnet$", "Stability AI's Control-LoRA, from which a ControlNet is built; programs load it as a "
                          "ControlNet"),
    (r"(control_model|controlnet_\w+|input_hint_block|zero_convs)\b",
     "a ControlNet, a separate network beside the model; programs load it as a ControlNet"),
    (r"(image_proj|ip_adapter)\b|.*processor\.to_[kv]_ip\b",
     "an IP-Adapter, a separate network beside the model; programs load it as an IP-Adapter"),
    (r"(first_stage_model|vae)\.|(encoder|decoder)\.conv_in\.", "a VAE, or a model with one; give it as a base, "
     "or choose an adapter"),
    (r"(model\.diffusion_model|conditioner|cond_stage_model|text_model)\.|(conv_in|x_embedder|img_in|pos_embed\.proj)\."
     r"(weight|bias)$|(.*_)?(blocks|layers)\.\d+\.(.+\.)?(weight|bias|scale)$",
     "a base model or a part of one, not an adapter; give it as a base, or choose an adapter"),
)
"""The same for files without an adapter, with what to do; the first match counts."""

SHOWN = 3


def refuse(path: Path, keys: Collection[str]) -> None:
    """ValueError for a file that is not exactly one adapter, for any model."""
    names = kinds.adapters(keys)
    if len(names) > 1:
        raise ValueError(f"{path} has several adapters ({' and '.join(names[:SHOWN])}), each under its own name in the "
                         "keys; save each to a separate file, as peft's save_pretrained does")
    layers, unknown = kinds.grouped(keys)
    if any(re.match(MIXED, key) for key in keys):
        raise ValueError(f"{path} is an X-LoRA, which mixes several LoRAs for each token, so it has no fixed change of "
                         "the weights; use one of its LoRAs")
    if layers:
        return
    for pattern, what in WHOLE_FILES:
        if any(re.match(pattern, key) for key in unknown):
            raise ValueError(f"{path} is {what}")
    if any(re.match(pattern, key) for key in unknown for pattern, _ in EXTRAS):
        raise ValueError(f"{path} has no supported adapter: {'; '.join(sentences(unknown))}")
    raise ValueError(f"{path} is not an adapter: no known format has keys like {listed(unknown)}")


def sentences(keys: Iterable[str]) -> list[str]:
    """What these keys are, one sentence per kind."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(next((what for pattern, what in EXTRAS if re.match(pattern, key)), ""), []).append(key)
    return [f"{listed(several)}: {what or 'no known adapter format has such keys'}" for what, several in found.items()]


def listed(found: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
