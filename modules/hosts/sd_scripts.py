"""sd-scripts: `create_network_from_weights` of its LoRA modules, then `merge_to`. Run: February 2026.

It reads low-rank pairs only: a magnitude with one is ignored, other kinds are ignored without a message. It searches
for layers inside certain classes of modules only, and never adapts layers outside of them.
"""

import re
from collections.abc import Collection

from torch import Tensor

from modules.files import keys, spellings
from modules.hosts import How, is_transformer
from modules.hosts.key_maps.loading import KNOWN, NO_FAMILY
from modules.hosts.parts import arithmetic, usual
from modules.hosts.parts.arithmetic import Unread

NAMES = keys.KOHYA
KINDS = ("linear", "conv")
WAYS = usual.WAYS
fitted = usual.fitted
others = usual.others
own = usual.own
WORDS = "sd-scripts"

PAIR = (NAMES.up, NAMES.down, NAMES.alpha)

OUTSIDE = re.compile(
    r"lora_unet_(conv_in|conv_out|(time|add)_embedding_linear_\d"  # the UNet, with diffusers' paths
    r"|input_blocks_0_0|out_2|time_embed_\d|label_emb_0_\d"  # and with the original checkpoint's
    r"|final_layer_.*)"  # FLUX
    r"|lora_te\d?_text_projection|lora_te3_(?!encoder_block).*"
)
"""Names of layers outside of the module classes that it searches."""


def notes(forms: Collection[str]) -> list[str]:
    """The exporter reports what it ignores, by layer."""
    return []


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Only its own names."""
    if family not in ("", *KNOWN):
        return NO_FAMILY
    if spelling in (spellings.KOHYA_ORIGINAL, spellings.KOHYA_TEXT):
        return ""
    if spelling == spellings.KOHYA_PATH and not is_transformer(family):
        return ""
    if spelling == spellings.KOHYA_OFT:
        return "its own OFT (networks.oft) reads them, not its LoRA"
    return "it does not recognize such names"


def unfound(family: str, names: Collection[str]) -> dict[str, str]:
    """Those of these names, all in kohya's spelling, that it does not find, and why."""
    if family not in KNOWN:
        return dict.fromkeys(names, NO_FAMILY)
    found = [name for name in names if OUTSIDE.fullmatch(name)]
    if family == "sd3":  # whose last layer it lists by name
        found = [name for name in found if "final_layer" not in name]
    return dict.fromkeys(found, "it never adapts them")


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Never read."""
    return None


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """The pair, without its magnitude."""
    if not {NAMES.up, NAMES.down} <= tensors.keys() or keys.MIDDLE in tensors:
        raise Unread("sd-scripts reads low-rank pairs only")
    delta = arithmetic.low_rank(W, {suffix: tensors[suffix] for suffix in PAIR[:2]}, arithmetic.alpha_of(tensors))
    return W + strength * delta.scale * delta.matrix
