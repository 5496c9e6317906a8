"""Learned rotations of a layer's input channels, exactly orthogonal: `R = (I + Q)(I - Q)^-1` for a skew `Q`.

The factor on `Q` makes one sign-like optimizer step a relative change of the weight by lr, whatever the size (scaled
OFT: OneTrainer pull request 1315). It is saved with the parameters: a file trained under another factor would be wrong.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from modules.adapters import linalg
from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.preset.section import Section, option


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


def rotation(config: BlocksConfig | PlanesConfig, layer: Layer) -> "Blocks | Planes":
    """The rotation of a layer's input channels. Raises ValueError for a layer with a single channel."""
    if layer.channels < 2:
        raise ValueError(f"{layer.name}: a layer with {layer.channels} input channel cannot be rotated; exclude it")
    return Blocks(config, layer) if isinstance(config, BlocksConfig) else Planes(config, layer)


class Blocks(nn.Module):
    """`Q = factor (U - U^T)` per block; parameter `skew (blocks, b(b-1)/2)`: the upper triangles."""

    def __init__(self, config: BlocksConfig, layer: Layer):
        super().__init__()
        largest = min(config.block_size, layer.channels)
        self.size = next((b for b in range(largest, 1, -1) if layer.channels % b == 0), layer.channels)
        self.kernel = layer.kernel
        self.skew = nn.Parameter(torch.zeros(layer.channels // self.size, self.size * (self.size - 1) // 2))
        self.factor: Tensor
        self.register_buffer("factor", torch.tensor(1 / (2 * math.sqrt(self.size - 1))))

    def derive(self) -> dict[str, Tensor]:
        """`R - I (blocks, b, b)`."""
        return {"excess": linalg.cayley_excess(linalg.skew_blocks(self.factor * self.skew, self.size))}

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

    def export_terms(self, W: Tensor) -> Terms:
        """A block rotation."""
        excess = self.derive()["excess"]
        return Terms(rotation=excess + torch.eye(self.size, dtype=excess.dtype, device=excess.device))


class Planes(nn.Module):
    """`Q = factor (u v^T - v u^T)`; parameters `u (channels, p)`, orthonormal at the start, and `v`, zero."""

    def __init__(self, config: PlanesConfig, layer: Layer):
        super().__init__()
        planes = min(config.planes, layer.channels // 2)
        self.kernel = layer.kernel
        self.u = nn.Parameter(torch.linalg.qr(torch.randn(layer.channels, planes))[0].contiguous())
        self.v = nn.Parameter(torch.zeros(layer.channels, planes))
        self.factor: Tensor
        self.register_buffer("factor", torch.tensor(1 / (2 * math.sqrt(2 * planes))))

    def derive(self) -> dict[str, Tensor]:
        """`F (channels, 2p)` and `H (2p, channels)` with `R = I + F H`."""
        first, second = linalg.plane_factors(self.u, self.factor * self.v)
        return {"first": first, "second": second}

    def turned(self) -> Tensor:
        """`||Q||_F / sqrt(channels)`: half of the relative change of an isotropic weight, for small angles."""
        u, v = self.u.detach(), self.factor * self.v.detach()
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
