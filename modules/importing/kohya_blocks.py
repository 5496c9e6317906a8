"""sd-scripts' learning rates and ranks of single blocks of a UNet, as rules and excluded layers.

`networks/lora.py` (`get_block_lr_weight`, `get_block_dims_and_alphas`, `get_block_index`) at commit 48d368fa.
"""

import math
from typing import Any

from modules.importing.ledger import Ledger

ARGS = "network_args."

SIZES = {"sd15": (12, 1, 4, (0, 1, 2), (1, 2, 3)), "sdxl": (9, 3, 3, (1, 2), (0, 1))}
"""By family: numbers for the way down, as for the way up, and for the middle; blocks of a way; which of the blocks down
and up have attention."""

CURVES = {
    "cosine": lambda part: math.sin(math.pi * (1 - part) / 2),
    "sine": lambda part: math.sin(math.pi * part / 2),
    "linear": lambda part: part,
    "reverse_linear": lambda part: 1 - part,
    "zeros": lambda part: 0.0,
}
"""Names for weights along a way, of the part of it that lies behind."""


def convert(ledger: Ledger, family: str, convolutions: bool) -> None:
    """Write rules and excluded layers; blocks with a weight or rank of 0 are not trained."""
    if family not in SIZES:
        return
    blocks = _blocks(family, convolutions)
    _weights(ledger, family, blocks)
    _ranks(ledger, blocks)


def _blocks(family: str, convolutions: bool) -> list[list[str]]:
    """Patterns of each block in their order: down, middle, up. Only of layers that are there and adapted."""
    ways, middles, count, down, up = SIZES[family]
    found: list[list[str]] = [[]]  # the first convolution, which is not adapted
    for n in range(ways - 1):
        i, j = divmod(n, 3)
        found.append(_parts("down", i, j, i in down and j < 2, convolutions and j < 2, convolutions and i < count - 1))
    middle = ["unet.mid_block.attentions.0.*"]
    resnets = [f"unet.mid_block.resnets.{j}.*" for j in (0, 1)] if convolutions else []
    found += [[*resnets[:1], *middle, *resnets[1:]]] if middles == 1 else [resnets[:1], middle, resnets[1:]]
    for n in range(ways):
        i, j = divmod(n, 3)
        found.append(_parts("up", i, j, i in up, convolutions, convolutions and i < count - 1))
    return found


def _parts(way: str, i: int, j: int, attention: bool, resnet: bool, sampler: bool) -> list[str]:
    block = f"unet.{way}_blocks.{i}"
    found = [f"{block}.attentions.{j}.*"] if attention else []
    found += [f"{block}.resnets.{j}.*"] if resnet else []
    return [*found, f"{block}.{way}samplers.0.*"] if sampler and j == 2 else found


def _weights(ledger: Ledger, family: str, blocks: list[list[str]]) -> None:
    """Learning rates of blocks, as parts of the whole; what is not given is 1."""
    ways, middles, *_ = SIZES[family]
    threshold, start = ledger.maybe(f"{ARGS}block_lr_zero_threshold") or 0.0, 0
    for name, count in (("down", ways), ("mid", middles), ("up", ways)):
        key = f"{ARGS}{name}_lr_weight"
        places, start = blocks[start : start + count], start + count
        if not ledger.text(key):
            continue
        rules, out = [], []
        for weight, patterns in zip(_numbers(ledger, key, count), places, strict=True):
            if weight <= threshold:
                out += patterns
            elif weight != 1:
                rules += [{"match": pattern, "lr_scale": min(weight, 100.0)} for pattern in patterns]
        _write(ledger, key, rules, out)


def _numbers(ledger: Ledger, key: str, count: int) -> list[float]:
    """`0,0.5,1` or a name such as `cosine+0.1`; what is missing is 1, and nothing between commas 0. Raises
    ValueError."""
    text = ledger.text(key).replace(" ", "")
    name, _, base = text.partition("+")
    if name in CURVES:
        return [CURVES[name](n / max(1, count - 1)) + float(base or 0) for n in range(count)]
    try:
        found = [float(part) if part else 0.0 for part in text.split(",")]
    except ValueError:
        raise ledger.wrong(key, "a list of numbers") from None
    return [*found, *[1.0] * count][:count]


def _ranks(ledger: Ledger, blocks: list[list[str]]) -> None:
    """Ranks of blocks; a first and a last number may stand for layers outside of them."""
    key = f"{ARGS}block_dims"
    if not ledger.text(key):
        return
    try:
        ranks = [int(part) for part in ledger.text(key).split(",")]
    except ValueError:
        raise ledger.wrong(key, "a list of whole numbers") from None
    outside = len(ranks) - len(blocks)
    if outside not in (0, 2):
        raise ledger.wrong(key, f"a list of {len(blocks)} ranks")
    rules, out = [], []
    for rank, patterns in zip(ranks[outside // 2 :], blocks, strict=False):
        if rank <= 0:
            out += patterns
        elif rank != ledger.values.get("adapter.rank"):
            rules += [{"match": pattern, "rank": min(rank, 4096)} for pattern in patterns]
    _write(ledger, key, rules, out)
    if ledger.text(f"{ARGS}block_alphas"):
        ledger.change(f"{ARGS}block_alphas", "Alpha is one number for all blocks here, network_alpha.")


def _write(ledger: Ledger, key: str, rules: list[dict[str, Any]], out: list[str]) -> None:
    """Add rules and excluded layers to those that are there."""
    have = ledger.values.get("targets.exclude", [])
    new = [pattern for pattern in out if pattern not in have]
    ledger.to(key, "targets.rules", [*ledger.values.get("targets.rules", []), *rules])
    if new:
        ledger.to(key, "targets.exclude", [*have, *new])
    gone = ledger.values.get("targets.exclude", [])
    kept = [rule for rule in ledger.values["targets.rules"] if rule["match"] not in gone]
    ledger.set({"targets.rules": kept}, key)
