"""Small steps that the tests of all families share."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.adapters import methods
from modules.adapters.base import Adapted, attach
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers, whole
from tests.families.rows import SIZE

CPU = torch.device("cpu")
SIZES = torch.tensor([[*map(float, SIZE), 0, 0, *map(float, SIZE)]])
"""The first conditions of a picture of `SIZE`."""


def loaded(family, folder: Path, **options) -> Any:
    base = Base(path=str(folder), **options)
    model = family.load(base, CPU, torch.float32)
    model.place(base, texts=True)
    return model


def inputs(model, count: int, size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor]:
    """Noisy latents and times, for pictures of `size` pixels."""
    side = [length // model.latent_factor for length in size]
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(count, model.latent_channels, *side, generator=generator)
    return noisy, model.process.times(torch.linspace(0.1, 0.9, count, dtype=torch.float64), side[0] * side[1])


def predicted(model, captions: list[str], size: tuple[int, int] = SIZE) -> Tensor:
    noisy, times = inputs(model, len(captions), size)
    return model.predict(noisy, times, model.encode_texts(captions), SIZES.expand(len(captions), -1))


def adapters_on(model, targets: Targets) -> list[Adapted]:
    config = methods()["lora"].Config(method="lora", rank=2)
    return [attach(whole(model), name, config, 0) for name in match_layers(model, targets)[0]]
