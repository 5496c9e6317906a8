"""BOFT: `W' = R_m ... R_1 W`, rotations of the layer's output in the stages of a butterfly (arXiv 2311.06243).

Each stage rotates blocks of b outputs by an exact Cayley transform `R = (I + Q)(I - Q)^-1`. From stage to stage the
outputs in a block are twice as far apart, so that m = log2(blocks) + 1 stages mix every output with every other. Order
and side are LyCORIS' and ComfyUI's: R, not its transpose, on the output, and the bias is not rotated. The stages are
applied to the layer's output; no weight is formed.

One deviation: LyCORIS stores `Q = B - B^T` of a square B, which has every value twice. The triangle here has half as
many; with step_size raw its factor 2 makes Adam's steps those of LyCORIS. Calibrated for independent signs. Outputs
less than b / 2 apart share a block in every stage, so that a first step along a real gradient is up to about twice as
large as lr where there are eight stages.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, fused, linalg
from modules.adapters.base import AdapterConfig
from modules.adapters.blocks import triangles
from modules.adapters.layers import Layer
from modules.preset.section import option


class Config(AdapterConfig):
    """BOFT: a butterfly-factorized rotation of the layer's output."""

    method: Literal["boft"] = "boft"
    """Rotates the output of each layer in butterfly stages: mixes all outputs with few parameters."""

    block_size: int = option(16, why="suits the layers of all families", ge=2, le=1024)
    """Outputs per block. Lowered to an even number that splits a layer's outputs into a power of two of blocks."""


def stretch(size: int, stages: int) -> float:
    """How much further a step of signs in all stages rotates than one in random directions: half of the outputs that
    share a block do so in one stage only, the others in all, and are rotated by all of them in the same direction."""
    return math.sqrt((stages * (size / 2 - 1) + size / 2) / (size - 1))


class Adapter(base.Together):
    """`y = R_m ... R_1 base(x)`, bias apart. Parameter `skew (m, blocks, b(b-1)/2)`: the upper triangles of Q in units
    of the buffer `factor ()`."""

    kinds = ("linear", "conv")
    moves_zero = False

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        self.size = block_size(layer, config.block_size)
        blocks = layer.out_features // self.size
        stages = blocks.bit_length()
        self.skew = nn.Parameter(torch.zeros(stages, blocks, self.size * (self.size - 1) // 2))
        step = 1 / (2 * math.sqrt(stages * (self.size - 1)) * stretch(self.size, stages))
        self.factor: Tensor
        self.register_buffer("factor", torch.tensor(step if config.step_size == "calibrated" else 2.0))

    def weight(self, W: Tensor) -> Tensor:
        return linalg.butterfly(W.unsqueeze(0), turns([self])[0].to(W.dtype)).squeeze(0)

    def likeness(self, layer: Layer) -> Hashable:
        return self.size, self.skew.device, self.skew.dtype

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        return [{"excess": excess} for excess in turns([adapter for adapter, _ in pairs])]

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        y = layer(x)
        plain = layer.without_bias(y)
        turned = fused.butterfly(layer.flat(plain), derived["excess"]).view(y.shape)
        return turned if plain is y else y + (turned - plain)

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        """The same stages of the same blocks; or one rotation of the whole output where there is one stage."""
        self.refuse_all_but(terms, "rotation")
        given = terms.rotation
        if given is None:
            return
        if terms.side != "output":
            raise ValueError("the file rotates the layer's input, but the run its output")
        if given.dim() == 3 and len(given) == len(self.skew) == 1:
            given = linalg.butterfly_order(given).unsqueeze(0)
        if given.shape[:-2] != self.skew.shape[:2] or given.shape[-1] != self.size:
            mine = (*self.skew.shape[:2], self.size)
            counts = (" x ".join(str(n) for n in shape) for shape in (given.shape[:-1], mine))
            raise ValueError("the file has stages x blocks x size of {} and the run has {}; set adapter.block_size "
                             .format(*counts) + str(given.shape[-1]))
        with torch.no_grad():
            self.skew.copy_(triangles(given.double()) / self.factor)

    def export_terms(self, W: Tensor) -> base.Terms:
        (excess,) = turns([self])
        return base.Terms(rotation=excess + torch.eye(self.size, dtype=excess.dtype, device=excess.device),
                          side="output")

    def curves(self) -> dict[str, Tensor]:
        """`sqrt(sum ||Q||_F^2 / out)`: half of the relative change of an isotropic weight, for small angles."""
        out = self.skew.shape[1] * self.size
        return {"rotation": (self.factor * self.skew.norm() * math.sqrt(2 / out)).detach()}


def block_size(layer: Layer, largest: int) -> int:
    """The largest even divisor of the outputs up to `largest` that leaves a power of two of blocks (LyCORIS'
    `power2factorization`). Raises ValueError if there is none."""
    out = layer.out_features
    if out % 2:
        raise ValueError(f"{layer.name}: a layer with {out} output{'s' * (out > 1)} cannot be split into pairs; "
                         "exclude it")
    smallest = 2 * (out // (out & -out))  # twice the odd part
    if smallest > largest:
        raise ValueError(f"{layer.name}: its {out} outputs cannot be split into a power of two of even blocks of at "
                         f"most {largest}; set adapter.block_size {smallest}, or exclude it")
    return smallest * 2 ** int(math.log2(min(largest, out) // smallest))


def turns(adapters: Sequence[Adapter]) -> list[Tensor]:
    """`R - I (m, blocks, b, b)` of adapters with blocks of one size: all in a single solve."""
    vectors = torch.cat([(one.factor * one.skew).flatten(0, 1) for one in adapters])
    excess = linalg.cayley_excess(linalg.skew_blocks(vectors, adapters[0].size))
    parts = excess.split([one.skew.shape[0] * one.skew.shape[1] for one in adapters])
    return [part.unflatten(0, one.skew.shape[:2]) for one, part in zip(adapters, parts, strict=True)]
