"""Learned rotations of a layer's input channels or of its outputs: `R = (I + Q)(I - Q)^-1` for a skew-symmetric `Q`,
which is exactly orthogonal, or another map from `Q` to `R`.

The factor on `Q` makes one sign-like optimizer step a relative change of the weight by lr for every block size (scaled
OFT: OneTrainer pull request 1315), divided by sqrt(2) beside a magnitude that steps as well. It is saved with the
parameters: a file trained under another factor would be wrong.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from modules.adapters import fused, linalg, turning
from modules.adapters.base import AdapterConfig, Terms, alike, rows_of
from modules.adapters.layers import Layer
from modules.adapters.low_rank import spread
from modules.preset.section import Section, option

ORTHOGONAL = 0.02
"""How far from orthogonal a foreign rotation may be to start from, relative to its distance from the identity."""

HALF_TURN = 1e-4
"""Where |R v + v| of a unit vector v is below this, R rotates v by 180 degrees to within 0.01 degrees."""


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
    "neumann_6": Map(
        partial(linalg.neumann_excess, terms=6), 2.0,
        partial(linalg.on_angles, change=partial(linalg.neumann_angle, terms=6)),
    ),
}


class BlocksConfig(Section):
    """Block-diagonal rotation, as published: a full rotation within each block of channels."""

    kind: Literal["blocks"] = "blocks"
    """Block-diagonal rotation."""

    block_size: int = option(32, why="a common value", ge=2, le=1024)
    """Channels per block. Lowered to the nearest divisor of a layer's channels; the layer table shows the result."""

    map: Literal["cayley", "exponential", "newton_schulz", "neumann_4", "neumann_6"] = option(
        "cayley", why="exact for every angle below 180 degrees", advanced=True
    )
    """How parameters become a rotation. cayley: exact, with one linear solve per block. exponential: exact, with the
    angles themselves as parameters, also for 180 degrees and more. newton_schulz: cayley by matrix products only, for
    hardware with slow solvers. neumann_4, neumann_6: cayley's series truncated to 4 or 6 terms. These are cheap, but
    also stretch what they rotate: with 4 terms by 0.1 % at 41 degrees and 10 % at 100, with 6 terms by 0.1 % at 54 and
    2 % at 60, the largest possible angle. Files are exact with every map. A matrix that is no longer orthogonal fits
    into our own node for ComfyUI; for other programs the file is as large as the layers."""


class PlanesConfig(Section):
    """Rotation in a few planes. Its change of the weight is exactly a LoRA of rank 2 * planes."""

    kind: Literal["planes"] = "planes"
    """Rotation in a few learned planes."""

    planes: int = option(4, why="the file is as small as a LoRA of rank 8", ge=1, le=1024)
    """Number of planes."""


RotationConfig = Annotated[BlocksConfig | PlanesConfig, Field(discriminator="kind")]


class RotatedConfig(AdapterConfig):
    """Options of a method that rotates."""

    rotation: RotationConfig = BlocksConfig()
    """Kind of rotation."""

    side: Literal["input", "output"] = option("input", why="as published", advanced=True)
    """What is rotated. input: the input of a layer, W R^T. output: the output of a layer without its bias, R W. A block
    rotation of the output fits into compact files that A1111 and LyCORIS read (export.host), and ComfyUI where it does
    not compute in 16 bits (export.form compact)."""


def rotation(config: RotatedConfig, layer: Layer, parts: int = 1) -> "Blocks | Planes":
    """The rotation of a layer's input channels or outputs. Calibrated, a step of lr in all its parameters changes the
    weight by `lr / sqrt(parts)` of its norm. Raises ValueError for a layer with a single one."""
    features = layer.channels if config.side == "input" else layer.out_features
    if features < 2:
        raise ValueError(f"{layer.name}: a layer with {features} {config.side} channel cannot be rotated; exclude it")
    step = 1 / math.sqrt(parts) if config.step_size == "calibrated" else None
    if isinstance(config.rotation, BlocksConfig):
        return Blocks(config.rotation, layer, config.side, step)
    return Planes(config.rotation, layer, config.side, step)


def derive_all(
    rotations: "Sequence[Blocks | Planes]", gains: Sequence[Tensor | None] | None = None
) -> list[dict[str, Tensor]]:
    """The tensors for each rotation's `forward`, similar ones computed together. `gains`: layers' outputs are also to
    be multiplied by `1 + gain (out)`."""
    pairs = list(zip(rotations, [None] * len(rotations) if gains is None else gains, strict=True))
    return alike(
        pairs, lambda pair: pair[0].likeness(),
        lambda group: group[0][0].derive_alike([one for one, _ in group], [gain for _, gain in group]),
    )


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


class Rotation(nn.Module):
    """What both kinds share: the side."""

    def __init__(self, layer: Layer, side: str):
        super().__init__()
        self.side = side
        self.features, self.kernel = (
            (layer.channels, layer.kernel) if side == "input" else (layer.out_features, 1)
        )

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """The layer with the rotation, and with the gain that it was derived with, bias included."""
        if self.side == "output":
            return self.rotate_out(fused.scaled(layer, x, None) if layer.fusible else layer(x), layer, derived)
        x, gain = self.rotate_in(x, layer, derived), derived.get("gain")
        if layer.fusible:
            return fused.scaled(layer, x, gain)
        return layer(x) if gain is None else layer.scale_out(layer(x), gain)

    def rotate(self, W: Tensor) -> Tensor:
        """`W R^T`, with the same R at each kernel position, or `R W`."""
        return self.turn(W) if self.side == "input" else self.turn(W.mT).mT

    def check_side(self, terms: Terms) -> None:
        """ValueError if the rotation of `terms` is on the other side."""
        if terms.side != self.side:
            raise ValueError(f"the file rotates the layer's {terms.side}, but the run its {self.side}; set "
                             f"adapter.side {terms.side}")

    def rotate_in(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """`x R`."""
        raise NotImplementedError

    def rotate_out(self, y: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """`y R^T`, times the gain; the bias, which `y` has, is left as it is."""
        raise NotImplementedError

    def turn(self, W: Tensor) -> Tensor:
        """`W R^T` of `W (n, features * kernel)`."""
        raise NotImplementedError


class Blocks(Rotation):
    """`Q = factor (U - U^T)` per block; parameter `skew (blocks, b(b-1)/2)`: the upper triangles.

    `step`: the relative change of the weight, as a multiple of lr, by a step of lr in each of them; None: factor 1.
    """

    def __init__(self, config: BlocksConfig, layer: Layer, side: str, step: float | None):
        super().__init__(layer, side)
        self.map = config.map
        largest = min(config.block_size, self.features)
        self.size = next((b for b in range(largest, 1, -1) if self.features % b == 0), self.features)
        self.skew = nn.Parameter(torch.zeros(self.features // self.size, self.size * (self.size - 1) // 2))
        self.factor: Tensor
        unit = 1.0 if step is None else step / (MAPS[self.map].slope * math.sqrt(self.size - 1))
        self.register_buffer("factor", torch.tensor(unit))

    def derive(self) -> dict[str, Tensor]:
        """`R - I (blocks, b, b)`."""
        return self.derive_alike([self], [None])[0]

    def likeness(self) -> Hashable:
        """The key of rotations that are derived together."""
        return "blocks", self.size, self.map, self.side, self.skew.device, self.skew.dtype

    @staticmethod
    def derive_alike(rotations: "Sequence[Blocks]", gains: Sequence[Tensor | None]) -> list[dict[str, Tensor]]:
        """For rotations with one `likeness`, all their blocks at once: `R - I (blocks, b, b)`, with gains on the output
        side `diag(1 + gain) R - I`, on the input side beside them."""
        first, factors = rotations[0], [rotation.factor * rotation.skew for rotation in rotations]
        excess = MAPS[first.map].excess(linalg.skew_blocks(torch.cat(factors), first.size))
        counts, given = [len(factor) for factor in factors], [gain for gain in gains if gain is not None]
        if given and first.side == "output":
            ratio = torch.cat(given).view(-1, first.size)
            excess = torch.addcmul(excess, excess, ratio.unsqueeze(-1)) + torch.diag_embed(ratio)
            given = []
        parts = [{"excess": part} for part in excess.split(counts)]
        return [{**part, "gain": gain} for part, gain in zip(parts, given, strict=True)] if given else parts

    def turned(self) -> Tensor:
        """`||Q||_F / sqrt(channels)`, as Cayley's Q: half of the relative change of an isotropic weight, for small
        angles."""
        length = MAPS[self.map].slope / 2 * self.factor * self.skew.norm()
        return (2**0.5 * length / self.features**0.5).detach()

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
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
        """Rotate as `terms` do. A rotation that is not exactly orthogonal becomes the nearest one that is.

        Raises ValueError where the blocks cannot represent it: another side, blocks that do not fit into these, 180
        degrees, a matrix that is not a rotation, or an angle that the map cannot reach.
        """
        given = terms.rotation
        if given is None:
            return
        self.check_side(terms)
        blocks, size = given.shape[:2]
        if self.size % size or blocks * size != self.features:
            raise ValueError(f"the file has {blocks} blocks of {size}, but the run has blocks of {self.size}; set "
                             f"adapter.rotation.block_size {size}")
        turn = torch.stack([torch.block_diag(*group) for group in given.double().unflatten(0, (-1, self.size // size))])
        if not self.map.startswith("neumann"):
            refuse_stretched(turn)
        skew, eye = MAPS[self.map].back(half_tangents(turn)), torch.eye(self.size, dtype=turn.dtype, device=turn.device)
        if not (eye + MAPS[self.map].excess(skew) - turn).norm() <= ORTHOGONAL * (turn - eye).norm():
            raise ValueError(f"the file rotates by larger angles than rotation.map {self.map} can represent; set "
                             "adapter.rotation.map cayley")
        with torch.no_grad():
            self.skew.copy_(linalg.upper_triangles(skew) / self.factor)

    def export_terms(self, W: Tensor) -> Terms:
        """A block rotation."""
        excess = self.derive()["excess"]
        turn = excess + torch.eye(self.size, dtype=excess.dtype, device=excess.device)
        return Terms(rotation=turn, side=self.side)


def along_rows(layer: Layer, side: str) -> float:
    """How much more a step of planes changes a weight than one in random directions would.

    Half of `v`'s gradient lies in the space of the weight's rows, where the weight stretches more than elsewhere: by `1
    + n / m` for `m` rows of `n` random values, and by another half where the norms of rows and channels vary as in
    trained weights. Signs have a correlation of `2 / pi` with their values; half of the step comes from `v`.
    """
    features, others = layer.channels, layer.out_features * layer.kernel
    if side == "output":
        features, others = layer.out_features, layer.channels * layer.kernel
    return math.sqrt(1 + 1.5 * features / others / (2 * math.pi))


class Planes(Rotation):
    """`Q = factor (u v^T - v u^T) / length`; parameters `u (channels, p)`, initially orthonormal times `length`, and
    `v`, zero.

    `step`: as for `Blocks`; given, u's entries have the root mean square `spread`, as those of a pair.
    """

    def __init__(self, config: PlanesConfig, layer: Layer, side: str, step: float | None):
        super().__init__(layer, side)
        planes = min(config.planes, self.features // 2)
        length = 1.0 if step is None else spread(2 * planes) * math.sqrt(self.features)
        self.u = nn.Parameter(length * torch.linalg.qr(torch.randn(self.features, planes))[0].contiguous())
        self.v = nn.Parameter(torch.zeros(self.features, planes))
        self.factor: Tensor
        self.length: Tensor
        factor = 1.0 if step is None else step / (2 * math.sqrt(2 * planes) * along_rows(layer, side))
        self.register_buffer("factor", torch.tensor(factor))
        self.register_buffer("length", torch.tensor(length))

    def pair(self) -> tuple[Tensor, Tensor]:
        """`u` and `v` with `Q = u v^T - v u^T`."""
        return self.u / self.length, self.factor * self.v

    def derive(self) -> dict[str, Tensor]:
        """`F (channels, 2p)` and `H (2p, channels)` with `R = I + F H`."""
        return self.derive_alike([self], [None])[0]

    def likeness(self) -> Hashable:
        """The key of rotations that are derived together."""
        return "planes", self.u.shape, self.side, self.u.device, self.u.dtype

    @staticmethod
    def derive_alike(rotations: "Sequence[Planes]", gains: Sequence[Tensor | None]) -> list[dict[str, Tensor]]:
        """For rotations with one `likeness`, stacked: `F` and `H`, and with gains those; on the output side F's rows
        have them too."""
        u, v = zip(*(rotation.pair() for rotation in rotations), strict=True)
        first, second = linalg.plane_factors(torch.stack(u), torch.stack(v))
        given = [gain for gain in gains if gain is not None]
        if given and rotations[0].side == "output":
            first = torch.addcmul(first, first, torch.cat(given).view(len(given), -1, 1))
        parts = rows_of(first=first, second=second)
        return [{**part, "gain": gain} for part, gain in zip(parts, given, strict=True)] if given else parts

    def turned(self) -> Tensor:
        """`||Q||_F / sqrt(channels)`: half of the relative change of an isotropic weight, for small angles."""
        u, v = (one.detach() for one in self.pair())
        square = 2 * ((u.mT @ u) * (v.mT @ v)).sum() - 2 * ((u.mT @ v) * (u.mT @ v).mT).sum()
        return (square / len(u)).clamp_min(0).sqrt()

    def rotate_in(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return layer.update_in(x, derived["first"], derived["second"])

    def rotate_out(self, y: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return layer.update_out(y, derived["first"], derived["second"], derived.get("gain"))

    def turn(self, W: Tensor) -> Tensor:
        """`W + (W H^T) F^T`."""
        first, second = (t.to(W.dtype) for t in self.derive().values())
        through = torch.einsum("ojk,qj->oqk", W.unflatten(1, (-1, self.kernel)), second)
        return W + torch.einsum("oqk,cq->ock", through, first).flatten(1)

    def start_from(self, terms: Terms) -> None:
        """Reject every rotation: a few planes of all channels are not rotations in blocks."""
        if terms.rotation is not None:
            raise ValueError("the file rotates in blocks, but the run in planes; set adapter.rotation.kind blocks")

    def export_terms(self, W: Tensor) -> Terms:
        """A low-rank update: rank 2p, on the input side times the kernel positions, since each has its own left factor.

        A full difference where that is smaller.
        """
        first, second = (t.to(W.dtype) for t in self.derive().values())
        rank = second.shape[0] * self.kernel
        if rank * (W.shape[0] + W.shape[1]) >= W.numel():
            return Terms(difference=self.rotate(W) - W)
        if self.side == "output":
            return Terms(up=first, down=second @ W)
        up = torch.einsum("ojk,qj->oqk", W.unflatten(1, (-1, self.kernel)), second).flatten(1)
        positions = torch.eye(self.kernel, dtype=W.dtype, device=W.device)
        down = torch.einsum("cq,kl->qkcl", first, positions).flatten(2).flatten(0, 1)
        return Terms(up=up, down=down)
