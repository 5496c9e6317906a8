"""What other programs' tensors mean: the kinds of adapters, distinguished by the ends of their keys.

A key is a layer's name and a suffix. Each kind has one module here with
  WORDS     its name for people,
  SUFFIXES  its suffixes and the part that each one is,
  MARKS     sets of parts; a layer that has all of one set is of this kind,
  shape     `(parts) -> (out, fan_in)` of the layer, None where unknown; ValueError if they disagree,
  rank      `(parts) -> int | None`,
  terms     `(parts, layer, W, about) -> Terms`: what the writer's forward pass computed, exactly; `W (out, fan_in)`.
The arithmetic is that of methods.md and export.md, section 2; every kind is tested against its writer's code.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files.kinds import (
    chosen_ranks,
    delora,
    gains,
    gimbal_node,
    glora,
    hadamard,
    input_rotation,
    kronecker,
    low_rank,
    magnitude,
    output_rotation,
    plain,
    shared_factors,
    sound,
    token_table,
)
from modules.files.writer import About

Parts = dict[str, Tensor]

KINDS: tuple[ModuleType, ...] = (
    low_rank, hadamard, kronecker, glora, delora, output_rotation, input_rotation, plain,
    chosen_ranks, token_table, shared_factors, gains, gimbal_node,
)
"""In ComfyUI's order of reading: where a layer has several, the last one counts."""

SHARED = {".alpha": "alpha", ".diff_b": "bias", ".b_norm": "bias", **magnitude.SUFFIXES}
"""Suffixes that go with several kinds."""

SUFFIXES: dict[str, str] = SHARED | shared_factors.SHARED | {
    suffix: part for kind in KINDS for suffix, part in kind.SUFFIXES.items()
}

STACKS = ("oft_blocks", "gimbal_turn_in", "gimbal_turn_out")
"""Parts that have more than two dimensions in linear layers too."""

BY_LENGTH = sorted(SUFFIXES, key=len, reverse=True)

BIASES = ("bias", "set_bias", "up_bias")
"""Parts that change the layer's bias: added, replacing it, added with the scale of the pair."""

NAMED = re.compile(r"(\.\w*(?:lora|oft|hada|lokr|ia3|vera)_\w+)\.([^.]+)((?:\.weight|\.bias)?)")
"""The end of a key with peft's adapter name, which is "default" unless set."""

WHOLE = re.compile(r"((?:\.modules_to_save\.[^.]+|\.base_layer)?\.(weight|bias))|(?<=_norm)(\.scale)")
"""The end of a key of a layer that is stored whole: with peft's `modules_to_save` and `bias`, or a norm of BFL's."""

LONGEST = 1000
"""An upper bound for the length of keys."""

WHOLE_PARTS = {"weight": "whole_weight", "bias": "whole_bias"}


@lru_cache(1 << 16)  # every tool calls it several times for each key of a file
def split(key: str) -> tuple[str, str, str] | None:
    """`(layer's name, suffix, part)` of a key, None if no kind knows the suffix. peft's first words are left out."""
    suffix = next((s for s in BY_LENGTH if key.endswith(s)), None)
    part = SUFFIXES[suffix] if suffix is not None else ""
    if suffix is None and (named := _at_end(NAMED, key)) and named[1] + named[3] in SUFFIXES:
        suffix, part = named[0], SUFFIXES[named[1] + named[3]]
    elif suffix is None and (whole := _at_end(WHOLE, key)):
        suffix, part = whole[0], WHOLE_PARTS[whole[2] or "weight"]
    if suffix is None or key == suffix:
        return None
    return key.removesuffix(suffix).removeprefix("base_model.model."), suffix, part


def _at_end(pattern: re.Pattern[str], key: str) -> re.Match[str] | None:
    """The match that ends where the key does, of those the one that begins first."""
    if len(key) > LONGEST:
        return None
    dots = [place for place, sign in enumerate(key) if sign == "."][-4:]
    return next((found for place in dots if (found := pattern.fullmatch(key, place))), None)


def adapters(keys: Iterable[str]) -> list[str]:
    """The names of peft's adapters in the keys."""
    found = {named[2] for key in keys if (named := _at_end(NAMED, key)) and named[1] + named[3] in SUFFIXES
             and named[0] not in SUFFIXES}
    return sorted(found)


def part_of(suffix: str) -> str:
    """The part that a suffix stands for, empty if no kind knows it."""
    found = split(f"x{suffix}")
    return found[2] if found else ""


def grouped(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Keys by layer's name and part, and those keys that no kind knows."""
    layers: dict[str, dict[str, str]] = {}
    unknown, whole, whole_parts = [], [], frozenset(WHOLE_PARTS.values())
    for key in keys:
        found = split(key)
        if found is not None and found[2] in whole_parts:
            whole.append((key, *found))
        elif found is None or found[2] in layers.get(found[0], {}):
            unknown.append(key)
        else:
            layers.setdefault(found[0], {})[found[2]] = key
    _share(layers)
    is_adapter = any(kind_of(parts) is not None or "on_input" in parts for parts in layers.values())
    for key, name, _, part in whole:
        own = layers.get(name, {})
        part = "gain" if "on_input" in own and part == "whole_weight" else part.replace("whole", "set")
        if not is_adapter or part in own:  # every model has keys like these
            unknown.append(key)
        else:
            layers.setdefault(name, {})[part] = key
    return layers, unknown


def _share(layers: dict[str, dict[str, str]]) -> None:
    """Give shared tensors to every layer that uses them."""
    shared = set(shared_factors.SHARED.values())
    owners = [name for name, parts in layers.items() if parts.keys() <= shared]
    found = {part: key for name in owners for part, key in layers.pop(name).items()}
    for parts in layers.values():
        if "vera_rows" in parts:
            parts |= {part: key for part, key in found.items() if part not in parts}


def kind_of(parts: Collection[str]) -> ModuleType | None:
    """The kind of a layer with these parts; None if they are incomplete."""
    whole = _whole(frozenset(parts))
    return whole[-1] if whole else None


@lru_cache(1 << 10)  # a file has a few kinds of layers, and thousands of each
def _whole(parts: frozenset[str]) -> tuple[ModuleType, ...]:
    """The kinds whose tensors are complete, in their order."""
    return tuple(kind for kind in KINDS if any(mark <= parts for mark in kind.MARKS))


def words(parts: Parts) -> str:
    """The kind of a layer in words, with magnitude and bias."""
    kind = kind_of(parts)
    if kind is None:
        return "bias alone" if has_bias(parts) else "incomplete"
    what = kind.words(parts) if kind in (output_rotation, gimbal_node) else kind.WORDS
    what = "norm" if kind is plain and is_norm(parts) else what
    what = magnitude.words(parts, what) + (" and bias" if has_bias(parts) else "")
    return f"{what}, and a LoRA for others" if has_fallback(parts) else what


def has_bias(parts: Collection[str]) -> bool:
    """Whether the layer's bias is changed by separate tensors."""
    return any(part in parts for part in BIASES)


def may_change_bias(parts: Collection[str]) -> bool:
    """Whether the layer's bias may be changed, by such tensors or by factors of the outputs."""
    return has_bias(parts) or "factors" in parts


def is_norm(parts: Parts) -> bool:
    """Whether the tensors are a norm's, as far as they show."""
    return any(parts[part].dim() == 1 for part in ("diff", "set_weight") if part in parts)


def has_fallback(parts: Collection[str]) -> bool:
    """Whether a LoRA is stored with tensors for a ComfyUI node, for users without the node."""
    return kind_of(parts) in (gimbal_node, input_rotation) and {"up", "down"} <= set(parts)


def shape(parts: Parts) -> tuple[int | None, int | None]:
    """`(out, fan_in)` as far as the tensors show it. Raises ValueError where they disagree or are incomplete."""
    kind = kind_of(parts)
    if kind is None and not has_bias(parts):
        raise ValueError(f"incomplete: it has only {', '.join(sorted(parts))}")
    sound.refuse_rests(parts, *_known(frozenset(parts)))
    sound.check(parts)
    if kind is None:
        return next(parts[part].numel() for part in BIASES if part in parts), None
    with sound.as_sentence():
        out, fan_in = kind.shape(parts)
    if kind is not input_rotation:  # has more than one meaning for these
        sound.check_magnitude(magnitude.axis(parts), parts.get("magnitude", parts.get("row_magnitude")), out, fan_in)
    return out or magnitude.outputs(parts), fan_in


@lru_cache(1 << 10)
def _known(parts: frozenset[str]) -> tuple[set[str], list[set[str]]]:
    """What a layer with these parts may have by its kind, and by other whole kinds beside it."""
    whole = [_parts_of(kind) for kind in _whole(parts)]
    return set(SHARED.values()) | {"set_bias"} | (whole[-1] if whole else set()), whole


def _parts_of(kind: ModuleType) -> set[str]:
    """All that a layer of this kind may have."""
    shared = shared_factors.SHARED.values() if kind is shared_factors else ()
    return set(kind.SUFFIXES.values()).union(*kind.MARKS, shared)


def sizes(parts: Parts, unknown: int) -> tuple[int, int]:
    """`(out, fan_in)` of some layer that the tensors fit, with `unknown` for what they do not show."""
    out, fan_in = shape(parts)
    kind = kind_of(parts)
    if fan_in is None and kind is input_rotation:  # one block for all
        fan_in = 2 * input_rotation.block_size(parts)
    if fan_in is None and kind is gimbal_node:
        fan_in = gimbal_node.channels(parts)
    if fan_in is None and magnitude.axis(parts) == "input":
        fan_in = parts["magnitude"].numel()
    if kind is gains:  # for a convolution they do not show which side they are for
        unknown = parts["gain" if "gain" in parts else "factors"].numel() if out is fan_in else unknown
    if kind is shared_factors:  # any number of inputs up to that of the shared matrix
        unknown = min(unknown, parts["vera_A"].shape[1])
    return out or unknown, fan_in or unknown


def is_pair(tensors: Collection[str]) -> bool:
    """Whether a layer's tensors, by part or suffix, are a low-rank pair with nothing but alpha, a core or a bias: the
    change of a row of the weight depends on that row, its row of `up`, and `down`."""
    parts = {SUFFIXES.get(name, name) for name in tensors}
    return kind_of(parts) is low_rank and parts <= {"up", "down", "mid", "alpha", "bias"}


def of_rows(tensors: Parts, start: int, stop: int) -> Parts:
    """A pair's tensors, by part or suffix, for some rows of the weight, without its bias."""
    parts = {name: SUFFIXES.get(name, name) for name in tensors}
    return {name: tensor[start:stop] if parts[name] == "up" else tensor
            for name, tensor in tensors.items() if parts[name] != "bias"}


def corner(parts: Parts, most: int) -> Parts:
    """The tensors of a smaller layer of the same kind: of a pair, with or without a magnitude, those of the first
    rows and channels, in numbers for which the layer is square only if it was. Other kinds and small tensors are
    unchanged."""
    if kind_of(parts) is not low_rank or not parts.keys() <= {"up", "down", "alpha", "magnitude", "bias"}:
        return parts
    rows, columns = len(parts["up"]), parts["down"].shape[1]
    first = most if rows > most else rows
    second = first if rows == columns else min(columns, most + 1 if columns > most else columns)
    if (first == second) != (rows == columns):
        return parts
    cut = {part: tensor[:first] if part in ("up", "bias") else tensor for part, tensor in parts.items()}
    cut["down"] = cut["down"][:, :second]
    along = magnitude.axis(parts)
    if along and "magnitude" in parts:
        given = parts["magnitude"]
        place = given.shape.index(max(given.shape)) if given.dim() else 0
        cut["magnitude"] = given.narrow(place, 0, first if along == "output" else second) if given.dim() else given
    return cut


def channels(parts: Parts) -> int | None:
    """The input channels, if the tensors distinguish them from the kernel's positions."""
    return gimbal_node.channels(parts) if kind_of(parts) is gimbal_node else None


def lengths(parts: Parts) -> tuple[str, Tensor | None]:
    """The axis and the norms of a layer's magnitude; None if there is none or only ratios."""
    own = next((part for part in ("magnitude_in", "magnitude_out") if gimbal_node.NAME + part in parts), "")
    if own:
        return gimbal_node.LENGTHS[own], parts[gimbal_node.NAME + own]
    return magnitude.axis(parts), parts.get("magnitude", parts.get("row_magnitude"))


def is_conv(parts: Parts) -> bool:
    """Whether the tensors are a convolution's, as far as they show."""
    return any(tensor.dim() > 2 for part, tensor in parts.items() if part not in STACKS)


def rank_words(parts: Parts) -> tuple[str, str]:
    """What the rank and alpha of a layer are, in words."""
    if kind_of(parts) in (output_rotation, input_rotation) or (
        kind_of(parts) is gimbal_node and "gimbal_down" not in parts
    ):
        return "block size", "bound of the rotation (alpha)"
    return "rank", "alpha"


def terms(parts: Parts, layer: Layer, W: Tensor, about: About, bias: Tensor | None = None) -> Terms:
    """The change by one layer's tensors of `W (out, fan_in)` and of the layer's `bias (out)`, in W's dtype. Raises
    ValueError, naming the layer, for tensors that do not fit it."""
    try:
        out, fan_in = shape(parts)
        if out not in (None, layer.out_features) or fan_in not in (None, layer.fan_in):
            raise ValueError(f"its tensors fit a weight of {out or '?'} x {fan_in or '?'} and the layer of this base "
                             f"has {layer.out_features} x {layer.fan_in}; the file is for another model")
        parts = {part: tensor.to(W.device) for part, tensor in parts.items()}
        kind = kind_of(parts)
        with sound.as_sentence():
            found = Terms() if kind is None else kind.terms(parts, layer, W, about)
            sound.check_terms(found, W)
            if kind not in (input_rotation, gimbal_node, gains):
                found = magnitude.on_top(magnitude.weighted(found, parts, W), parts, layer, W, about)
        return replace(found, bias=_of_bias(parts, layer, W, about, bias))
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from error


def _of_bias(parts: Parts, layer: Layer, W: Tensor, about: About, base: Tensor | None) -> Tensor | None:
    """What is added to the layer's own bias `base (out)`; None if nothing."""
    for part in BIASES:
        if part in parts and parts[part].numel() != layer.out_features:
            raise ValueError(f"its bias has {parts[part].numel()} values, not {layer.out_features}")
    given = {part: parts[part].flatten().to(W.dtype) for part in BIASES if part in parts}
    if "up_bias" in given:
        given["up_bias"] = low_rank.scale(parts, about) * given["up_bias"]
    if "set_bias" in given and base is not None:
        given["set_bias"] = given["set_bias"] - base.to(W)
    scaled = gains.of_bias(parts, layer, base, about)
    found = [*given.values(), *([] if scaled is None else [scaled.to(W)])]
    return torch.stack(found).sum(0) if found else None
