"""The preset's options of noise and prediction, checked against the model's noise process."""

from typing import Any

from modules.objectives import Flow, Process
from modules.preset.schema import Objective

FLOW_ONLY = {"shift": "null"}
DIFFUSION_ONLY = {"min_snr_gamma": "null", "debiased": "false", "zero_terminal_snr": "false"}
"""Options of one kind of process, and the value that turns them off."""

DENSITY_OPTIONS = {"logit_normal": ("density_mean", "density_spread"), "mode": ("mode_scale",)}
"""Options of one timestep distribution only."""


def problems(objective: Objective, process: Process) -> list[str]:
    """Options that do not apply to this process, or contradict each other, as sentences."""
    found, flow = [], isinstance(process, Flow)
    kind = "a rectified-flow model" if flow else "a diffusion model"
    if objective.prediction not in ("auto", *process.predictions):
        choices = " or ".join(("auto", *process.predictions))
        found.append(
            f"objective.prediction: this base is {kind}, which cannot predict {objective.prediction}; choose {choices}"
        )
    values = objective.model_dump()
    for option, off in (DIFFUSION_ONLY if flow else FLOW_ONLY).items():
        if value := values[option]:
            given = str(value).lower()
            found.append(f"objective.{option}: {given} does not apply, because this base is {kind}; set it to {off}")
    density = process.density if objective.density == "auto" else objective.density
    for owner, options in DENSITY_OPTIONS.items():
        for option in options if density != owner else ():
            value, usual = values[option], Objective.model_fields[option].default
            if value != usual:
                found.append(
                    f"objective.{option}: {value} does not apply, because objective.density is {density}; set "
                    f"objective.density to {owner}, or leave {option} at {usual:g}"
                )
    delta, usual = objective.loss_delta, Objective.model_fields["loss_delta"].default
    if objective.loss == "mse" and delta != usual:
        found.append(
            f"objective.loss_delta: {delta} does not apply, because the loss is mse; set objective.loss to huber or "
            f"smooth_l1, or leave loss_delta at {usual:g}"
        )
    if not flow and objective.min_snr_gamma is not None and objective.debiased:
        found.append("objective.debiased: cannot be combined with min-SNR; set objective.min_snr_gamma to null")
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
