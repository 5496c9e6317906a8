"""Learned rotations of a layer's input channels or of its outputs: `R = (I + Q)(I - Q)^-1` for a skew-symmetric `Q`,
which is exactly orthogonal, or another map from `Q` to `R`.

The factor on `Q` makes one sign-like optimizer step a relative change of the weight by lr for every block size (scaled
OFT: OneTrainer pull request 1315), divided by sqrt(2) beside a magnitude that steps as well. It is saved with the
parameters: a file trained under another factor would be wrong.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from modules.adapters.base import AdapterConfig, alike
from modules.adapters.blocks import Blocks, BlocksConfig
from modules.adapters.layers import Layer
from modules.adapters.planes import Planes, PlanesConfig
from modules.preset.section import option

RotationConfig = Annotated[BlocksConfig | PlanesConfig, Field(discriminator="kind")]


class RotatedConfig(AdapterConfig):
    """Options of a method that rotates."""

    rotation: RotationConfig = BlocksConfig()
    """Kind of rotation."""

    side: Literal["input", "output"] = option("input", why="as published", advanced=True)
    """What is rotated. input: the input of a layer, W R^T. output: the output of a layer without its bias, R W. A block
    rotation of the output fits into compact files that A1111 and LyCORIS read (export.host), and ComfyUI where it does
    not compute in 16 bits (export.form compact)."""


def rotation(config: RotatedConfig, layer: Layer, parts: int = 1) -> Blocks | Planes:
    """The rotation of a layer's input channels or outputs. Calibrated, a step of lr in all its parameters changes the
    weight by `lr / sqrt(parts)` of its norm. Raises ValueError for a layer with a single one."""
    step = 1 / math.sqrt(parts) if config.step_size == "calibrated" else None
    if isinstance(config.rotation, BlocksConfig):
        return Blocks(config.rotation, layer, config.side, step)
    return Planes(config.rotation, layer, config.side, step)


def derive_all(
    rotations: Sequence[Blocks | Planes], gains: Sequence[Tensor | None] | None = None
) -> list[dict[str, Tensor]]:
    """The tensors for each rotation's `forward`, similar ones computed together. `gains`: layers' outputs are also to
    be multiplied by `1 + gain (out)`."""
    pairs = list(zip(rotations, [None] * len(rotations) if gains is None else gains, strict=True))
    return alike(
        pairs, lambda pair: pair[0].likeness(),
        lambda group: group[0][0].derive_alike([one for one, _ in group], [gain for _, gain in group]),
    )
