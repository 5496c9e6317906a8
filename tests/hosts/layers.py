"""Single layers with all sorts of tensors, right and wrong ones, for which programs and our copies have to agree.

What a program makes of a layer depends on the layer's shape, on the kind of update, and on what stands beside it:
alpha, magnitudes of several shapes, scales. Each case is one layer of one file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = {
    "linear": (12, 16), "tall": (16, 12), "square": (16, 16), "conv": (12, 8, 3, 3), "square conv": (8, 8, 3, 3),
    "point": (8, 8, 1, 1), "one output": (1, 8),
}
RANK = 4


@dataclass(frozen=True)
class Case:
    """A layer and its tensors by suffix."""

    name: str
    weight: Tensor
    tensors: dict[str, Tensor]


class Draw:
    """Random tensors, the same each time."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(shape, generator=self._generator)


def pair(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoRA."""
    ones = [1] * (len(shape) - 2)
    return {".lora_up.weight": draw(shape[0], RANK, *ones), ".lora_down.weight": draw(RANK, *shape[1:])}


def core(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoRA with a core (Tucker)."""
    return {".lora_up.weight": draw(shape[0], RANK, 1, 1), ".lora_down.weight": draw(RANK, shape[1], 1, 1),
            ".lora_mid.weight": draw(RANK, RANK, *shape[2:])}


def hadamard(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoHa."""
    inner = torch.Size(shape[1:]).numel()
    return {f".hada_w{i}_{side}": draw(*size) for i in (1, 2)
            for side, size in (("a", (shape[0], RANK)), ("b", (RANK, inner)))}


def hadamard_core(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoHa with cores."""
    found = {f".hada_t{i}": draw(RANK, RANK, *shape[2:]) for i in (1, 2)}
    for i in (1, 2):
        found |= {f".hada_w{i}_a": draw(RANK, shape[0]), f".hada_w{i}_b": draw(RANK, shape[1])}
    return found


def kronecker(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoKr of two whole factors."""
    first = 4 if shape[0] % 4 == 0 else 1
    return {".lokr_w1": draw(first, 4), ".lokr_w2": draw(shape[0] // first, shape[1] // 4, *shape[2:])}


def kronecker_factored(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoKr whose second factor is a product."""
    whole = kronecker(draw, shape)
    second = whole.pop(".lokr_w2")
    return whole | {".lokr_w2_a": draw(len(second), 2), ".lokr_w2_b": draw(2, second[0].numel())}


def kronecker_both(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoKr of two products."""
    found = kronecker_factored(draw, shape)
    first = found.pop(".lokr_w1")
    return found | {".lokr_w1_a": draw(len(first), 3), ".lokr_w1_b": draw(3, 4)}


def kronecker_core(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoKr with a core."""
    return {".lokr_w1": draw(4, 4), ".lokr_t2": draw(2, 2, *shape[2:]), ".lokr_w2_a": draw(2, shape[0] // 4),
            ".lokr_w2_b": draw(2, shape[1] // 4)}


def general(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A GLoRA with rank 1 for what is added, as the exporter writes rotations; `a` is square."""
    return {".a1.weight": draw(shape[1], shape[1]), ".a2.weight": torch.eye(shape[1]),
            ".b1.weight": draw(shape[0], 1), ".b2.weight": draw(1, *shape[1:])}


def general_low(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A GLoRA of one rank, flat."""
    inner = torch.Size(shape[1:]).numel()
    return {".a1.weight": draw(shape[1], RANK), ".a2.weight": draw(RANK, shape[1]),
            ".b1.weight": draw(shape[0], RANK), ".b2.weight": draw(RANK, inner)}


def general_old(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A GLoRA of the older layout."""
    inner = torch.Size(shape[1:]).numel()
    return {".a1.weight": draw(RANK, shape[1]), ".a2.weight": draw(shape[1], RANK),
            ".b1.weight": draw(RANK, inner), ".b2.weight": draw(shape[0], RANK)}


def rotation(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A rotation of the outputs in blocks."""
    return {".oft_blocks": draw(shape[0] // 4, 4, 4, scale=0.1)}


def butterfly(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A butterfly of one factor."""
    return {".oft_blocks": draw(1, shape[0] // 4, 4, 4, scale=0.1)}


def difference(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A full difference."""
    return {".diff": draw(*shape)}


def even(size: int) -> tuple[int, int]:
    """The most even product, the smaller number first."""
    smaller = max(n for n in range(1, size + 1) if size % n == 0 and n * n <= size)
    return smaller, size // smaller


def kronecker_even(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoKr of two whole factors in the sizes that LyCORIS chooses."""
    (a, b), (c, d) = even(shape[0]), even(shape[1])
    return {".lokr_w1": draw(a, c), ".lokr_w2": draw(b, d, *shape[2:])}


def kronecker_even_factored(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The same with a second factor of rank 1."""
    whole = kronecker_even(draw, shape)
    second = whole.pop(".lokr_w2")
    return whole | {".lokr_w2_a": draw(len(second), 1), ".lokr_w2_b": draw(1, second[0].numel())}


def butterfly_whole(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A butterfly of all factors that the outputs allow."""
    size = 4 if shape[0] & (shape[0] - 1) == 0 else shape[0] // 2
    number = shape[0] // size
    return {".oft_blocks": draw(number.bit_length(), number, size, size, scale=0.1)}


def flat_pair(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoRA of two matrices, whatever the layer."""
    return {".lora_up.weight": draw(shape[0], RANK), ".lora_down.weight": draw(RANK, torch.Size(shape[1:]).numel())}


def general_kernels(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A GLoRA of one rank, whose matrices are convolutions beside one."""
    ones = [1] * (len(shape) - 2)
    return {".a1.weight": draw(shape[1], RANK, *ones), ".a2.weight": draw(RANK, shape[1], *ones),
            ".b1.weight": draw(shape[0], RANK, *ones), ".b2.weight": draw(RANK, *shape[1:])}


def factors(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """An IA3 on the outputs."""
    return {".weight": draw(shape[0], 1, *[1] * (len(shape) - 2)), ".on_input": torch.tensor(False)}


def other(suffix: str, *ending: int):
    """A tensor of the layer's shape under another name, or of a shape that does not fit."""
    return lambda draw, shape: {suffix: draw(*shape, *ending)}


KINDS = {
    "LoRA": pair, "LoRA with a core": core, "LoHa": hadamard, "LoHa with cores": hadamard_core, "LoKr": kronecker,
    "LoKr, second factored": kronecker_factored, "LoKr, both factored": kronecker_both, "LoKr with a core":
    kronecker_core, "GLoRA of rotations": general, "GLoRA": general_low, "GLoRA, older": general_old,
    "rotation": rotation, "butterfly": butterfly, "difference": difference, "norm": other(".w_norm"),
    "LoKr, even": kronecker_even, "LoKr, even and factored": kronecker_even_factored, "butterfly, whole":
    butterfly_whole, "LoRA, flat": flat_pair, "GLoRA of kernels": general_kernels, "IA3": factors,
    "difference of one row": lambda draw, shape: {".diff": draw(*shape)[:1]}, "one wide rotation":
    lambda draw, shape: {".oft_blocks": draw(1, shape[0], shape[0], scale=0.1)},
    "whole weight": other(".set_weight"), "difference of another shape": other(".diff", 1),
}
KERNELS_ONLY = ("LoRA with a core", "LoHa with cores", "LoKr with a core")
FOURS_ONLY = ("LoKr with a core", "rotation", "butterfly", "butterfly, whole")
"""Kinds that need outputs in fours."""


def beside(shape: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What may stand beside an update."""
    draw, ones = Draw(99), [1] * (len(shape) - 2)
    yield "", {}
    yield "alpha", {".alpha": torch.tensor(2.0)}
    yield "alpha 0", {".alpha": torch.tensor(0.0)}
    yield "alpha in a list", {".alpha": torch.tensor([2.0])}
    yield "input magnitude", {".alpha": torch.tensor(2.0), ".dora_scale": 1 + draw(1, shape[1], *ones).abs()}
    yield "input magnitude, no alpha", {".dora_scale": 1 + draw(1, shape[1], *ones).abs()}
    yield "output magnitude", {".alpha": torch.tensor(2.0), ".dora_scale": 1 + draw(shape[0], 1, *ones).abs()}
    yield "magnitude of outputs in a row", {".alpha": torch.tensor(2.0), ".dora_scale": 1 + draw(shape[0]).abs()}
    yield "magnitude of inputs in a row", {".alpha": torch.tensor(2.0), ".dora_scale": 1 + draw(shape[1]).abs()}
    yield "one magnitude", {".alpha": torch.tensor(2.0), ".dora_scale": torch.tensor(1.5)}
    yield "rescale", {".alpha": torch.tensor(0.0), ".rescale": 1 + draw(shape[0], 1, *ones).abs()}


def cases() -> list[Case]:
    """All of them; names are as keys can be."""
    found = []
    for where, shape in SHAPES.items():
        for kind, make in KINDS.items():
            if kind in KERNELS_ONLY and len(shape) < 4 or kind in FOURS_ONLY and shape[0] % 4:
                continue
            for beside_it, more in beside(shape):
                draw = Draw(len(found))
                words = ", ".join(word for word in (kind, where, beside_it) if word)
                name = f"lycoris_{len(found)}"
                found.append((words, Case(name, draw(*shape, scale=0.2), make(draw, shape) | more)))
    return [Case(f"{case.name}|{words}", case.weight, case.tensors) for words, case in found]
