"""Rotations of a layer's channels or outputs in a few planes: `R = (I + Q)(I - Q)^-1` with a Q of low rank."""

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import linalg
from modules.adapters.base import Terms, rows_of
from modules.adapters.layers import Layer
from modules.adapters.low_rank import spread
from modules.adapters.sides import Rotation
from modules.preset.section import Section, option


class PlanesConfig(Section):
    """Rotation in a few planes. Its change of the weight is exactly a LoRA of rank 2 * planes."""

    kind: Literal["planes"] = "planes"
    """Rotation in a few learned planes."""

    planes: int = option(4, why="the file is as small as a LoRA of rank 8", ge=1, le=1024)
    """Number of planes."""


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
