"""The preset's options of noise and prediction, checked against the model's noise process."""

from typing import Any

from modules.objectives import Flow, Process
from modules.preset import effects
from modules.preset.schema import Objective

WEIGHTED = ("objective.min_snr_gamma",)
"""On by default, and yet an error where it has no effect: the preset was written for another kind of model."""


def facts_of(objective: Objective, process: Process) -> dict[str, Any]:
    """What `effects.idle` has to know of the process."""
    flow = isinstance(process, Flow)
    density = process.density if objective.density == "auto" else objective.density
    return {"flow": flow, "diffusion": not flow, "objective.density": density}


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
        found.append(f"objective.min_noise: {objective.min_noise:g} must be below objective.max_noise, which is "
                     f"{objective.max_noise:g}")
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


def prepare(model: Any, objective: Objective) -> None:
    """Set the model up for the preset's objective, which has no `problems`."""
    if objective.prediction not in ("auto", model.process.prediction):
        model.use_prediction(objective.prediction)
    if objective.shift is not None:
        model.use_shift(objective.shift)
    if objective.zero_terminal_snr:
        model.use_zero_terminal_snr()
