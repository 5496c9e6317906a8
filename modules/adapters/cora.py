"""CoRA: `W' = W + (alpha / rank) up down`, `up` an orthonormal basis of the changes of many adapters, `down` at zero
(Xiao et al., arXiv 2409.02119).

The paper replaces `up` (its B) by a subspace common to many models: either frozen, with half of the parameters, or as
better initial values. By summaries of it, the subspace comes from an SVD over the downstream models' aggregated
matrices. The rest is inferred: here they are the changes by finished adapters of the same base, side by side for each
layer, `[D1, D2, ...]`, and `up` is their largest left singular vectors. Adapters with larger changes have more weight.
Directions that they do not fill, and layers that none of them changes, are random ones.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.active_rank import ActiveRankConfig
from modules.adapters.dropout import DropoutConfig, DroppingAdapter
from modules.adapters.layers import Layer
from modules.adapters.low_rank import RankConfig, root_mean_square
from modules.preset.section import option


class Config(RankConfig, DropoutConfig, ActiveRankConfig):
    """CoRA: a low-rank update of the outputs that existing adapters change."""

    method: Literal["cora"] = "cora"
    """Low-rank update of the output directions that a folder of existing adapters changes most."""

    folder: str = option("", why="required without start_from", kind="folder")
    """Folder with adapters of the same base, of any trainer and method. Every readable .safetensors file in it is used.
    Needed only at the start, not by a resumed run. Leave it empty with start_from, whose file is then used instead."""

    frozen: bool = option(True, why="half of the parameters, at the same quality in the paper")
    """Freeze the output directions taken from the adapters. Off: they are only the initial values."""

    @property
    def pool(self) -> str | None:
        return self.folder


class Adapter(DroppingAdapter):
    """`y = base(x) + up (factor * down(x))`; `up` is a buffer if frozen, its columns have the norm `unit`."""

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        up, factor, self.unit = nn.init.orthogonal_(torch.empty(layer.out_features, config.rank)), config.scale, 1.0
        if config.step_size == "calibrated":
            factor, self.unit = layer.rms() / math.sqrt(config.rank), math.sqrt(layer.out_features)
            up /= root_mean_square(up)
        self.up: Tensor
        if config.frozen:
            self.register_buffer("up", up)
        else:
            self.up = nn.Parameter(up)
        self.down = nn.Parameter(torch.zeros(config.rank, layer.fan_in))
        self.factor: Tensor
        self.register_buffer("factor", torch.tensor(factor))

    def weight(self, W: Tensor) -> Tensor:
        return W + self.factor.to(W) * (self.up @ self.down)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {"down": self.factor * self.down}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return self.branch(x, layer, self.up, derived["down"])

    def start_from_pool(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        # D = up down has the left singular vectors and values of up R^T, where down^T = Q R.
        sides = [up.double() @ torch.linalg.qr(down.double().mT).R.mT for up, down in pairs]
        self._set_directions(linalg.principal(torch.cat(sides, 1), self.config.rank)[0])

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up")
        if terms.up is None or terms.down is None:
            return
        if len(terms.down) > self.config.rank:
            raise ValueError(f"the file has rank {len(terms.down)}, but the run has rank {self.config.rank}; set "
                             f"adapter.rank {len(terms.down)}, or make the file smaller with scripts/resize.py")
        basis = self._set_directions(torch.linalg.qr(terms.up.double()).Q)
        with torch.no_grad():
            inside = basis.mT @ terms.up.to(basis) @ terms.down.to(basis) / (self.unit * self.factor)
            self.down[: len(inside)] = inside

    def _set_directions(self, directions: Tensor) -> Tensor:
        """Make orthonormal `directions (out, k)` the first columns of `up`, and random orthogonal ones the others;
        returns all of these, limited to the available number."""
        both = torch.cat([directions.to(self.up), self.up.detach()], 1)
        basis = torch.linalg.qr(both.double()).Q[:, : self.config.rank]
        with torch.no_grad():
            self.up[:, : basis.shape[1]] = self.unit * basis
        return basis

    def export_terms(self, W: Tensor) -> base.Terms:
        return base.Terms(up=self.factor * self.up, down=self.down)
