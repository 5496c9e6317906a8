"""Files in kohya's names, for three programs at once: A1111, Forge and sd-scripts. Not a program, but a value of
export.host.

`effect` is the common result of A1111 (both generations) and Forge, and `Unread` where they differ: so the exporter
writes what is right in both. sd-scripts reads so little that files are not fitted to it: it is `apart`, and the
exporter reports what it does with a file. For a family that A1111 does not support only Forge counts.
"""

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor

from modules.files import keys, spellings
from modules.hosts import How, Member, a1111, forge, is_transformer, sd_scripts
from modules.hosts.parts import usual
from modules.hosts.parts.arithmetic import Unread

NAMES = keys.KOHYA
KINDS = ("linear", "conv")
WAYS = usual.WAYS
fitted = usual.fitted
others = usual.others
own = usual.own
PROGRAMS = tuple(cast(Member, program) for program in (a1111, forge, sd_scripts))

ALIKE = 1e3
"""Weights that differ by less than this many rounding units of the largest count as equal: Forge adds one to norms."""


def notes(forms: Collection[str]) -> list[str]:
    """Which of the programs read the file, by form. The exporter reports the layers that one of them loses
    (`unfound`)."""
    found = []
    if any("input magnitude" in form for form in forms):
        found.append("A1111 since 1.9, Forge and ComfyUI read the input magnitudes exactly; LyCORIS rejects such a "
                     "file; older versions of A1111 and sd-scripts ignore the magnitudes")
    if any("output magnitude" in form for form in forms):
        found.append("Forge and the current ComfyUI read the output magnitudes exactly; sd-scripts ignores them")
    if any("full difference" in form for form in forms):
        found.append("A1111, Forge and ComfyUI read the full differences, which a file for all of them has in place "
                     "of what A1111 cannot read, such as output magnitudes and rotations; sd-scripts ignores them. "
                     "Forge also reads the smaller files of export.host comfyui")
    return found


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Which of the programs do not recognize such names."""
    if spelling == spellings.KOHYA_OFT:
        return "only sd-scripts itself reads them"
    if spelling in (spellings.GENERIC, spellings.BARE, spellings.PEFT_TEXT):
        return "A1111 and sd-scripts do not recognize such names"
    if spelling == spellings.PEFT:
        if family == "sd3":
            return "they do not recognize such names"
        return "only Forge recognizes such names, and only for Flux"
    if spelling in (spellings.LEGACY, spellings.LYCORIS):
        return "A1111 and sd-scripts do not recognize such names; Forge does"
    if spelling == spellings.KOHYA_PATH and is_transformer(family):
        return "they do not recognize these names for this model family"
    return ""


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """As A1111, which reads less than Forge."""
    return a1111.bias_change(tensors, strength)


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """What the programs compute, if all compute the same. Raises `Unread`, naming the programs, otherwise."""
    (name, first), *others = _weights(W, tensors, strength, how)
    allowed = ALIKE * torch.finfo(W.dtype).eps * first.abs().max()
    for other, weight in others:
        if not (weight - first).abs().max() <= allowed:
            raise Unread(f"{name} and {other} compute different weights from it")
    return first


def _weights(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> list[tuple[str, Tensor]]:
    """The weight in each program, in words."""
    found = [(forge.WORDS, forge.effect(W, tensors, strength, how))]
    if a1111.has(how.family):
        readers = a1111.generations(how) if NAMES.magnitude in tensors else [(a1111.WORDS, how)]
        found += [(words, a1111.effect(W, tensors, strength, reader)) for words, reader in readers]
    return found


def unfound(family: str, layers: Mapping[str, str]) -> list[tuple[str, str, list[str]]]:
    """By program and reason: those of the `layers` (full name by the file's) whose names it does not find."""
    found = []
    for program in PROGRAMS:
        reasons: dict[str, list[str]] = {}
        for key, reason in program.unfound(family, layers).items():
            reasons.setdefault(reason, []).append(layers[key])
        found += [(program.WORDS, reason, names) for reason, names in reasons.items()]
    return found


def apart() -> tuple[Member, ...]:
    """The programs that `effect` does not include."""
    return (cast(Member, sd_scripts),)
