"""What keys are that belong to no adapter read here, and what to do about them: in words, by their names."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from modules.files import kinds

EXTRAS = (
    (r"bundle_emb\.", "an embedding that OneTrainer put into the file"),
    (r"(emb_params|string_to_param|(clip_[lgh]|t5(xxl)?)$)", "an embedding (textual inversion)"),
    (r"_aux\.", "a note of a slider's trainer"),
    (r".*\.hra_u\b", "an HRA adapter of peft"),
    (r".*\.boft_[RS]\b", "a BOFT adapter of peft"),
    (r".*\.fourierft_spectrum\b", "a FourierFT adapter of peft"),
    (r".*\.(randlora|pvera|road|c3a|miss|bone|shira|waveft|vblora|gralora|hira|psoft|tinylora|osf|lily|frod|glora)_",
     "an adapter of peft of a kind that is not read here"),
    (r".*token_adapter\.", "rows of an embedding that peft trained (trainable tokens)"),
    (r".*\.(rank_mask|scalar)$", "a mask or factor of a trainer that is not known here"),
    (r".*\.original_module\.", "peft's copy of the base's own layer"),
)
"""`(pattern at the beginning of a key, what it is)`, for keys beside others or alone."""

MIXED = r"xlora_|(.*\.)?internal_xlora_"
"""The beginning of keys of X-LoRA's classifier."""

WHOLE_FILES = (
    (r"(emb_params|string_to_param|clip_[lg]$|t5xxl$)",
     "an embedding (textual inversion), which changes no layer; programs load it as an embedding"),
    (r"lllite_", "a ControlNet-LLLite, which is a network beside the model; programs load it as a control network"),
    (r"lora_controlnet$", "a Control-LoRA of Stability AI, from which a control network is made; programs load it as "
     "a control network"),
    (r"(control_model|controlnet_\w+|input_hint_block|zero_convs)\b",
     "a ControlNet, which is a network beside the model; programs load it as a control network"),
    (r"(image_proj|ip_adapter)\b|.*processor\.to_[kv]_ip\b",
     "an IP-Adapter, which is a network beside the model; programs load it as one"),
    (r"(first_stage_model|vae)\.|(encoder|decoder)\.conv_in\.", "a VAE, or a model with one; give it as a base, "
     "or choose an adapter"),
    (r"(model\.diffusion_model|conditioner|cond_stage_model|text_model)\.|(conv_in|x_embedder|img_in|pos_embed\.proj)\."
     r"(weight|bias)$|(.*_)?(blocks|layers)\.\d+\.(.+\.)?(weight|bias|scale)$",
     "a whole model or a part of one, no adapter; give it as a base, or choose an adapter"),
)
"""The same for files in which is no adapter, with what to do; the first that fits counts."""

SHOWN = 3


def refuse(path: Path, keys: Collection[str]) -> None:
    """ValueError for a file that cannot be read as one adapter, whatever the model: several in one, or none at all."""
    names = kinds.adapters(keys)
    if len(names) > 1:
        raise ValueError(f"{path} holds several adapters ({' and '.join(names[:SHOWN])}), each under its own name in "
                         "the keys; save each in a file of its own, as peft's save_pretrained does")
    layers, unknown = kinds.grouped(keys)
    if any(re.match(MIXED, key) for key in keys):
        raise ValueError(f"{path} is an X-LoRA, which mixes several LoRAs anew for each token, so that it is no fixed "
                         "change of the model; use one of its LoRAs alone")
    if layers:
        return
    for pattern, what in WHOLE_FILES:
        if any(re.match(pattern, key) for key in unknown):
            raise ValueError(f"{path} is {what}")
    if any(re.match(pattern, key) for key in unknown for pattern, _ in EXTRAS):
        raise ValueError(f"{path} has nothing that is read here: {'; '.join(sentences(unknown))}")
    raise ValueError(f"{path} is no adapter: no known kind has keys like {listed(unknown)}")


def sentences(keys: Iterable[str]) -> list[str]:
    """What these keys are, one sentence for each sort."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(next((what for pattern, what in EXTRAS if re.match(pattern, key)), ""), []).append(key)
    return [f"{listed(several)}: {what or 'no known kind of adapter has such keys'}" for what, several in found.items()]


def listed(found: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
