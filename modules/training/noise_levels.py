"""How often a training draws each noise level, as the window shows it."""

from collections.abc import Sequence
from typing import Any

from modules.objectives import Flow, Process
from modules.preset.schema import Objective
from modules.training import noise

DRAWS = 2000
"""Samples from the start of the training that are counted."""

BINS = 50
"""Equal parts of the noise levels from 0, the picture, to 1, pure noise."""


def histogram(
    process: Process, objective: Objective, seed: int, resolutions: Sequence[int], latent_factor: int
) -> dict[str, Any]:
    """The answer of docs/look.md, for a base's own `process`; `latent_factor`: pixels along each side of a latent.

    Raises ValueError for a smallest level that is not below the largest.
    """
    process = noise.of_preset(process, objective)
    if objective.min_noise >= objective.max_noise:
        raise ValueError(noise.no_levels(objective))
    drawn = noise.drawn_levels(process, objective, seed, range(DRAWS))
    alike: dict[float | None, list[int]] = {}
    areas = {resolution: (resolution // latent_factor) ** 2 for resolution in resolutions}
    for resolution in sorted(areas):
        shift = process.shift_of(areas[resolution]) if isinstance(process, Flow) else None
        alike.setdefault(shift, []).append(resolution)
    found = []
    for shift, together in alike.items():
        levels = noise.times_of(process, objective, drawn, areas[together[0]]) / process.count
        counts = (levels * BINS).floor().long().clamp(0, BINS - 1).bincount(minlength=BINS)
        found.append({"resolutions": together, "shift": shift, "counts": counts.tolist(), "mean": float(levels.mean())})
    return {"density": noise.density_of(objective, process).kind, "draws": DRAWS, "levels": found}
