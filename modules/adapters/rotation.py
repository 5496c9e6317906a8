"""Learned rotations of a layer's input channels, exactly orthogonal: `R = (I + Q)(I - Q)^-1` for a skew `Q`.

The factor on `Q` makes one sign-like optimizer step a relative change of the weight by lr, whatever the size (scaled
OFT: OneTrainer pull request 1315), divided by sqrt(2) beside a magnitude that steps as well. It is saved with the
parameters: a file trained under another factor would be wrong.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from modules.adapters import linalg
from modules.adapters.base import AdapterConfig, Terms, alike, rows_of
from modules.adapters.layers import Layer
from modules.preset.section import Section, option

ORTHOGONAL = 0.02
"""How far from orthogonal a rotation of others may be to start from, as a part of its distance from the identity."""

HALF_TURN = 1e-4
"""Where |R v + v| of a unit vector v is below this, R turns v by half a turn to within 0.01 degrees."""


class BlocksConfig(Section):
    """As published: channels in blocks, a full rotation in each."""

    kind: Literal["blocks"] = "blocks"
    """Block-diagonal rotation."""

    block_size: int = option(32, why="the usual size", ge=2, le=1024)
    """Channels per block. Lowered to the nearest divisor of a layer's channels; the layer table shows it."""


class PlanesConfig(Section):
    """A rotation in a few planes: its change of the weight is exactly a LoRA of rank 2 * planes."""

    kind: Literal["planes"] = "planes"
    """Rotation in a few learned planes."""

    planes: int = option(4, why="the file is as small as a LoRA of rank 8", ge=1, le=1024)
    """Number of planes."""


RotationConfig = Annotated[BlocksConfig | PlanesConfig, Field(discriminator="kind")]


class RotatedConfig(AdapterConfig):
    """Options of a method that rotates."""

    rotation: RotationConfig = BlocksConfig()
    """Which rotations are learned."""


def rotation(config: RotatedConfig, layer: Layer, parts: int = 1) -> "Blocks | Planes":
    """The rotation of a layer's input channels. Calibrated, a step of lr in all its parameters changes the weight by
    `lr / sqrt(parts)` of its norm. Raises ValueError for a layer with a single channel."""
    if layer.channels < 2:
        raise ValueError(f"{layer.name}: a layer with {layer.channels} input channel cannot be rotated; exclude it")
    step = 1 / math.sqrt(parts) if config.step_size == "calibrated" else None
    if isinstance(config.rotation, BlocksConfig):
        return Blocks(config.rotation, layer, step)
    return Planes(config.rotation, layer, step)


def derive_all(rotations: "Sequence[Blocks | Planes]") -> list[dict[str, Tensor]]:
    """`derive` of many rotations, those that are alike together."""
    return alike(rotations, lambda one: one.likeness(), lambda group: group[0].derive_alike(group))


def triangles(turn: Tensor) -> Tensor:
    """`(..., b(b-1)/2)`: the upper triangles of the Q with `(I + Q)(I - Q)^-1 = turn (..., b, b)`, or the nearest
    rotation. Raises ValueError for half a turn and for a matrix that is no rotation."""
    left, _, right = torch.linalg.svd(turn)
    nearest, eye = left @ right, torch.eye(turn.shape[-1], dtype=turn.dtype, device=turn.device)
    moved = (turn - eye).norm()
    if (turn - nearest).norm() > ORTHOGONAL * moved:
        raise ValueError("the file's rotation is not orthogonal (its trainer's series is off by "
                         f"{(turn - nearest).norm() / moved:.1%} of the change), and the run's always is")
    if torch.linalg.svdvals(nearest + eye).min() < HALF_TURN:
        raise ValueError("the file turns some directions by half a turn, which the run's rotations cannot")
    skew = torch.linalg.solve(nearest + eye, nearest - eye)
    rows, columns = torch.triu_indices(len(eye), len(eye), 1, device=skew.device)
    return skew[..., rows, columns]


class Blocks(nn.Module):
    """`Q = factor (U - U^T)` per block; parameter `skew (blocks, b(b-1)/2)`: the upper triangles.

    `step`: the relative change of the weight, as a multiple of lr, by a step of lr in each of them; None: factor 1.
    """

    def __init__(self, config: BlocksConfig, layer: Layer, step: float | None):
        super().__init__()
        largest = min(config.block_size, layer.channels)
        self.size = next((b for b in range(largest, 1, -1) if layer.channels % b == 0), layer.channels)
        self.kernel = layer.kernel
        self.skew = nn.Parameter(torch.zeros(layer.channels // self.size, self.size * (self.size - 1) // 2))
        self.factor: Tensor
        self.register_buffer("factor", torch.tensor(1.0 if step is None else step / (2 * math.sqrt(self.size - 1))))

    def derive(self) -> dict[str, Tensor]:
        """`R - I (blocks, b, b)`."""
        return self.derive_alike([self])[0]

    def likeness(self) -> Hashable:
        """What rotations have in common that are derived together."""
        return "blocks", self.size, self.skew.device, self.skew.dtype

    @staticmethod
    def derive_alike(rotations: "Sequence[Blocks]") -> list[dict[str, Tensor]]:
        """`derive` of rotations with one `likeness`: all their blocks in a single solve."""
        vectors = torch.cat([rotation.factor * rotation.skew for rotation in rotations])
        excess = linalg.cayley_excess(linalg.skew_blocks(vectors, rotations[0].size))
        counts = [len(rotation.skew) for rotation in rotations]
        return [{"excess": part} for part in excess.split(counts)]

    def turned(self) -> Tensor:
        """`||Q||_F / sqrt(channels)`: half of the relative change of an isotropic weight, for small angles."""
        return (2**0.5 * self.factor * self.skew.norm() / (self.skew.shape[0] * self.size) ** 0.5).detach()

    def rotate_in(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """`x R`."""
        return layer.rotate_in(x, derived["excess"])

    def rotate(self, W: Tensor) -> Tensor:
        """`W R^T`, with the same R at each kernel position."""
        excess = self.derive()["excess"].to(W.dtype)
        blocks = W.unflatten(1, (-1, self.size, self.kernel))
        return W + torch.einsum("onjk,ncj->onck", blocks, excess).flatten(1)

    def start_from(self, terms: Terms) -> None:
        """Turn as `terms` do. A rotation that is not quite orthogonal becomes the nearest one that is.

        Raises ValueError where the blocks cannot do that: another side, blocks that do not fit into these, half a turn,
        or a matrix that is no rotation.
        """
        given = terms.rotation
        if given is None:
            return
        if terms.side != "input":
            raise ValueError("the file rotates the layer's output, and the run its input")
        blocks, size = given.shape[:2]
        if self.size % size or blocks * size != self.skew.shape[0] * self.size:
            raise ValueError(f"the file has {blocks} blocks of {size} and the run blocks of {self.size}; set "
                             f"adapter.rotation.block_size {size}")
        turn = torch.stack([torch.block_diag(*group) for group in given.double().unflatten(0, (-1, self.size // size))])
        with torch.no_grad():
            self.skew.copy_(triangles(turn) / self.factor)

    def export_terms(self, W: Tensor) -> Terms:
        """A block rotation."""
        excess = self.derive()["excess"]
        return Terms(rotation=excess + torch.eye(self.size, dtype=excess.dtype, device=excess.device))


class Planes(nn.Module):
    """`Q = factor (u v^T - v u^T) / length`; parameters `u (channels, p)`, at the start orthonormal times `length`, and
    `v`, zero.

    `step`: as for `Blocks`; given, u's entries have a root mean square of 1, so that u steps as v does.
    """

    def __init__(self, config: PlanesConfig, layer: Layer, step: float | None):
        super().__init__()
        planes = min(config.planes, layer.channels // 2)
        self.kernel = layer.kernel
        length = 1.0 if step is None else math.sqrt(layer.channels)
        self.u = nn.Parameter(length * torch.linalg.qr(torch.randn(layer.channels, planes))[0].contiguous())
        self.v = nn.Parameter(torch.zeros(layer.channels, planes))
        self.factor: Tensor
        self.length: Tensor
        self.register_buffer("factor", torch.tensor(1.0 if step is None else step / (2 * math.sqrt(2 * planes))))
        self.register_buffer("length", torch.tensor(length))

    def pair(self) -> tuple[Tensor, Tensor]:
        """`u` and `v` with `Q = u v^T - v u^T`."""
        return self.u / self.length, self.factor * self.v

    def derive(self) -> dict[str, Tensor]:
        """`F (channels, 2p)` and `H (2p, channels)` with `R = I + F H`."""
        return self.derive_alike([self])[0]

    def likeness(self) -> Hashable:
        """What rotations have in common that are derived together."""
        return "planes", self.u.shape, self.u.device, self.u.dtype

    @staticmethod
    def derive_alike(rotations: "Sequence[Planes]") -> list[dict[str, Tensor]]:
        """`derive` of rotations with one `likeness`, stacked."""
        u, v = zip(*(rotation.pair() for rotation in rotations), strict=True)
        first, second = linalg.plane_factors(torch.stack(u), torch.stack(v))
        return rows_of(first=first, second=second)

    def turned(self) -> Tensor:
        """`||Q||_F / sqrt(channels)`: half of the relative change of an isotropic weight, for small angles."""
        u, v = (one.detach() for one in self.pair())
        square = 2 * ((u.mT @ u) * (v.mT @ v)).sum() - 2 * ((u.mT @ v) * (u.mT @ v).mT).sum()
        return (square / len(u)).clamp_min(0).sqrt()

    def rotate_in(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """`x R`."""
        return layer.update_in(x, derived["first"], derived["second"])

    def rotate(self, W: Tensor) -> Tensor:
        """`W R^T = W + (W H^T) F^T`, with the same R at each kernel position."""
        first, second = (t.to(W.dtype) for t in self.derive().values())
        through = torch.einsum("ojk,qj->oqk", W.unflatten(1, (-1, self.kernel)), second)
        return W + torch.einsum("oqk,cq->ock", through, first).flatten(1)

    def start_from(self, terms: Terms) -> None:
        """Refuse every rotation: a few planes of all channels are none in blocks."""
        if terms.rotation is not None:
            raise ValueError("the file rotates in blocks and the run in planes; set adapter.rotation.kind blocks")

    def export_terms(self, W: Tensor) -> Terms:
        """A low-rank update: rank 2p, times the kernel positions, since each has its own left factor.

        A full difference where that is smaller.
        """
        first, second = (t.to(W.dtype) for t in self.derive().values())
        rank = second.shape[0] * self.kernel
        if rank * (W.shape[0] + W.shape[1]) >= W.numel():
            return Terms(difference=self.rotate(W) - W)
        up = torch.einsum("ojk,qj->oqk", W.unflatten(1, (-1, self.kernel)), second).flatten(1)
        positions = torch.eye(self.kernel, dtype=W.dtype, device=W.device)
        down = torch.einsum("cq,kl->qkcl", first, positions).flatten(2).flatten(0, 1)
        return Terms(up=up, down=down)
