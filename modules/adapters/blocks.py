"""Rotations in blocks, and the maps from learned numbers to them: `R = (I + Q)(I - Q)^-1` for a skew-symmetric `Q`,
which is exactly orthogonal, or another one."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import linalg, turning
from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.adapters.sides import Rotation
from modules.preset.section import Section, option

ORTHOGONAL = 0.02
"""How far from orthogonal a foreign rotation may be to start from, relative to its distance from the identity."""

HALF_TURN = 1e-4
"""Where |R v + v| of a unit vector v is below this, R rotates v by 180 degrees to within 0.01 degrees."""


ALIKE = 1e-5
"""How far apart a foreign file's blocks may be, relative to them, to be one."""


@dataclass(frozen=True)
class Map:
    """A map from a skew-symmetric `Q` to a rotation."""

    excess: Callable[[Tensor], Tensor]
    """`R - I` of `Q (n, b, b)`."""
    slope: float
    """`R - I` is this times `Q` where Q is small."""
    back: Callable[[Tensor], Tensor]
    """The Q of a rotation, from the Q of Cayley's transform."""


MAPS = {
    "cayley": Map(linalg.cayley_excess, 2.0, lambda skew: skew),
    "newton_schulz": Map(linalg.newton_schulz_excess, 2.0, lambda skew: skew),
    "exponential": Map(linalg.exponential_excess, 1.0, partial(linalg.on_angles, change=linalg.exponential_angle)),
    "neumann_4": Map(
        partial(linalg.neumann_excess, terms=4), 2.0,
        partial(linalg.on_angles, change=partial(linalg.neumann_angle, terms=4)),
    ),
    "neumann_5": Map(partial(linalg.neumann_excess, terms=5), 2.0, lambda skew: skew),
    "neumann_6": Map(
        partial(linalg.neumann_excess, terms=6), 2.0,
        partial(linalg.on_angles, change=partial(linalg.neumann_angle, terms=6)),
    ),
}


SERIES = "neumann_5"
"""The map whose Q is in `Terms.series`."""


class BlocksConfig(Section):
    """Block-diagonal rotation, as published: a full rotation within each block of channels."""

    kind: Literal["blocks"] = "blocks"
    """Block-diagonal rotation."""

    block_size: int = option(32, why="a common value", ge=2, le=1024)
    """Channels per block, or the nearest divisor of a layer's channels (divisor); the layer table shows the result."""

    divisor: Literal["below", "nearest"] = option("below", why="blocks are never larger than block_size", advanced=True)
    """Which divisor of a layer's channels is taken where block_size is none. below: the next smaller one. nearest: the
    nearest one, as in OneTrainer and peft; of two equally near ones the smaller. 40 channels with block_size 32 are two
    blocks of 20, or one of 40."""

    conv: Literal["channels", "kernel"] = option(
        "channels", why="fewer parameters, and each kernel position keeps its meaning", advanced=True,
        needs=("adapter.side input", "@kernels"),
    )
    """What is rotated of a convolution. channels: its input channels, alike at each kernel position. kernel: channels
    and kernel positions as one axis, as in OneTrainer: kernel height x width times the parameters. Our node for ComfyUI
    reads their rotation; for other programs these layers are full differences."""

    share: bool = option(False, why="each block learns its own rotation", advanced=True)
    """One rotation for all blocks of a layer (OneTrainer's block share)."""

    map: Literal["cayley", "exponential", "newton_schulz", "neumann_4", "neumann_5", "neumann_6"] = option(
        "cayley", why="exact for every angle below 180 degrees", advanced=True
    )
    """How parameters become a rotation. cayley: exact, with one linear solve per block. exponential: exact, with the
    angles themselves as parameters, also for 180 degrees and more. newton_schulz: cayley by matrix products only, for
    hardware with slow solvers. neumann_4, neumann_6: cayley's series truncated to 4 or 6 terms. These are cheap, but
    also stretch what they rotate: with 4 terms by 0.1 % at 41 degrees and 10 % at 100, with 6 terms by 0.1 % at 54 and
    2 % at 60, the largest possible angle. neumann_5: 5 terms, as in OneTrainer and peft, to continue their files and
    for files that OneTrainer reads; it shrinks what it rotates, by 2 % at 41 degrees and to nothing at 90. Files are
    exact with every map. A matrix that is no longer orthogonal fits into our own node for ComfyUI; for other programs
    the file is as large as the layers."""


def fitting(features: int, size: int, divisor: str) -> int:
    """The size of blocks that split `features`: `size`, or the divisor "below" it (all of them where that is 1), or the
    one "nearest" to it, which may be 1 (OneTrainer's `adjust_oft_parameters`; peft's too)."""
    size = min(size, features)
    if divisor == "below":
        return next((b for b in range(size, 1, -1) if features % b == 0), features)
    return next(b for away in count() for b in (size - away, size + away) if b > 0 and features % b == 0)


def half_tangents(turn: Tensor) -> Tensor:
    """The Q with `(I + Q)(I - Q)^-1 = turn (..., b, b)`, or the rotation nearest to it. Raises ValueError for 180
    degrees."""
    left, _, right = torch.linalg.svd(turn)
    nearest, eye = left @ right, torch.eye(turn.shape[-1], dtype=turn.dtype, device=turn.device)
    if torch.linalg.svdvals(nearest + eye).min() < HALF_TURN:
        raise ValueError("the file rotates some directions by 180 degrees, which the run's rotations cannot represent")
    return torch.linalg.solve(nearest + eye, nearest - eye)


def refuse_stretched(turn: Tensor) -> None:
    """ValueError if `turn (..., b, b)` is not a rotation."""
    left, _, right = torch.linalg.svd(turn)
    moved = (turn - torch.eye(turn.shape[-1], dtype=turn.dtype, device=turn.device)).norm()
    off = (turn - left @ right).norm()
    if off > ORTHOGONAL * moved:
        raise ValueError(f"the file's rotation is not orthogonal (its truncated series is off by {off / moved:.1%} of "
                         "the change), but the run's always is")


def triangles(turn: Tensor) -> Tensor:
    """`(..., b(b-1)/2)`: the upper triangles of `half_tangents` of a rotation. Raises ValueError as the two above."""
    refuse_stretched(turn)
    return linalg.upper_triangles(half_tangents(turn))


class Blocks(Rotation):
    """`Q = factor (U - U^T)` per block; parameter `skew (blocks, b(b-1)/2)`: the upper triangles; `(1, ...)` if shared.

    `step`: the relative change of the weight, as a multiple of lr, by a step of lr in each of them; None: factor 1.
    """

    def __init__(self, config: BlocksConfig, layer: Layer, side: str, step: float | None):
        super().__init__(layer, side, config.conv == "kernel")
        self.config, self.map = config, config.map
        self.size = fitting(self.features, config.block_size, config.divisor)
        if self.size == 1:
            raise ValueError(f"{layer.name}: of its {self.features} {side}s the divisor nearest to block_size "
                             f"{config.block_size} is 1, which rotates nothing; exclude it, or set "
                             "adapter.rotation.divisor below")
        self.count = self.features // self.size
        self.skew = nn.Parameter(torch.zeros(1 if config.share else self.count, self.size * (self.size - 1) // 2))
        self.factor: Tensor
        unit = 1.0 if step is None else step / (MAPS[self.map].slope * math.sqrt(self.size - 1))
        self.register_buffer("factor", torch.tensor(unit))

    def derive(self) -> dict[str, Tensor]:
        """`R - I (blocks, b, b)`."""
        return self.derive_alike([self], [None])[0]

    def likeness(self) -> Hashable:
        """The key of rotations that are derived together."""
        return "blocks", self.size, self.map, self.side, self.config.share, self.skew.device, self.skew.dtype

    @staticmethod
    def derive_alike(rotations: "Sequence[Blocks]", gains: Sequence[Tensor | None]) -> list[dict[str, Tensor]]:
        """For rotations with one `likeness`, all their blocks at once: `R - I (blocks, b, b)`, with gains on the output
        side `diag(1 + gain) R - I`, on the input side beside them."""
        first, factors = rotations[0], [rotation.factor * rotation.skew for rotation in rotations]
        excess = MAPS[first.map].excess(linalg.skew_blocks(torch.cat(factors), first.size))
        counts, given = [rotation.count for rotation in rotations], [gain for gain in gains if gain is not None]
        if first.config.share:
            excess = torch.cat([one.expand(n, -1, -1) for one, n in zip(excess, counts, strict=True)])
        if given and first.side == "output":
            ratio = torch.cat(given).view(-1, first.size)
            excess = torch.addcmul(excess, excess, ratio.unsqueeze(-1)) + torch.diag_embed(ratio)
            given = []
        parts = [{"excess": part} for part in excess.split(counts)]
        return [{**part, "gain": gain} for part, gain in zip(parts, given, strict=True)] if given else parts

    def turned(self) -> Tensor:
        """`||Q||_F / sqrt(channels)`, as Cayley's Q: half of the relative change of an isotropic weight, for small
        angles."""
        length = MAPS[self.map].slope / 2 * self.factor * self.skew.norm() * (self.count / len(self.skew)) ** 0.5
        return (2**0.5 * length / self.features**0.5).detach()

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        if self.over_kernel:
            return turning.turned_over_kernel(layer, x, derived["excess"], derived.get("gain"))
        orthogonal = not self.map.startswith("neumann")
        if self.side == "input" and orthogonal and layer.fusible and turning.pays(layer, x):
            return turning.turned(layer, x, derived["excess"], derived.get("gain"))
        return super().forward(x, layer, derived)

    def rotate_in(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return layer.rotate_in(x, derived["excess"])

    def rotate_out(self, y: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return layer.rotate_out(y, derived["excess"])

    def turn(self, W: Tensor) -> Tensor:
        excess = self.derive()["excess"].to(W.dtype)
        blocks = W.unflatten(1, (-1, self.size, self.kernel))
        return W + torch.einsum("onjk,ncj->onck", blocks, excess).flatten(1)

    def start_from(self, terms: Terms) -> None:
        """Rotate as `terms` do. A rotation that is not exactly orthogonal becomes the nearest one that is, but for the
        map of five terms, which continues with the stored Q itself.

        Raises ValueError where the blocks cannot represent it: another side or axis, blocks that do not fit into these,
        different blocks for a shared one, 180 degrees, a matrix that is not a rotation, or an angle that the map cannot
        reach.
        """
        given = terms.rotation
        if given is None:
            return
        self.check_side(terms)
        blocks, size = given.shape[:2]
        if self.size % size or blocks * size != self.features:
            nearest = fitting(self.features, self.config.block_size, "nearest") == size
            option = "divisor nearest" if nearest else f"block_size {size}"
            raise ValueError(f"the file has {blocks} blocks of {size}, but the run has blocks of {self.size}; set "
                             f"adapter.rotation.{option}")
        if self.map == SERIES and terms.series is not None:
            skew = self.grouped(terms.series)
        else:
            skew = self.generators(self.grouped(given))
        if self.config.share and not (skew - skew[:1]).norm() <= ALIKE * skew.norm():
            raise ValueError("the file has a rotation for each block, but the run one for all; set "
                             "adapter.rotation.share false")
        with torch.no_grad():
            self.skew.copy_(linalg.upper_triangles(skew[: len(self.skew)]) / self.factor)

    def grouped(self, blocks: Tensor) -> Tensor:
        """`blocks (m, c, c)` as `(n, b, b)`, float64: several on the diagonal of each of this rotation's blocks."""
        groups = blocks.double().unflatten(0, (-1, self.size // blocks.shape[1]))
        return torch.stack([torch.block_diag(*group) for group in groups])

    def generators(self, turn: Tensor) -> Tensor:
        """The Q `(n, b, b)` from which the map makes `turn`. Raises ValueError where there is none."""
        if not self.map.startswith("neumann"):
            refuse_stretched(turn)
        skew, eye = MAPS[self.map].back(half_tangents(turn)), torch.eye(self.size, dtype=turn.dtype, device=turn.device)
        if not (eye + MAPS[self.map].excess(skew) - turn).norm() <= ORTHOGONAL * (turn - eye).norm():
            raise ValueError(f"the file rotates by larger angles than rotation.map {self.map} can represent; set "
                             "adapter.rotation.map cayley")
        return skew

    def export_terms(self, W: Tensor) -> Terms:
        """A block rotation."""
        excess = self.derive()["excess"]
        turn = excess + torch.eye(self.size, dtype=excess.dtype, device=excess.device)
        series = linalg.skew_blocks(self.factor * self.skew, self.size).expand_as(turn) if self.map == SERIES else None
        return Terms(rotation=turn, side=self.side, series=series)
