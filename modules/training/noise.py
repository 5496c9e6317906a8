"""The preset's options of noise and prediction, checked against the model's noise process."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modules import objectives
from modules.objectives import Density, Flow, Process
from modules.preset import effects
from modules.preset.schema import Objective

WEIGHTED = ("objective.min_snr_gamma",)
"""On by default, and yet an error where it has no effect: the preset was written for another kind of model."""


def facts_of(objective: Objective, process: Process) -> dict[str, Any]:
    """What `effects.idle` has to know of the process."""
    flow = isinstance(process, Flow)
    return {"flow": flow, "diffusion": not flow, "objective.density": density_of(objective, process).kind}


def problems(objective: Objective, process: Process) -> list[str]:
    """Options that do not apply to this process, or contradict each other, as sentences."""
    found, flow = [], isinstance(process, Flow)
    kind = "a rectified-flow model" if flow else "a diffusion model"
    if objective.prediction not in ("auto", *process.predictions):
        choices = " or ".join(("auto", *process.predictions))
        found.append(
            f"objective.prediction: this base is {kind}, which cannot predict {objective.prediction}; choose {choices}"
        )
    values = {"objective": objective.model_dump(mode="json")}
    found += [one.problem for one in effects.idle(values, facts_of(objective, process), WEIGHTED) if one.is_refused]
    if not flow and objective.min_snr_gamma is not None and objective.debiased:
        found.append("objective.debiased: cannot be combined with min-SNR; set objective.min_snr_gamma to null")
    if objective.min_noise >= objective.max_noise:
        found.append(no_levels(objective))
    mixed = (objective.mix_mse, objective.mix_l1, objective.mix_log_cosh, objective.mix_huber)
    if objective.loss == "mix" and not any(mixed):
        found.append("objective.loss: mix has no part; give at least one of objective.mix_mse, mix_l1, mix_log_cosh "
                     "and mix_huber a weight above 0")
    predicted = process.prediction if objective.prediction == "auto" else objective.prediction
    if not flow and objective.zero_terminal_snr and predicted == "epsilon":
        found.append(
            "objective.zero_terminal_snr: does not work with epsilon prediction; set objective.prediction to "
            "v_prediction, for a base that was trained with it"
        )
    return found


def no_levels(objective: Objective) -> str:
    """The sentence for a smallest noise level that is not below the largest."""
    return (f"objective.min_noise: {objective.min_noise:g} must be below objective.max_noise, which is "
            f"{objective.max_noise:g}")


def prepare(model: Any, objective: Objective) -> None:
    """Set the model up for the preset's objective, which has no `problems`."""
    if objective.prediction not in ("auto", model.process.prediction):
        model.use_prediction(objective.prediction)
    if objective.shift is not None:
        model.use_shift(objective.shift)
    if objective.zero_terminal_snr:
        model.use_zero_terminal_snr()


def of_preset(process: Process, objective: Objective) -> Process:
    """The process as `prepare` sets it, as far as noise levels depend on it."""
    found: Any = process
    if objective.shift and isinstance(process, Flow):
        found = process.with_shift(objective.shift)
    return found


def density_of(objective: Objective, process: Process) -> Density:
    """How often each noise level is trained on."""
    own = objective.sigmoid_slope, objective.sigmoid_center, objective.beta_a, objective.beta_b
    kind = process.density if objective.density == "auto" else objective.density
    return Density(kind, objective.density_mean, objective.density_spread, objective.mode_scale, *own)


def times_of(process: Process, objective: Objective, levels: Sequence[float], area: int) -> Tensor:
    """Times `(n)` of noise levels in (0, 1), float64, between the smallest and the largest that are trained."""
    bounds = objective.min_noise, objective.max_noise
    drawn = torch.tensor(levels, dtype=torch.float64)
    return process.times(objectives.within(process, drawn, bounds, area), area)


def drawn_levels(process: Process, objective: Objective, seed: int, positions: Sequence[int]) -> list[float]:
    """Noise levels in (0, 1) of the samples at these positions of a training, before shift and bounds."""
    density = density_of(objective, process)
    return [objectives.sample_level(seed, position, process.count, density) for position in positions]
