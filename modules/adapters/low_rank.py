"""What all low-rank methods share: rank, alpha and the initial pair of factors."""

import math

import torch
from torch import nn

from modules.adapters.base import AdapterConfig, Terms
from modules.adapters.layers import Layer
from modules.preset.section import option


class LowRankConfig(AdapterConfig):
    """Options of a low-rank update."""

    rank: int = option(16, why="enough for a style or a subject", ge=1, le=4096)
    """Rank of the update. File size and capacity grow with it."""

    alpha: float | None = option(None, why="equal to rank, so that the update is not scaled", gt=0, advanced=True)
    """The update is multiplied by alpha / rank. null: alpha = rank."""

    @property
    def scale(self) -> float:
        """The factor on `up down`."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def low_rank_pair(rank: int, layer: Layer) -> tuple[nn.Parameter, nn.Parameter]:
    """`up (out, r)` zeros and `down (r, fan_in)` Kaiming-uniform with a = sqrt(5), as in the reference code."""
    down = torch.empty(rank, layer.fan_in)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return nn.Parameter(torch.zeros(layer.out_features, rank)), nn.Parameter(down)


def set_pair(up: nn.Parameter, down: nn.Parameter, terms: Terms, scale: float) -> None:
    """Fresh parameters so that `scale * up down` is the terms' product. Components they do not fill start as ever.

    Raises ValueError if the terms have a larger rank.
    """
    if terms.up is None or terms.down is None:
        return
    rank, ours = terms.down.shape[0], down.shape[0]
    if rank > ours:
        raise ValueError(f"the file has rank {rank} and the run {ours}; set adapter.rank {rank}, or make the "
                         "file smaller with scripts/resize.py")
    with torch.no_grad():
        up.zero_()
        up[:, :rank] = terms.up / scale
        down[:rank] = terms.down
