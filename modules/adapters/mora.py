"""MoRA: `W' = W + c S(M)`, one square matrix M instead of LoRA's pair (arXiv 2405.12130; mapped to the layer as in the
authors' code). The inputs are wrapped around to fill groups of M's width.

sharing: the groups are summed, and M's result is repeated along the outputs: rank of M's width. rope: M acts on each
group, rotated by its rotary position; results are concatenated: full rank, so that there is no compact file. The
authors' other kinds differ only in the grouping, and they have no alpha / rank.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.adapters import base, linalg
from modules.adapters.layers import Layer
from modules.preset.section import option

ROPE_BASE = 10000.0


class Config(base.AdapterConfig):
    """MoRA: one square matrix per layer."""

    method: Literal["mora"] = "mora"
    """One square matrix instead of a low-rank pair: a high rank from few parameters. Linear layers only."""

    rank: int = option(16, why="as many parameters as a LoRA of rank 16", ge=1, le=4096)
    """The square matrix has as many entries as a LoRA of this rank, but is no wider than the layer."""

    kind: Literal["sharing", "rope"] = option(
        "sharing", why="files are LoRAs whose rank is the width of the square matrix"
    )
    """sharing: groups of inputs share the square matrix. rope: the groups are told apart by rotary positions; there are
    no compact files then, and layers with clearly more inputs than outputs are not supported."""


class Adapter(base.Adapter):
    """Parameter `square (n, n)`, zero at the start, n about `sqrt((in + out) rank)`; buffer `factor ()` on it."""

    kinds = ("linear",)

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        out, fan_in, rope = layer.out_features, layer.fan_in, config.kind == "rope"
        size = min(int(math.sqrt((fan_in + out) * config.rank) + 0.5), fan_in, out)
        size = size // 2 * 2 if rope else size
        if size == 0:
            raise ValueError(f"{layer.name}: kind rope needs two inputs and outputs; exclude it")
        self.groups = -(-fan_in // size)
        if rope and (self.groups - 1) * size >= out:
            raise ValueError(f"{layer.name}: with kind rope a layer from {fan_in} to {out} would ignore some of its "
                             "inputs; exclude it, or set adapter.kind sharing")
        self.square = nn.Parameter(torch.zeros(size, size))
        factor = 1.0
        if config.step_size == "calibrated":  # each output sums all groups, or one
            factor = layer.rms() * math.sqrt(fan_in / (size if rope else size * self.groups))
        self.factor: Tensor
        self.register_buffer("factor", torch.tensor(factor))

    def weight(self, W: Tensor) -> Tensor:
        square = (self.factor * self.square).to(W)
        if self.config.kind == "sharing":
            change = square.repeat(1, self.groups)
        else:
            eye = torch.eye(len(square), dtype=W.dtype, device=W.device).expand(self.groups, -1, -1)
            # Group j's part is M R_j, and the rows of R_j^T are the rotated unit vectors.
            change = torch.block_diag(*(square @ _turned(eye.transpose(0, 1)).transpose(0, 1).mT))
        inside, wrapped = change.split([W.shape[1], change.shape[1] - W.shape[1]], 1)
        inside = inside + F.pad(wrapped, (0, W.shape[1] - wrapped.shape[1]))
        return W + _repeated(inside.mT, W.shape[0]).mT

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {"square": self.factor * self.square}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        size, fan_in = len(self.square), layer.fan_in
        wrapped = torch.cat([x, x[..., : size * self.groups - fan_in]], -1) if fan_in % size else x
        groups = wrapped.unflatten(-1, (self.groups, size))
        h = groups.sum(-2) if self.config.kind == "sharing" else _turned(groups)
        h = layer.expand(h, derived["square"])
        return layer(x) + _repeated(h if self.config.kind == "sharing" else h.flatten(-2), layer.out_features)

    def export_terms(self, W: Tensor) -> base.Terms:
        size, (out, fan_in) = len(self.square), W.shape
        if self.config.kind == "rope" or size * (out + fan_in) >= out * fan_in:
            return base.Terms(difference=self.weight(W) - W)
        eye = torch.eye(size, dtype=W.dtype, device=W.device)
        down = _repeated(eye, fan_in)
        spare = size * self.groups - fan_in
        down = down + F.pad(eye[:, size - spare :], (0, fan_in - spare))
        return base.Terms(up=_repeated((self.factor * self.square).mT.to(W), out).mT, down=down)


def _repeated(rows: Tensor, length: int) -> Tensor:
    """`rows (..., n)` repeated to `(..., length)`, or cut to it."""
    times = -(-length // rows.shape[-1])
    return (torch.cat([rows] * times, -1) if times > 1 else rows)[..., :length]


def _turned(groups: Tensor) -> Tensor:
    """`groups (..., g, n)`, group j rotated by `j 10000^(-2k / n)` in the plane of the entries k and k + n / 2."""
    count, size = groups.shape[-2:]
    exact = linalg.at_least_float32(groups.dtype)
    steps = torch.arange(0, size, 2, dtype=exact, device=groups.device) / size
    angles = torch.outer(torch.arange(count, dtype=exact, device=groups.device), ROPE_BASE**-steps)
    cosine, sine = angles.cos().to(groups.dtype), angles.sin().to(groups.dtype)
    first, second = groups.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
