"""SORA: `W' = (I + P)(diag(d) W + (alpha / rank) up down)`, the outputs rotated by the skew-symmetric matrix `P = s (D
C^T - C D^T)`, `s = min(1, 1 / (||C|| + ||D|| + 1e-6))` ("Calibrating and Rotating", arXiv 2511.00051; read in the
authors' code).

That code rotates and scales the bias too, which a low-rank file cannot represent; here the bias is unchanged. Its d
starts at 1, ours is `exp(l)`, positive. Its merge leaves out the identity; ours does not. `I + P` is a rotation to
first order; `exact` is an exact one, Cayley's `(I + P/2)(I - P/2)^-1`. With `E = D - C` the bracket is `E C^T - C E^T`:
computed so, nothing cancels while D is near C.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.active_rank import ActiveRankConfig
from modules.adapters.diagonal import Diagonal
from modules.adapters.layers import Layer
from modules.adapters.low_rank import LowRankConfig, root_mean_square
from modules.adapters.products import frozen_cols
from modules.preset.section import option


class Config(LowRankConfig, ActiveRankConfig):
    """SORA: a low-rank update, and scaled and slightly rotated outputs."""

    method: Literal["sora"] = "sora"
    """Scales each output, adds a low-rank update, and rotates the outputs in a few learned planes."""

    planes: int = option(4, why="as published", ge=1, le=1024)
    """Number of planes in which the outputs are rotated. They add twice as many to the file's rank."""

    exact: bool = option(False, why="as published", advanced=True)
    """Use an exact rotation, which preserves norms, instead of its first-order approximation."""


class Adapter(Diagonal):
    """Parameters besides those of `Diagonal`: `source (out, p)` and `target (out, p)`, C and D in units of the buffer
    `turn_unit ()`, equal at the start.

    Their gradients are opposite there, so that a step of lr in both changes the weight by sqrt(2) lr of its norm, for
    any norm of C, which s cancels. Calibrated, that becomes lr / sqrt(3), as there are two other parts, and C's entries
    a root mean square of 1 in their unit, so that the next steps are as large.
    """

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer, parts=3)
        source = torch.empty(layer.out_features, min(config.planes, max(1, layer.out_features // 2)))
        nn.init.uniform_(source, -1 / math.sqrt(layer.out_features), 1 / math.sqrt(layer.out_features))
        unit = 1.0
        if config.step_size == "calibrated":
            source /= root_mean_square(source)
            unit = 1 / math.sqrt(6)
        self.source, self.target = nn.Parameter(source), nn.Parameter(source.clone())
        self.turn_unit: Tensor
        self.register_buffer("turn_unit", torch.tensor(unit))

    def turn(self) -> tuple[Tensor, Tensor]:
        """`F (out, 2p)` and `H (2p, out)`: outputs are rotated by `I + F H`."""
        return turn(self.turn_unit * self.source, self.turn_unit * self.target, self.config.exact)

    def weight(self, W: Tensor) -> Tensor:
        M = self.scaled(W)
        first, second = (t.to(M) for t in self.turn())
        return M + first @ (second @ M)

    def repeated(self, active: Tensor, width: int) -> Tensor:
        """The rotation's components are always active."""
        return torch.cat([active, active.new_ones(len(active), width - active.shape[1])], 1)

    def likeness(self, layer: Layer) -> Hashable:
        return super().likeness(layer), self.config.exact

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Adapter", Layer]]) -> list[dict[str, Tensor]]:
        adapters = [adapter for adapter, _ in pairs]
        units = torch.stack([one.turn_unit for one in adapters]).view(-1, 1, 1)
        source, target = torch.stack([one.source for one in adapters]), torch.stack([one.target for one in adapters])
        first, second = turn(units * source, units * target, adapters[0].config.exact)
        ratio = torch.stack([one.log_ratio() for one in adapters])
        through = frozen_cols((second * ratio.exp().unsqueeze(1)).mT, [layer for _, layer in pairs])
        factor = torch.stack([one.factor for one in adapters]).view(-1, 1, 1)
        up, down = torch.stack([one.up for one in adapters]), torch.stack([one.down for one in adapters])
        up, down = folded(factor * up, down, first, second, through)
        return base.rows_of(excess=torch.expm1(ratio), up=up, down=down)

    def export_terms(self, W: Tensor) -> base.Terms:
        first, second = (t.to(W) for t in self.turn())
        through = second * self.log_ratio().exp().to(W) @ W
        return self.scaled_terms(W, *folded(self.factor.to(W) * self.up, self.down.to(W), first, second, through))

    def curves(self) -> dict[str, Tensor]:
        first, second = (t.detach() for t in self.turn())
        square = ((first.mT @ first) * (second @ second.mT)).sum().clamp_min(0)
        return {**super().curves(), "rotation": (square / len(first)).sqrt()}


def turn(source: Tensor, target: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """`F (..., out, 2p)` and `H (..., 2p, out)` with `I + F H` the rotation of `C`, `source`, towards `D`, `target`,
    both `(..., out, p)`; its first-order part unless `exact`."""
    length = torch.linalg.matrix_norm(source) + torch.linalg.matrix_norm(target)
    move, source = target - source, (1 / (length + 1e-6)).clamp_max(1)[..., None, None] * source
    if exact:
        return linalg.plane_factors(move / 2, source)
    return torch.cat([move, -source], -1), torch.cat([source, move], -1).mT


def folded(up: Tensor, down: Tensor, first: Tensor, second: Tensor, through: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of `(I + F H)(S + up down) - S`, from `F`, `H` and `through = H S`."""
    return torch.cat([up + first @ (second @ up), first], -1), torch.cat([down, through], -2)
