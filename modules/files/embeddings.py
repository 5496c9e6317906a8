"""Files of embeddings (textual inversion) of other programs, and embeddings inside of adapter files: one token's
vectors for each text encoder.

    emb_params                          A1111 and kohya, of a model with one text encoder; OneTrainer: emp_params
    clip_l, clip_g, t5 (or t5xxl)       ComfyUI, A1111 and OneTrainer, of a model with several
    <token>                             diffusers, of one text encoder
    text_encoders_0, text_encoders_1    diffusers' training scripts
    bundle_emb.<token>.<any of these>   OneTrainer, inside of an adapter file
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from modules.files import kinds, opening

BUNDLE = "bundle_emb."
ALIASES = {"t5xxl": "t5", "clip_h": "clip_l"}
"""Other names of a text encoder's vectors: ComfyUI's for T5, and for the only one of Stable Diffusion 2."""


def key_in_bundle(token: str, key: str) -> str:
    """OneTrainer's key of a token's vectors."""
    return f"{BUNDLE}{token}.{key}"


def read(path: Path, token: str, wanted: Sequence[str]) -> dict[str, Tensor]:
    """The vectors `(n, dim)` of `token` for each of the `wanted` text encoders (clip_l, clip_g, t5, in the model's
    order). Raises ValueError with one sentence for a file without them."""
    tensors = opening.read(path).tensors
    bundled = {key.removeprefix(BUNDLE): tensor for key, tensor in tensors.items() if key.startswith(BUNDLE)}
    if bundled:
        tensors = _of_token(path, token, bundled)
    elif kinds.grouped(tensors)[0]:
        raise ValueError(f"{path} is an adapter file without embeddings; give one that has them")
    if output := [key for key in tensors if key.endswith("_out")]:
        raise ValueError(f"{path}: {output[0]} is for the output of a text encoder, which no other program reads; "
                         "train it without output embedding")
    found = {_encoder(key, wanted): tensor for key, tensor in tensors.items()}
    if len(tensors) == 1 and len(wanted) == 1:
        found = {wanted[0]: next(iter(tensors.values()))}
    lacking = [key for key in wanted if key not in found]
    if lacking:
        there = ", ".join(sorted(tensors)[:4])
        raise ValueError(f"{path} has no vectors for {' and '.join(lacking)}, but {there}; it is of another model, or "
                         "no embedding")
    return {key: found[key].reshape(-1, found[key].shape[-1]) for key in wanted}


def _of_token(path: Path, token: str, bundled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of one token in a bundle, by the rest of the key."""
    own = {key.removeprefix(f"{token}."): tensor for key, tensor in bundled.items() if key.startswith(f"{token}.")}
    if not own:
        there = sorted({key.rpartition(".")[0] for key in bundled})
        raise ValueError(f"{path} has no embedding of {token!r}; it has {', '.join(there[:4])}")
    return own


def _encoder(key: str, wanted: Sequence[str]) -> str:
    """The text encoder that a key is for."""
    if numbered := re.fullmatch(r"text_encoders_(\d)", key):
        return wanted[int(numbered[1])] if int(numbered[1]) < len(wanted) else key
    return ALIASES.get(key, key)
