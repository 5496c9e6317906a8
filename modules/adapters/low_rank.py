"""What all low-rank methods share: rank, alpha and the initial pair of factors."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from modules.adapters import linalg
from modules.adapters.base import AdapterConfig, Terms
from modules.adapters.layers import Layer
from modules.preset.section import option

RANDOM: dict[str, Callable[[Tensor], Any]] = {
    "gaussian": lambda down: nn.init.normal_(down, std=1 / len(down)),
    "orthogonal": nn.init.orthogonal_,
    "published": lambda down: nn.init.normal_(down, std=1 / math.sqrt(len(down))),
}
"""Fills a `down (r, fan_in)` in place, by the name in `init`; other names: Kaiming."""

SVD = "svd"
"""The value of `init` with which `down` starts as the largest right singular vectors of the weight."""

AT_RANDOM = ("kaiming", *RANDOM)
"""Values of `init` that need only a shape, so that with start_from some components may keep them."""


class RankConfig(AdapterConfig):
    """Options of an update of a given rank."""

    rank: int = option(16, why="enough for a style or a subject", ge=1, le=4096)
    """Rank of the update. File size and capacity grow with it."""

    alpha: float | None = option(
        None, why="equal to rank, so that the update is not scaled", gt=0, advanced=True,
        needs="!.step_size raw",
    )
    """The update is multiplied by alpha / rank. null: alpha = rank."""

    @property
    def scale(self) -> float:
        """The factor on `up down` with raw steps."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LowRankConfig(RankConfig):
    """Options of a low-rank pair of which `up` starts at zero."""

    init: Literal["kaiming", "gaussian", "orthogonal"] = option(
        "kaiming", why="as in other trainers", group="Start", advanced=True, title="Initial values"
    )
    """Initial values of down; up starts at zero. kaiming: uniform, as in the reference code. gaussian: normal with
    standard deviation 1 / rank, as in peft. orthogonal: orthonormal rows. With calibrated steps all are scaled to the
    same size."""

    @model_validator(mode="after")
    def _init_is_not_overwritten(self) -> "LowRankConfig":
        if self.start_from and self.init not in AT_RANDOM:
            raise ValueError(f"init {self.init} sets the initial values, but start_from takes them from a file: "
                             "remove one of them")
        return self


class RawLowRankConfig(LowRankConfig):
    """The same where published learning rates are in common use."""

    step_size: Literal["calibrated", "raw"] = option(
        "raw", why="learning rates known for this method apply", advanced=True
    )
    """calibrated: one step of a sign-like optimizer (Adam, Lion) changes each layer's weight by about learning_rate
    times its norm. raw: parameters are scaled as in the method's publication. Exported files are exact either way."""


def low_rank_pair(config: LowRankConfig, layer: Layer, parts: int = 1) -> tuple[nn.Parameter, nn.Parameter, Tensor]:
    """`up (out, r)` zeros, `down (r, fan_in)` as `config.init` says, if not Kaiming-uniform with a = sqrt(5) as in the
    reference code, and the factor `c ()` with which the update is `c up down`: the config's scale, or the unit of
    calibrated steps.

    Calibrated, `down` has the root mean square `spread`, and a step of lr in every entry of `up` changes the weight by
    `lr / sqrt(parts)` of its norm: `parts` is how many tensors of the method change the weight at the start.
    """
    down = torch.empty(config.rank, layer.fan_in)
    RANDOM.get(config.init, _kaiming)(down)
    if config.init == SVD:
        _leading_rows(down, layer.dense())
    factor = torch.tensor(config.scale)
    if config.step_size == "calibrated":
        down *= spread(config.rank) / root_mean_square(down)
        factor = calibrated_factor(layer, down, parts)
    return nn.Parameter(torch.zeros(layer.out_features, config.rank)), nn.Parameter(down), factor


def calibrated_factor(layer: Layer, down: Tensor, parts: int) -> Tensor:
    """The factor `()` of calibrated steps for a `down (r, fan_in)` of root mean square `spread`; `parts` as above."""
    return layer.rms() / (spread(len(down)) * math.sqrt(len(down) * parts) * linalg.rows_stretch(down))


def spread(rank: int) -> float:
    """In how many steps of lr, as a multiple of 1 / lr, calibrated steps change `down` by its own norm. Its components
    step together, so that their contribution to the weight's change grows with the square root of the rank."""
    return 1.0 + math.sqrt(rank) / 4


def _leading_rows(down: Tensor, W: Tensor) -> None:
    """Set `down (r, fan_in)` to the largest right singular vectors of W, and to random orthonormal rows beyond its
    rank, or where it has no values."""
    nn.init.orthogonal_(down)
    if not W.is_meta:
        vectors = linalg.leading(W, len(down))[2]
        down[: len(vectors)] = vectors.to(down)


def _kaiming(down: Tensor) -> None:
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))


def root_mean_square(tensor: Tensor) -> Tensor:
    """Of all entries, `()`."""
    return tensor.square().mean().sqrt()


def set_pair(config: RankConfig, up: Tensor, down: Tensor, terms: Terms, factor: Tensor) -> None:
    """Fresh parameters so that `factor * up down` is the terms' product. Components they do not fill keep their initial
    values. Calibrated, `down` keeps its root mean square; else the two are taken unchanged.

    Raises ValueError if the terms have a larger rank.
    """
    if terms.up is None or terms.down is None:
        return
    rank = terms.down.shape[0]
    refuse_larger(rank, down.shape[0])
    with torch.no_grad():
        given = root_mean_square(terms.down) if config.step_size == "calibrated" else 1.0
        wanted = root_mean_square(down) if config.step_size == "calibrated" else 1.0
        unit = 1.0 if given == 0 else wanted / given
        up.zero_()
        up[:, :rank] = terms.up / (factor.to(terms.up) * unit)
        down[:rank] = unit * terms.down


def refuse_larger(rank: int, ours: int) -> None:
    """ValueError if a file's rank is above the run's."""
    if rank > ours:
        raise ValueError(f"the file has rank {rank}, but the run has rank {ours}; set adapter.rank {rank}, or make the "
                         "file smaller with scripts/resize.py")
