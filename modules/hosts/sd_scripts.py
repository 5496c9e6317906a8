"""sd-scripts: `create_network_from_weights` of its LoRA modules, then `merge_to`. Run: February 2026.

It reads low-rank pairs and nothing else: a magnitude beside one is ignored, of other kinds nothing is said. It looks
for layers inside some classes of modules only, and what is outside of them it never adapts.
"""

import re
from collections.abc import Collection

from torch import Tensor

from modules.files import keys, spellings
from modules.hosts import How, is_transformer
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
    r"|input_blocks_0_0|out_2|time_embed_\d|label_emb_0_\d"  # and with the original ones
    r"|final_layer_.*)"  # FLUX
    r"|lora_te\d?_text_projection|lora_te3_(?!encoder_block).*"
)
"""Names of layers that are in no module of the classes that it searches."""


def notes(forms: Collection[str]) -> list[str]:
    """The exporter tells what it leaves out, by layer."""
    return []


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Its own names alone."""
    if spelling in (spellings.KOHYA_ORIGINAL, spellings.KOHYA_TEXT):
        return ""
    if spelling == spellings.KOHYA_PATH and not is_transformer(family):
        return ""
    if spelling == spellings.KOHYA_OFT:
        return "its own OFT (networks.oft) reads them, not its LoRA"
    return "it does not recognize such names"


def unfound(family: str, names: Collection[str]) -> dict[str, str]:
    """Those of these names, all in kohya's spelling, under which it finds no layer, and why."""
    found = [name for name in names if OUTSIDE.fullmatch(name)]
    if family == "sd3":  # whose last layer it has by name
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
